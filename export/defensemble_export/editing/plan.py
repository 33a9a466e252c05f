"""The plan of an edit: the files that it changes in a repository, computed before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from defensemble_repository.configs import Interface, ensemble_config
from defensemble_repository.ensemble import Ensemble, averaging_model_name
from defensemble_repository.errors import ConfigError, EnsembleError
from defensemble_repository.names import CONFIG_FILE, LABELS_FILE, MODEL_FILE, check_name
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config, schema
from defensemble_repository.reader import is_ensemble, read_ensemble, read_max_batch_size, stated_members
from defensemble_repository.view import RepositoryView

from ..entries.ensemble import PLACEHOLDER, PLACEHOLDER_TEXT, averaging_files, ensemble_files, members_preprocessing, uses_two_models
from ..entries.members import changed_files
from ..errors import ExistsError
from ..graphs.averaging import average_onnx, is_same_graph
from .history import Snapshot


@dataclass(frozen=True)
class EditPlan:
    """The files of an edit, in the order in which to write them, so that every intermediate state is the old ensemble or the new one.

    Attributes:
        repository: The repository.
        name: The ensemble's name.
        before: The old ensemble; None if there was none, or it was not wired the way an export wires it.
        after: The new ensemble; None if it is deleted.
        averaging: The files of a new averaging model, by path relative to the repository; nothing reads them until `files` change.
        copies: The files of a new version of a member, and the configurations that describe it; no ensemble uses it until `files` change.
        files: The ensemble's own files that change.
        deletes: Whether the ensemble's folder is deleted.

    Example:
        >>> plan = SetWeights("ensemble", {"keep0.3": 2.0}).plan(Path("model_repository"))
        >>> plan.changes_files, list(plan.files)
    """

    repository: Path
    name: str
    before: Ensemble | None
    after: Ensemble | None
    averaging: Mapping[str, bytes] = field(default_factory=dict)
    copies: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    deletes: bool = False

    @property
    def changes_files(self) -> bool:
        """Whether anything on disk changes."""
        return bool(self.averaging or self.copies or self.files or self.deletes)

    @property
    def unused_files(self) -> dict[str, bytes]:
        """The files that are written before the ensemble changes: `copies` and `averaging`."""
        return {**self.copies, **self.averaging}

    @property
    def new_models(self) -> tuple[str, ...]:
        """The averaging model that it writes: one name, or none."""
        return tuple(dict.fromkeys(path.partition("/")[0] for path in self.averaging))

    @property
    def converts_two_models(self) -> bool:
        """Whether it replaces the two averaging models of an earlier version by one; the old form is not written, even by a rollback."""
        return self.before is not None and bool(self.files) and uses_two_models(self.disk(), self.name)

    def disk(self) -> RepositoryView:
        """Return the repository as it is."""
        return RepositoryView(self.repository)

    def outcome(self) -> RepositoryView:
        """Return the repository as it will be."""
        removed: dict[str, bytes | None] = {}
        if self.deletes:
            folder = self.repository / self.name
            removed = {path.relative_to(self.repository).as_posix(): None for path in folder.rglob("*") if path.is_file()}
        return RepositoryView(self.repository, {**removed, **self.unused_files, **self.files})

    def steps(self) -> list[tuple[str, int]]:
        """Return the models that the ensemble will run, with their versions, in step order."""
        return [] if self.after is None else step_models(self.outcome().config(self.name))

    def steps_before(self) -> list[tuple[str, int]]:
        """Return the models that the ensemble runs now, with their versions, in step order."""
        return step_models(self.disk().config(self.name)) if self.disk().has(self.name) else []

    def released(self) -> tuple[str, ...]:
        """Return the models of the ensemble that no ensemble will run afterwards; empty if a configuration cannot be read."""
        try:
            before = dict.fromkeys(model for model, _ in self.steps_before())
            used = used_models(self.outcome()) if before else set()
            return tuple(model for model in before if model not in used)
        except ConfigError:
            return ()


def plan_ensemble(repository: Path, after: Ensemble) -> EditPlan:
    """Plan the files that turn the ensemble `after.name` into `after`; it is created if it does not exist.

    An existing ensemble keeps the hand edits of its configuration, including `max_batch_size`. A new ensemble gets the largest batch that
    all members support, and the class names of the first. The preprocessing rule is always the one that the members state.

    Args:
        repository: The repository.
        after: The new ensemble.

    Raises:
        EnsembleError: A member does not exist, another model has the ensemble's name, the ensemble has other outputs than an export gives
            it, or the members have different preprocessing rules.
        ConfigError, ExportError, OSError: A configuration cannot be read.
    """
    check_name(after.name)
    files = RepositoryView(repository)
    missing = [member.model for member in after.members if not files.has(member.model)]
    if missing:
        raise EnsembleError(missing_networks_text(files, ", ".join(missing)))
    exists = files.has(after.name)
    before = None
    if exists:
        # None for an ensemble that was wired by hand: the request replaces it.
        before = _read_or_none(files, after.name)
        current, labels = files.config(after.name), None
        batch = read_max_batch_size(repository / after.name, None)
    else:
        first = after.members[0].model
        current, labels = files.config(first), files.content(f"{first}/{LABELS_FILE}")
        batch = min(read_max_batch_size(repository / member.model, None) for member in after.members)
    interface = _interface(current, repository, batch)
    planned = ensemble_files(_without_damaged_averaging(files, after, interface), after, interface, labels)
    own = {path: content for path, content in planned.items() if path.startswith(f"{after.name}/")}
    averaging = {path: content for path, content in planned.items() if path not in own}
    if exists:
        path = f"{after.name}/{CONFIG_FILE}"
        # An equal configuration is not written again, so that it keeps its comments and its modification time.
        own = {} if config_from_pbtxt(own[path].decode(), path) == current else {path: own[path]}
    return EditPlan(repository, after.name, before, after, averaging=averaging, files=own)


def plan_creation(repository: Path, new: Ensemble) -> EditPlan:
    """Plan a new ensemble with `plan_ensemble`.

    Raises:
        ExistsError: There is a folder of that name.
    """
    check_name(new.name)
    if (repository / new.name).exists():
        files = RepositoryView(repository)
        is_editable = files.has(new.name) and is_ensemble(files.config(new.name))
        edit = ", or edit the existing ensemble (`defensemble ensemble add|apply`)" if is_editable else "; it is not an ensemble"
        raise ExistsError(f"{repository / new.name} exists already; choose another name{edit}")
    return plan_ensemble(repository, new)


def plan_deletion(repository: Path, name: str) -> EditPlan:
    """Plan the deletion of the ensemble `name`, without its members."""
    files = RepositoryView(repository)
    return EditPlan(repository, name, _read_or_none(files, name), None, deletes=True)


def plan_snapshot(repository: Path, name: str, snapshot: Snapshot | None) -> EditPlan:
    """Plan the restoration of an earlier state, byte for byte.

    An averaging model that was deleted meanwhile is generated again, with its old configuration. A state with two averaging models gets one
    averaging model in their place. The preprocessing rule is the one that the members state now.

    Args:
        repository: The repository.
        name: The ensemble.
        snapshot: The earlier state; None if the ensemble did not exist.

    Raises:
        EnsembleError: A member no longer exists at its version, or the members have different preprocessing rules.
        ConfigError, ExportError, OSError: A configuration cannot be read.
    """
    files = RepositoryView(repository)
    if snapshot is None:
        return plan_deletion(repository, name) if files.has(name) else EditPlan(repository, name, None, None)
    for member in snapshot.ensemble.members:
        if not files.has(member.model) or member.version not in files.versions(member.model):
            raise EnsembleError(
                f"{member.model}@{member.version}, a member of '{name}' at that time, is no longer in {repository}; export it again, "
                "or roll back fewer edits"
            )
    old = config_from_pbtxt(snapshot.config, f"the {CONFIG_FILE} of '{name}' in the history")
    ensemble = snapshot.ensemble
    interface = dataclasses.replace(_interface(old, repository, int(old.max_batch_size)), num_classes=snapshot.num_classes)
    config = ensemble_config(ensemble, interface, preprocessing=members_preprocessing(files, ensemble), existing=old)
    averaging = averaging_files(_without_damaged_averaging(files, ensemble, interface), ensemble, config, interface)
    for model, text in snapshot.averaging.items():
        if f"{model}/{CONFIG_FILE}" in averaging:
            averaging[f"{model}/{CONFIG_FILE}"] = text.encode(errors="surrogateescape")
    own = {path: content for path, content in snapshot.files.items() if path.startswith(f"{name}/")}
    if config != old:
        own[f"{name}/{CONFIG_FILE}"] = pbtxt_from_config(config)
    if not (repository / name).exists():
        own = {f"{name}/1/{PLACEHOLDER}": PLACEHOLDER_TEXT, **own}
    try:
        before = _read_or_none(files, name) if files.has(name) else None
    except ConfigError:
        before = None  # a hand edit that cannot be parsed, which is replaced
    return EditPlan(repository, name, before, ensemble, averaging=averaging, files=changed_files(repository, own))


def step_models(config: schema.ModelConfig) -> list[tuple[str, int]]:
    """Return the models that an ensemble runs, with their versions, in step order."""
    return [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]


def used_models(files: RepositoryView) -> set[str]:
    """Return the models that any ensemble runs.

    Raises:
        ConfigError: A configuration cannot be read, so the models are unknown.
    """
    return {model for name in files.models() for model, _ in step_models(files.config(name))}


def find_networks(files: RepositoryView) -> list[str]:
    """Return the models that can be members: input `images`, output `logits`; models that cannot be read are skipped."""
    names = []
    for name in files.models():
        try:
            config = files.config(name)
        except ConfigError:
            continue
        if [tensor.name for tensor in (*config.input, *config.output)] == ["images", "logits"]:
            names.append(name)
    return names


def missing_networks_text(files: RepositoryView, names: str) -> str:
    """Return the message that a repository does not have the networks `names`."""
    known = find_networks(files)
    fix = f"it has {', '.join(known)}. Use one of these, or export it" if known else "it has no networks at all; export it"
    return f"{files.repository} has no network {names}; {fix} first (`defensemble export`)"


def _read_or_none(files: RepositoryView, name: str) -> Ensemble | None:
    """Read an ensemble; return None if it is not wired the way an export wires it."""
    if files.config(name).platform != "ensemble":
        raise EnsembleError(
            f"{files.repository / name} is not an ensemble; name an ensemble (`defensemble ensemble list`), or choose another name"
        )
    try:
        return read_ensemble(files.repository, name)
    except EnsembleError:
        return None


def _interface(config: schema.ModelConfig, repository: Path, max_batch_size: int) -> Interface:
    """Return the inputs and outputs of a member or an ensemble, as its configuration declares them."""
    images = [tuple(tensor.dims) for tensor in config.input if tensor.name == "images"]
    scores = [tuple(tensor.dims) for tensor in config.output if tensor.name in ("probabilities", "logits")]
    if len(config.input) != 1 or not images or len(images[0]) != 3 or not scores or len(scores[0]) != 1:
        tensors = ", ".join(f"{tensor.name} {list(tensor.dims)}" for tensor in (*config.input, *config.output))
        raise EnsembleError(
            f"{repository / config.name / CONFIG_FILE}: its inputs and outputs are {tensors or 'not declared'}, expected images [C, H, W], "
            "and logits or probabilities [K]; it can be neither a member nor an ensemble to edit"
        )
    channels, height, width = images[0]
    return Interface((channels, height, width), scores[0][0], max_batch_size)


def _without_damaged_averaging(files: RepositoryView, ensemble: Ensemble, interface: Interface) -> RepositoryView:
    """Hide the averaging model of `ensemble` if it was changed by hand, so that it is generated again."""
    classes, batch = interface.num_classes, interface.max_batch_size
    name = averaging_model_name(ensemble, classes, batch)
    if not files.has(name):
        return files
    path = f"{name}/1/{MODEL_FILE}"
    stated = stated_members(files.config(name), ensemble.name)
    described = stated is not None and name == averaging_model_name(stated, classes, batch)
    if described and is_same_graph(files.content(path), average_onnx(ensemble, classes)):
        return files
    return RepositoryView(files.repository, dict.fromkeys((path, f"{name}/{CONFIG_FILE}")))
