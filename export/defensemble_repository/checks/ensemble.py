"""Check an ensemble without opening a graph: its wiring, its members and its averaging models."""

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

# The tensors that the step of a member maps. A step with others, which reads the input too, is from another kind of ensemble.
_MEMBER_TENSORS = ({"images"}, {"logits"})


def check_ensemble_configs(inspection: Inspection, name: str, *, outer: tuple[str, ...] = ()) -> None:
    """Find the problems of an ensemble, its members and its averaging models.

    Args:
        inspection: Receives the findings.
        name: The name of the ensemble.
        outer: The ensembles that contain it, from the outermost.
    """
    count_before = len(inspection.findings)
    with inspection.blocking(name):
        config = _check_ensemble_itself(inspection, name)
        if config is None:
            return
        path = inspection.config_path(name)
        steps = list(config.ensemble_scheduling.step)
        inputs = {tensor.name for tensor in config.input}
        member_steps = [step for step in steps if inputs & set(step.input_map.values())]
        others = [step.model_name for step in steps if step not in member_steps]
        averages = list(dict.fromkeys(model for model in others if model.startswith(RESERVED_PREFIXES)))
        is_ours = bool(averages)
        pinned: dict[str, set[int]] = {}
        for index, step in enumerate(steps):
            if step.model_name and _check_step(inspection, name, index, step, is_member=step in member_steps, is_ours=is_ours):
                pinned.setdefault(step.model_name, set()).add(step.model_version)
        configs = {model: known for model in pinned if (known := inspection.config(model)) is not None}
        for model, model_config in configs.items():
            if not is_ensemble(model_config):
                options = {"fix": f"Generate it again with `defensemble ensemble reload {name}`."} if model in averages else {}
                check_model(inspection, model, pinned[model], **options)
                _check_queue(inspection, name, model, model_config)
            elif model in (*outer, name):
                cycle = ", which contains ".join(f"'{link}'" for link in (*outer, name, model)[(*outer, name).index(model) :])
                first = next(index for index, step in enumerate(steps) if step.model_name == model)
                text = f"the ensemble contains itself: {cycle}. Remove one of these steps."
                inspection.add_finding(name, text, path, *step_path(first, "model_name"))
            else:
                check_ensemble_configs(inspection, model, outer=(*outer, name))
        averages = [model for model in averages if model in configs]
        check_averages(inspection, name, averages)
        for model in averages:
            _check_external_link(inspection, model)
        bad = {model for model in averages if inspection.has_error(model, inspection.config_path(model))}
        if is_ours:
            members = [
                (step.model_name, step.model_version)
                for step in member_steps
                if step.model_name in pinned and (set(step.input_map), set(step.output_map)) == _MEMBER_TENSORS
            ]
            bad |= check_members(inspection, name, members, averages)
            check_agreement(inspection, name, config, {model: configs[model] for model, _ in members if model in configs})
        for problem in wiring_problems(config, {model: known for model, known in configs.items() if model not in bad}):
            inspection.add_problem(name, problem, path)
        if not any(finding.is_error and finding.blocked_model in (name, *averages) for finding in inspection.findings):
            _check_averaging_parameters(inspection, name, config, configs)
        if inspection.check_ensemble is not None:
            relevant = inspection.findings[count_before:]
            relevant += [finding for finding in inspection.findings if finding.blocked_model in configs]
            inspection.check_ensemble(inspection, name, config, configs, any(finding.is_error for finding in relevant))


def _check_queue(inspection: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> None:
    is_allowed = inspection.target.allows_queue_limits
    for limit, field_path in () if is_allowed else queue_limits(config):
        text = queue_limit_text(limit, ensemble, inspection.target)
        inspection.add_finding(model, text, inspection.config_path(model), *field_path, is_error=is_allowed is False)


def _check_averaging_parameters(
    inspection: Inspection, name: str, config: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]
) -> None:
    """Check the parameters from which a server computes the expected answers."""
    try:
        read_averaging(config, configs)
    except EnsembleError as error:
        inspection.add_finding(name, str(error), inspection.config_path(name))


