"""All checks of one ensemble that need no graph: its wiring, its members, and what of them an ensemble must not have."""

from __future__ import annotations

from collections.abc import Mapping

from ..averaging import read_averaging
from ..errors import EnsembleError
from ..names import CONFIG_FILE, RESERVED_PREFIXES, check_name
from ..pbtxt import schema
from ..reader import is_ensemble, versions_by_policy
from .averages import check_averages
from .inspection import Inspection
from .members import check_members
from .model import check_label_files, check_links, check_model
from .preprocessing import check_agreement, check_preprocessing
from .queue_limits import queue_limit_text, queue_limits
from .wiring import format_step, step_path, wiring_problems

# The tensors that a step of a member maps; another step that reads the ensemble's input is of an ensemble that was wired otherwise.
_OF_A_MEMBER = ({"images"}, {"logits"})


def check_ensemble_configs(found: Inspection, name: str, *, outer: tuple[str, ...] = ()) -> None:
    """Find all that is wrong with the ensemble `name`, its members and its averaging models; `outer` are the ensembles that contain it."""
    before = len(found.findings)
    with found.blocking(name):
        config = _ensemble(found, name)
        if config is None:
            return
        path = found.config_path(name)
        steps = list(config.ensemble_scheduling.step)
        inputs = {tensor.name for tensor in config.input}
        votes = [step for step in steps if inputs & set(step.input_map.values())]
        averages = list(
            dict.fromkeys(step.model_name for step in steps if step not in votes and step.model_name.startswith(RESERVED_PREFIXES))
        )
        is_ours = bool(averages)
        pinned: dict[str, set[int]] = {}
        for index, step in enumerate(steps):
            if step.model_name and _check_step(found, name, index, step, is_vote=step in votes, is_ours=is_ours):
                pinned.setdefault(step.model_name, set()).add(step.model_version)
        known = {model: one for model in pinned if (one := found.config(model)) is not None}
        for model, one in known.items():
            if not is_ensemble(one):
                again = {"mend": f"`defensemble ensemble reload {name}` generates it again"} if model in averages else {}
                check_model(found, model, pinned[model], **again)
                _check_queue(found, name, model, one)
            elif model in (*outer, name):
                circle = ", which contains ".join(f"'{link}'" for link in (*outer, name, model)[(*outer, name).index(model) :])
                first = next(index for index, step in enumerate(steps) if step.model_name == model)
                found.add_finding(name, f"it contains itself: {circle}; take one of these steps out", path, *step_path(first, "model_name"))
            else:
                check_ensemble_configs(found, model, outer=(*outer, name))
        averages = [model for model in averages if model in known]
        check_averages(found, name, averages)
        for model in averages:
            _check_link(found, model)
        bad = {model for model in averages if found.has_error(model, found.config_path(model))}
        if is_ours:
            members = [step for step in votes if step.model_name in pinned and (set(step.input_map), set(step.output_map)) == _OF_A_MEMBER]
            bad |= check_members(found, name, [(step.model_name, step.model_version) for step in members], averages)
            check_agreement(found, name, config, {step.model_name: known[step.model_name] for step in members if step.model_name in known})
        for fault in wiring_problems(config, {model: one for model, one in known.items() if model not in bad}):
            found.add_problem(name, fault, path)
        if not any(one.is_error and one.blocked_model in (name, *averages) for one in found.findings):
            _check_parameters(found, name, config, known)
        if found.check_ensemble is not None:
            has_error = any(
                one.is_error for one in (*found.findings[before:], *(one for one in found.findings if one.blocked_model in known))
            )
            found.check_ensemble(found, name, config, known, has_error)


