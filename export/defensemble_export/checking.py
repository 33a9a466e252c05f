"""All checks of one ensemble, on what lies on the disk or on what an edit would make of it, before anything is written or loaded."""

from __future__ import annotations

from collections.abc import Collection

from defensemble_repository.checks.finding import Finding
from defensemble_repository.checks.wiring import said_step, way_to_step, wiring_faults
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import EnsembleError
from defensemble_repository.names import CONFIG_FILE, RESERVED, check_name
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import ensemble_from_configs, versions_by_policy
from defensemble_repository.view import Files

from .average_checks import check_averages
from .ensemble_files import averaging_model, two_model_names
from .fused_plan import outdated_graphs
from .inspecting import Inspection
from .member_checks import check_label_files, check_members
from .model_checks import check_model

# The tensors that a step of a member maps; another step that reads the ensemble's input is of an ensemble that was wired otherwise.
_OF_A_MEMBER = ({"images"}, {"logits"})


def check_ensemble(files: Files, name: str, *, loads: Collection[str] | None = None) -> list[Finding]:
    """Find all that is wrong with the ensemble ``name``, its members and its averaging models: what Triton would refuse, and what we do.

    ``loads`` are the models whose files are compared with their SHA-256, None all of them: that takes the time of reading them. Stricter
    than Triton on purpose: a step pins a version, names are those that an export gives, files are what their digests say, labels and
    profiles agree, and averaging models are what their parameters and their name say.
    """
    found = Inspection(files)
    _check(found, name, loads, ())
    return found.findings


def _check(found: Inspection, name: str, loads: Collection[str] | None, outer: tuple[str, ...]) -> None:
    config = _ensemble(found, name)
    if config is None:
        return
    path = f"{name}/{CONFIG_FILE}"
    steps = list(config.ensemble_scheduling.step)
    inputs = {tensor.name for tensor in config.input}
    votes = [step for step in steps if inputs & set(step.input_map.values())]
    averages = list(dict.fromkeys(step.model_name for step in steps if step not in votes and step.model_name.startswith(RESERVED)))
    is_ours = bool(averages)
    pinned: dict[str, set[int]] = {}
    for index, step in enumerate(steps):
        if step.model_name and _check_step(found, name, index, step, is_vote=step in votes, is_ours=is_ours):
            pinned.setdefault(step.model_name, set()).add(step.model_version)
    known = {model: one for model in pinned if (one := found.config(model)) is not None}
    for model, one in known.items():
        check_label_files(found, model, one)
        if one.platform != "ensemble":
            mend = "put it back, or export the model again (--replace), which adds a version"
            if model in averages:
                mend = f"`defensemble ensemble reload {name}` generates it again"
            check_model(found, model, pinned[model], digests=loads is None or model in loads, mend=mend)
        elif model in (*outer, name):
            circle = ", which contains ".join(f"'{link}'" for link in (*outer, name, model)[(*outer, name).index(model) :])
            first = next(index for index, step in enumerate(steps) if step.model_name == model)
            found.say(name, f"it contains itself: {circle}; take one of these steps out", path, *way_to_step(first, "model_name"))
        else:
            _check(found, model, loads, (*outer, name))
    averages = [model for model in averages if model in known]
    check_averages(found, name, averages)
    for model in averages:
        _refuse_link(found, model)
    bad = {model for model in averages if found.refused(model, f"{model}/{CONFIG_FILE}")}
    if is_ours:
        members = [step for step in votes if step.model_name in pinned and (set(step.input_map), set(step.output_map)) == _OF_A_MEMBER]
        bad |= check_members(found, name, [(step.model_name, step.model_version) for step in members], averages)
    for fault in wiring_faults(config, {model: one for model, one in known.items() if model not in bad}):
        found.say(name, fault.text, path, *fault.way)
    _check_votes(found, name, config, known)


def _ensemble(found: Inspection, name: str) -> schema.ModelConfig | None:
    """The configuration of the ensemble, once it is one."""
    try:
        check_name(name)
    except EnsembleError as error:
        found.say(name, str(error))
        return None
    files = found.files
    if not files.has(name):
        what = f"there is no ensemble '{name}' in {files.repository}"
        found.say(name, f"{what}: `defensemble ensemble show` lists those that are there, `defensemble ensemble create` makes one")
        return None
    config = found.config(name)
    if config is None:
        return None
    path = f"{name}/{CONFIG_FILE}"
    if config.platform != "ensemble" and not config.ensemble_scheduling.step:
        what = f"'{config.backend or config.platform}'" if config.backend or config.platform else "nothing"
        found.say(name, f'is no ensemble: it says {what}, and an ensemble says platform: "ensemble"; name another', path, "platform")
        return None
    if not found.versions(name):
        text = f"has no version folder, without which Triton loads nothing: make {files.repository / name / '1'} with any file in it"
        found.say(name, text, path)
    for profile in found.profiles(name):
        found.say(name, "an ensemble is the same on every machine, and must have no profile file: remove this one", profile)
    _refuse_link(found, name)
    check_label_files(found, name, config)
    return config