def _check_ensemble_itself(inspection: Inspection, name: str) -> schema.ModelConfig | None:
    """Check the name, the platform and the folder of an ensemble. Return its configuration, or None if it is not an ensemble."""
    try:
        check_name(name)
    except EnsembleError as error:
        inspection.add_finding(name, str(error))
        return None
    files = inspection.files
    if not files.has(name):
        text = f"there is no ensemble '{name}' in {files.repository}. `defensemble ensemble show` lists the ensembles, "
        inspection.add_finding(name, f"{text}and `defensemble ensemble create` creates one.")
        return None
    config = inspection.config(name)
    if config is None:
        return None
    path = inspection.config_path(name)
    if not is_ensemble(config) and not config.ensemble_scheduling.step:
        kind = f"'{config.backend or config.platform}'" if config.backend or config.platform else "unknown"
        text = f'is not an ensemble: its backend or platform is {kind}; expected platform: "ensemble". Choose another model.'
        inspection.add_finding(name, text, path, "platform")
        return None
    if not inspection.versions(name):
        folder = files.repository / name / "1"
        inspection.add_finding(name, f"has no version folder, so Triton does not load it. Create {folder} with any file in it.", path)
    else:
        check_links(inspection, name, config)
    for profile in inspection.profiles(name):
        text = "an ensemble is the same on every machine and must have no profile. Remove this file."
        inspection.add_finding(name, text, profile)
    _check_external_link(inspection, name)
    check_label_files(inspection, name, config)
    check_preprocessing(inspection, name, config)
    return config


def _check_external_link(inspection: Inspection, model: str) -> None:
    """Find a link out of the repository in the path of an ensemble or averaging model, to which an edit would write."""
    for path in (model, inspection.config_path(model)):
        target = inspection.external_target(path)
        if target is not None and not inspection.has_error(model, path):
            text = f"is, or is inside, a link to {target}, outside the repository, and an edit would write there. Replace it with a copy."
            inspection.add_finding(model, text, path, is_error=inspection.for_edit)
            return


def _check_step(
    inspection: Inspection, name: str, index: int, step: schema.ModelEnsembling.Step, *, is_member: bool, is_ours: bool
) -> bool:
    """Check the model and the version of a step. Return whether the model has a valid name and a configuration."""
    path, model, files = inspection.config_path(name), step.model_name, inspection.files
    field_path = step_path(index, "model_name")
    try:
        check_name(model, generated=not is_ours or not is_member)
    except EnsembleError as error:
        inspection.add_finding(name, f"step {index + 1}: {error}", path, *field_path)
        return False
    if not inspection.has(model):
        alternative = inspection.removal_advice(name, model) if is_member else inspection.recovery_advice(name)
        if not is_ours:
            alternative = "remove the step"
        text = f"the model of {format_step(index, step)} is not in {files.repository}: {model}/{CONFIG_FILE} does not exist"
        inspection.add_finding(model, f"{text}. Put it back, or {alternative}.", path, *field_path)
        return False
    config = inspection.config(model)
    if config is None:
        return True
    versions, version = inspection.versions(model), step.model_version
    served, field_path = versions_by_policy(versions, config), step_path(index, "model_version")
    if not versions:
        return True  # A finding about the model reports it.
    if version == -1:
        if is_ours:
            text = f"{format_step(index, step)} has model_version: -1, whose meaning changes when a version is added"
            inspection.add_finding(name, f"{text}. Write the intended version, now {max(served or versions)}.", path, *field_path)
    elif version not in versions:
        actual = f"model_version: {version}" if version > 0 else "no model_version"
        text = f"{format_step(index, step)} has {actual}; expected one of {_join_numbers(versions)}. "
        inspection.add_finding(model, f"{text}Write one of these, or export another version with --replace.", path, *field_path)
    elif version not in served:
        text = f"'{name}' uses version {version}, but this version_policy serves {_join_numbers(served)}"
        text += ". Write version_policy { all {} } here."
        inspection.add_finding(model, text, inspection.config_path(model), "version_policy")
    return True


def _join_numbers(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
