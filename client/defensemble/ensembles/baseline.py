"""What an ensemble was before an edit: on disk, or, where that was edited by hand, in the history or in a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from defensemble_repository.ensemble import Ensemble, averaging_model_name, two_model_names
from defensemble_repository.errors import ConfigError, EnsembleError, RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.view import RepositoryView

from .server_models import is_averaging
from .targets import TargetEdit

if TYPE_CHECKING:
    from defensemble_export.editing import Snapshot


@dataclass(frozen=True)
class Baseline:
    """The state before an edit, None where there was none, or none is known.

    Where the configuration on disk was edited by hand, `served` is the one that a server has still loaded. `was_edited_by_hand` says that a
    reload takes up another state than that before, `takes_up` that another edit takes one up on the way.
    """

    snapshot: Snapshot | None
    served: bytes | None = None
    was_edited_by_hand: bool = False
    takes_up: bool = False

    @property
    def votes(self) -> Ensemble | None:
        """Who voted."""
        return None if self.snapshot is None else self.snapshot.votes

    @classmethod
    def on_disk(cls, target_edit: TargetEdit) -> Baseline:
        """The state that lies on disk; of a hand edit that nobody has taken up, what it means, under the names that it then has."""
        now = snapshot_or_none(target_edit.plan.disk(), target_edit.name)
        served = _served_otherwise(target_edit)
        if now is None or _is_named_for_its_votes(now):
            return cls(now, _complete(target_edit, served), takes_up=served is not None)
        return cls(_taken_up(target_edit, now), _complete(target_edit, served), takes_up=True)


def baseline_before_reload(target_edit: TargetEdit) -> Baseline:
    """What a hand edit had changed: the last state that the history knows, else what a server still serves, else what lies on disk."""
    from defensemble_export.editing import read_history

    repository, name = target_edit.repository, target_edit.name
    overlay = _served_files(target_edit)
    served = overlay.get(f"{name}/config.pbtxt")
    known = [edit.after for edit in read_history(repository) if edit.ensemble == name and edit.after is not None]
    now = snapshot_or_none(target_edit.plan.disk(), name)
    before = known[-1] if known else snapshot_or_none(RepositoryView(repository, dict(overlay)), name) if overlay else now
    if before is None or now is None or is_same_state(before, now):
        only = before or now
        # Averages whose parameters were edited before anything was recorded: what they were is not known.
        return Baseline(only if only is None or _is_named_for_its_votes(only) else None)
    return Baseline(before, _complete(target_edit, served), was_edited_by_hand=True)


def snapshot_or_none(files: RepositoryView, name: str) -> Snapshot | None:
    """The ensemble as `files` hold it; None where there is none that can be read as ours."""
    from defensemble_export.editing import read_snapshot

    try:
        return read_snapshot(files, name) if files.has(name) else None
    except (ConfigError, EnsembleError):
        return None


def _served_files(target_edit: TargetEdit) -> dict[str, bytes]:
    """The configurations of the ensemble and its averaging models, as the first server has them that serves it."""
    from defensemble_export.editing import config_from_server

    for served in target_edit.servers:
        if (loaded := target_edit.loaded_config(served)) is None:
            continue
        found = {f"{target_edit.name}/config.pbtxt": pbtxt_from_config(config_from_server(loaded))}
        for model, _ in served.steps(target_edit.name):
            config = served.config(model) if is_averaging(model) else None
            if config is not None:
                found[f"{model}/config.pbtxt"] = pbtxt_from_config(config_from_server(config))
        return found
    return {}


def _served_otherwise(target_edit: TargetEdit) -> bytes | None:
    """The configuration of the ensemble that a server has loaded, where it is another one than lies on disk."""
    from defensemble_export.editing import config_from_server, is_served_as_on_disk

    disk = target_edit.plan.disk()
    for served in target_edit.servers if disk.has(target_edit.name) else ():
        if (loaded := target_edit.loaded_config(served)) is None:
            continue
        try:
            differs = not is_served_as_on_disk(disk, target_edit.name, loaded)
        except ConfigError:
            differs = True
        if differs:
            return pbtxt_from_config(config_from_server(loaded))
    return None


def _complete(target_edit: TargetEdit, served: bytes | None) -> bytes | None:
    """Return a configuration that a server has loaded, but None where it runs models that are not on disk, as in a restored backup.

    Put back, it could not be loaded.
    """
    from defensemble_export.editing import steps_of

    if served is None:
        return None
    steps = steps_of(config_from_pbtxt(served.decode(), "the configuration"))
    return served if all(target_edit.plan.disk().has(model) for model, _ in steps) else None


def is_same_state(one: Snapshot, another: Snapshot) -> bool:
    """Whether two states say the same, but for the averaging models, which follow from the votes and from the form that was written.

    A server fills in what a file leaves out, and keeps no comments.
    """
    from defensemble_export.editing import is_subset

    if (one.votes, one.labels) != (another.votes, another.labels):
        return False
    first, second = (config_from_pbtxt(snapshot.config, "the configuration") for snapshot in (one, another))
    for config in (first, second):
        del config.ensemble_scheduling.step[len(one.votes.members) :]
    return is_subset(first, second) or is_subset(second, first)


def _is_named_for_its_votes(snapshot: Snapshot) -> bool:
    """Whether its averaging models, of one form or the other, have the names of what it computes: else somebody edited votes by hand."""
    computes = (snapshot.votes, snapshot.num_classes, int(config_from_pbtxt(snapshot.config, "the configuration").max_batch_size))
    return set(snapshot.averaging) <= {averaging_model_name(*computes), *two_model_names(*computes)}


def _taken_up(target_edit: TargetEdit, now: Snapshot) -> Snapshot:
    """What a reload would have made of a hand edit, to which one can go back; as it is where that cannot be planned."""
    from defensemble_export.editing import plan_ensemble

    try:
        return snapshot_or_none(plan_ensemble(target_edit.repository, now.votes).outcome(), target_edit.name) or now
    except RepositoryError:
        return now
