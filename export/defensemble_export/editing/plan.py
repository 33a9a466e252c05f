"""What an edit of an ensemble changes in a repository, computed before anything is written."""

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

from ..entries.ensemble import PLACEHOLDER, PLACEHOLDER_TEXT, averaging_files, ensemble_files, is_of_two_models, members_preprocessing
from ..entries.members import changed_files
from ..errors import ExistsError
from ..graphs.averaging import average_onnx, is_same_graph
from .history import Snapshot


@dataclass(frozen=True)
class EditPlan:
    """The files of an edit, in the order in which they are to appear: each state on the way is the old ensemble or the new one.

    ``averaging`` are those of an averaging model that is not there yet, which nobody reads until ``files``, the ensemble's own, change
    (path relative to the repository, to bytes). ``deletes`` says that the ensemble's folder is to go as a whole. ``before`` is None where
    there was no ensemble, or one that cannot be read as ours; ``after`` where there will be none.
    """

    repository: Path
    name: str
    before: Ensemble | None
    after: Ensemble | None
    averaging: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    deletes: bool = False

    @property
    def changes_files(self) -> bool:
        """Whether anything on disk changes."""
        return bool(self.averaging or self.files or self.deletes)

    @property
    def new_models(self) -> tuple[str, ...]:
        """The name of the averaging model that it writes, where it writes one."""
        return tuple(dict.fromkeys(path.partition("/")[0] for path in self.averaging))

    @property
    def converts(self) -> bool:
        """Whether the ensemble that it changes is of the two-model form, in which none is written: not by a rollback either."""
        return self.before is not None and bool(self.files) and is_of_two_models(self.disk(), self.name)

    def disk(self) -> RepositoryView:
        """The repository as it is."""
        return RepositoryView(self.repository)

    def outcome(self) -> RepositoryView:
        """The repository as it will be."""
        gone: dict[str, bytes | None] = {}
        if self.deletes:
            folder = self.repository / self.name
            gone = {path.relative_to(self.repository).as_posix(): None for path in folder.rglob("*") if path.is_file()}
        return RepositoryView(self.repository, {**gone, **self.averaging, **self.files})

    def steps(self) -> list[tuple[str, int]]:
        """The models that the ensemble will run, with their versions, in step order."""
        return [] if self.after is None else steps_of(self.outcome().config(self.name))

    def steps_before(self) -> list[tuple[str, int]]:
        """The models that the ensemble runs now, with their versions, in step order."""
        return steps_of(self.disk().config(self.name)) if self.disk().has(self.name) else []

    def released(self) -> tuple[str, ...]:
        """The models that it runs now, and that no ensemble of the repository will; none where a configuration cannot be read."""
        try:
            before = dict.fromkeys(model for model, _ in self.steps_before())
            used = used_models(self.outcome()) if before else set()
            return tuple(model for model in before if model not in used)
        except ConfigError:
            return ()


def plan_ensemble(repository: Path, after: Ensemble) -> EditPlan:
    """Plan the files that make the ensemble of that name be ``after``, which may be there already in another form, or not at all.

    One that is there keeps the hand edits of its configuration, its ``max_batch_size`` among them; a new one takes what all of its members
    take, and the class names of the first. How images are brought to size is always what the members state.

    Raises:
        EnsembleError: a member is not there, the name is that of another model, the ensemble's outputs are not ours, or the members bring
            images to size by different rules.
        ConfigError, ExportError, OSError: a configuration cannot be read.
    """
    check_name(after.name)
    files = RepositoryView(repository)
    lacking = [vote.model for vote in after.members if not files.has(vote.model)]
    if lacking:
        raise EnsembleError(no_network_text(files, ", ".join(lacking)))
    existing = files.has(after.name)
    before = None
    if existing:
        # Of one that was wired by hand what is asked for takes the place.
        before = _read_or_none(files, after.name)
        shown, labels = files.config(after.name), None
        batch = read_max_batch_size(repository / after.name, None)
    else:
        first = after.members[0].model
        shown, labels = files.config(first), files.content(f"{first}/{LABELS_FILE}")
        batch = min(read_max_batch_size(repository / vote.model, None) for vote in after.members)
    interface = _interface(shown, repository, batch)
    planned = ensemble_files(_without_damaged_averaging(files, after, interface), after, interface, labels)
    own = {path: content for path, content in planned.items() if path.startswith(f"{after.name}/")}
    averaging = {path: content for path, content in planned.items() if path not in own}
    if existing:
        path = f"{after.name}/{CONFIG_FILE}"
        # One that says the same is left as it is: with its comments, and its time of change.
        own = {} if config_from_pbtxt(own[path].decode(), path) == shown else {path: own[path]}
    return EditPlan(repository, after.name, before, after, averaging=averaging, files=own)


def plan_creation(repository: Path, new: Ensemble) -> EditPlan:
    """Plan an ensemble by ``plan_ensemble``; ExistsError where there is a folder of that name."""
    check_name(new.name)
    if (repository / new.name).exists():
        files = RepositoryView(repository)
        is_one = files.has(new.name) and is_ensemble(files.config(new.name))
        edit = ", or edit what is there (`defensemble ensemble add|apply`)" if is_one else ", this is no ensemble to edit"
        raise ExistsError(f"{repository / new.name} exists already: choose another name{edit}")
    return plan_ensemble(repository, new)