def _check_queue(found: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> None:
    allowed = found.target.allows_queue_limits
    for limit, field_path in () if allowed else queue_limits(config):
        text = queue_limit_text(limit, ensemble, found.target)
        found.add_finding(model, text, found.config_path(model), *field_path, is_error=allowed is False)


def _check_parameters(found: Inspection, name: str, config: schema.ModelConfig, known: Mapping[str, schema.ModelConfig]) -> None:
    """Whether what averages says an average: what a server compares its answers with."""
    try:
        read_averaging(config, known)
    except EnsembleError as error:
        found.add_finding(name, str(error), found.config_path(name))


def _ensemble(found: Inspection, name: str) -> schema.ModelConfig | None:
    """The configuration of the ensemble, once it is one."""
    try:
        check_name(name)
    except EnsembleError as error:
        found.add_finding(name, str(error))
        return None
    files = found.files
    if not files.has(name):
        what = f"there is no ensemble '{name}' in {files.repository}"
        found.add_finding(name, f"{what}: `defensemble ensemble show` lists those that are there, `defensemble ensemble create` makes one")
        return None
    config = found.config(name)
    if config is None:
        return None
    path = found.config_path(name)
    if not is_ensemble(config) and not config.ensemble_scheduling.step:
        what = f"'{config.backend or config.platform}'" if config.backend or config.platform else "nothing"
        found.add_finding(
            name, f'is no ensemble: it says {what}, and an ensemble says platform: "ensemble"; name another', path, "platform"
        )
        return None
    if not found.versions(name):
        text = f"has no version folder, without which Triton loads nothing: make {files.repository / name / '1'} with any file in it"
        found.add_finding(name, text, path)
    else:
        check_links(found, name, config)
    for profile in found.profiles(name):
        found.add_finding(name, "an ensemble is the same on every machine, and must have no profile file: remove this one", profile)
    _check_link(found, name)
    check_label_files(found, name, config)
    check_preprocessing(found, name, config)
    return config


def _check_link(found: Inspection, model: str) -> None:
    """An edit writes an ensemble and its averaging models: a link would carry that out of the repository."""
    for path in (model, found.config_path(model)):
        place = found.external_target(path)
        if place is not None and not found.has_error(model, path):
            text = f"is a link, or lies behind one, that leads out of the repository, to {place}, and an edit would write there"
            found.add_finding(model, f"{text}: put a copy in its place", path, is_error=found.for_edit)
            return


def _check_step(found: Inspection, name: str, index: int, step: schema.ModelEnsembling.Step, *, is_vote: bool, is_ours: bool) -> bool:
    """Whether the model of a step can be looked at: it has a name, and a configuration; then its version is looked for."""
    path, model, files = found.config_path(name), step.model_name, found.files
    field_path = step_path(index, "model_name")
    try:
        check_name(model, generated=not is_ours or not is_vote)
    except EnsembleError as error:
        found.add_finding(name, f"step {index + 1}: {error}", path, *field_path)
        return False
    if not found.has(model):
        mend = f"put it back, or {found.removal_advice(name, model) if is_vote else found.recovery_advice(name)}"
        if not is_ours:
            mend = "put it back, or take the step out"
        found.add_finding(
            model, f"{format_step(index, step)} is not in {files.repository}, which has no {model}/{CONFIG_FILE}: {mend}", path, *field_path
        )
        return False
    config = found.config(model)
    if config is None:
        return True
    there, version = found.versions(model), step.model_version
    served, field_path = versions_by_policy(there, config), step_path(index, "model_version")
    if not there:
        return True  # which is said of the model
    if version == -1:
        if is_ours:
            text = f"{format_step(index, step)} says model_version: -1, whose meaning changes when a version is added"
            found.add_finding(name, f"{text}: write the one that is meant, now {max(served or there)}", path, *field_path)
    elif version not in there:
        said = f"says model_version: {version}" if version > 0 else "says no model_version"
        text = (
            f"{format_step(index, step)} {said}, and its versions are {_numbers(there)}: write one of these, or export another (--replace)"
        )
        found.add_finding(model, text, path, *field_path)
    elif version not in served:
        text = f"'{name}' pins version {version}, and this version_policy serves {_numbers(served)}"
        found.add_finding(model, f"{text}: write version_policy {{ all {{}} }} here", found.config_path(model), "version_policy")
    return True


def _numbers(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