def _refuse_link(found: Inspection, model: str) -> None:
    """An edit writes an ensemble and its averaging models: a link would carry that out of the repository."""
    for path in (model, f"{model}/{CONFIG_FILE}"):
        place = found.leads_out(path)
        if place is not None and not found.refused(model, path):
            text = f"is a link, or lies behind one, that leads out of the repository, to {place}, and an edit would write there"
            found.say(model, f"{text}: put a copy in its place", path)
            return


def _check_step(found: Inspection, name: str, index: int, step: schema.ModelEnsembling.Step, *, is_vote: bool, is_ours: bool) -> bool:
    """Whether the model of a step can be looked at: it has a name, and a configuration; then its version is looked for."""
    path, model, files = f"{name}/{CONFIG_FILE}", step.model_name, found.files
    way = way_to_step(index, "model_name")
    try:
        check_name(model, generated=not is_ours or not is_vote)
    except EnsembleError as error:
        found.say(name, f"step {index + 1}: {error}", path, *way)
        return False
    remove = f"`defensemble ensemble remove {name} {model}`"
    if not found.has(model):
        mend = (
            f"put it back, or take its vote out with {remove}"
            if is_vote
            else "put it back, go back with `defensemble ensemble rollback`, or say what is to vote with `defensemble ensemble apply FILE`"
        )
        found.say(model, f"{said_step(index, step)} is not in {files.repository}, which has no {model}/{CONFIG_FILE}: {mend}", path, *way)
        return False
    config = found.config(model)
    if config is None:
        return True
    there, version = found.versions(model), step.model_version
    served, way = versions_by_policy(there, config), way_to_step(index, "model_version")
    if not there:
        text = f"{said_step(index, step)} has no version folder in {files.repository / model}: put it back, or export the model again"
        found.say(model, text, path, *way)
    elif version == -1:
        if is_ours:
            text = f"{said_step(index, step)} says model_version: -1, whose meaning changes when a version is added"
            found.say(name, f"{text}: write the one that is meant, now {max(served or there)}", path, *way)
    elif version not in there:
        said = f"says model_version: {version}" if version > 0 else "says no model_version"
        text = f"{said_step(index, step)} {said}, and its versions are {_numbers(there)}: write one of these, or export another (--replace)"
        found.say(model, text, path, *way)
    elif version not in served:
        text = (
            f"'{name}' pins version {version}, and this version_policy serves {_numbers(served)}: write version_policy {{ all {{}} }} here"
        )
        found.say(model, text, f"{model}/{CONFIG_FILE}", "version_policy")
    return True


def _check_votes(found: Inspection, name: str, config: schema.ModelConfig, known: dict[str, schema.ModelConfig]) -> None:
    """Whether this ensemble can be edited by its votes, and what they say of others."""
    path = f"{name}/{CONFIG_FILE}"
    refused = any(one.refuses for one in found.findings)
    try:
        votes = ensemble_from_configs(name, {**known, name: config})
    except EnsembleError as error:
        if not refused:  # else this would be said twice
            text = f"it can be served, but not edited: {error}"
            found.say(name, text, path, "ensemble_scheduling", refuses=False)
        return
    if not refused:
        _say_names(found, name, config, votes, known)
    for graph in outdated_graphs(found.files, votes):
        again = f"`defensemble export --repository {found.files.repository} --ensemble {name} --fuse {graph} --replace`"
        text = f"'{graph}' is a fused graph of other votes than '{name}' has now: fuse it again ({again})"
        found.say(graph, text, f"{graph}/{CONFIG_FILE}", ("parameters", "key", "members"), refuses=False)


def _say_names(found: Inspection, name: str, config: schema.ModelConfig, votes: Ensemble, known: dict[str, schema.ModelConfig]) -> None:
    """Say what is served, and what the next edit writes otherwise: two averaging models, or one named for other members or batches."""
    path, first = f"{name}/{CONFIG_FILE}", len(votes.members)
    averages = [step.model_name for step in list(config.ensemble_scheduling.step)[first:]]
    if len(averages) > 1:
        text = (
            f"{averages[0]} and {averages[1]} average it, the form of earlier versions, in which a call that is cancelled can crash the "
            f"server: `defensemble ensemble reload {name}` makes one model of them"
        )
        found.say(name, text, path, *way_to_step(first, "model_name"), refuses=False)
        return
    described = known.get(averages[0])
    classes = next((int(size) for tensor in described.input for size in tensor.dims), 0) if described is not None else 0
    named = averaging_model(votes, classes, int(config.max_batch_size))
    if averages[0] not in (named, *two_model_names(votes, classes, int(config.max_batch_size))):
        text = (
            f"its answers are right, but its averaging model is named for other members or another max_batch_size: step {first + 1} is to "
            f"run {named}, which `defensemble ensemble reload {name}` generates"
        )
        found.say(name, text, path, *way_to_step(first, "model_name"), refuses=False)


def _numbers(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