def plan_deletion(repository: Path, name: str) -> EditPlan:
    """Plan that the ensemble ``name`` goes; its members stay."""
    files = RepositoryView(repository)
    return EditPlan(repository, name, _read_or_none(files, name), None, deletes=True)


def plan_snapshot(repository: Path, name: str, snapshot: Snapshot | None) -> EditPlan:
    """Plan that the ensemble ``name`` is again, to the byte, what ``snapshot`` has kept; None: that it is gone.

    An averaging model that was deleted since is generated again, and gets the configuration that it had. Of a state of the two-model form
    all but its last two steps is restored, which become one. How images are brought to size is what the members state now.

    Raises:
        EnsembleError: a member is not there any more, at that version, or the members bring images to size by different rules.
        ConfigError, ExportError, OSError: a configuration cannot be read.
    """
    files = RepositoryView(repository)
    if snapshot is None:
        return plan_deletion(repository, name) if files.has(name) else EditPlan(repository, name, None, None)
    for vote in snapshot.votes.members:
        if not files.has(vote.model) or vote.version not in files.versions(vote.model):
            raise EnsembleError(
                f"{vote.model}@{vote.version}, which voted in '{name}' then, is not in {repository} any more: export it again, "
                "or go back less far"
            )
    kept = config_from_pbtxt(snapshot.config, f"the {CONFIG_FILE} of '{name}' in the history")
    interface = dataclasses.replace(_interface(kept, repository, int(kept.max_batch_size)), num_classes=snapshot.num_classes)
    config = ensemble_config(snapshot.votes, interface, preprocessing=members_preprocessing(files, snapshot.votes), existing=kept)
    averaging = averaging_files(_without_damaged_averaging(files, snapshot.votes, interface), snapshot.votes, config, interface)
    for model, text in snapshot.averaging.items():
        if f"{model}/{CONFIG_FILE}" in averaging:
            averaging[f"{model}/{CONFIG_FILE}"] = text.encode(errors="surrogateescape")
    own = {path: content for path, content in snapshot.files.items() if path.startswith(f"{name}/")}
    if config != kept:
        own[f"{name}/{CONFIG_FILE}"] = pbtxt_from_config(config)
    if not (repository / name).exists():
        own = {f"{name}/1/{PLACEHOLDER}": PLACEHOLDER_TEXT, **own}
    try:
        before = _read_or_none(files, name) if files.has(name) else None
    except ConfigError:
        before = None  # a hand edit that no parser takes, which goes
    return EditPlan(repository, name, before, snapshot.votes, averaging=averaging, files=changed_files(repository, own))


def steps_of(config: schema.ModelConfig) -> list[tuple[str, int]]:
    """The models that an ensemble runs, with their versions, in step order."""
    return [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]


def used_models(files: RepositoryView) -> set[str]:
    """The models that any ensemble runs.

    Raises:
        ConfigError: a configuration cannot be read, so that this is not known.
    """
    return {model for name in files.models() for model, _ in steps_of(files.config(name))}


def networks(files: RepositoryView) -> list[str]:
    """The models that can vote: those that take ``images`` and give ``logits``; what cannot be read is left out."""
    found = []
    for name in files.models():
        try:
            config = files.config(name)
        except ConfigError:
            continue
        if [tensor.name for tensor in (*config.input, *config.output)] == ["images", "logits"]:
            found.append(name)
    return found


def no_network_text(files: RepositoryView, names: str) -> str:
    """State that a repository lacks these networks, and how to name or export one."""
    known = networks(files)
    there = f"it holds {', '.join(known)}: name one, or export it" if known else "nor any other: export it"
    return f"{files.repository} holds no network {names}, {there} first (`defensemble export`)"


def _read_or_none(files: RepositoryView, name: str) -> Ensemble | None:
    """An ensemble as it is; None where it is one, but not wired as ours are."""
    if files.config(name).platform != "ensemble":
        raise EnsembleError(f"{files.repository / name} is not an ensemble: name one (`defensemble ensemble list`), or choose another name")
    try:
        return read_ensemble(files.repository, name)
    except EnsembleError:
        return None


def _interface(config: schema.ModelConfig, repository: Path, max_batch_size: int) -> Interface:
    """What a member or an ensemble takes and gives, by its configuration."""
    images = [tuple(tensor.dims) for tensor in config.input if tensor.name == "images"]
    scores = [tuple(tensor.dims) for tensor in config.output if tensor.name in ("probabilities", "logits")]
    if len(config.input) != 1 or not images or len(images[0]) != 3 or not scores or len(scores[0]) != 1:
        told = ", ".join(f"{tensor.name} {list(tensor.dims)}" for tensor in (*config.input, *config.output))
        raise EnsembleError(
            f"{repository / config.name / CONFIG_FILE}: takes and gives {told or 'nothing'}, expected images [C, H, W], and logits or "
            "probabilities [K]: it can neither vote nor be edited"
        )
    channels, height, width = images[0]
    return Interface((channels, height, width), scores[0][0], max_batch_size)


def _without_damaged_averaging(files: RepositoryView, ensemble: Ensemble, interface: Interface) -> RepositoryView:
    """``files`` without an averaging model that somebody has edited: one with the name of what ``ensemble`` computes is written again."""
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
