"""The state of an ensemble before an edit: on disk or, after a hand edit, from the history or a server."""

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
    """The state before an edit.

    Attributes:
        snapshot: The state; None if there was none, or it is unknown.
        served_config: The configuration that a server has loaded, if the one on disk was edited by hand.
        was_edited_by_hand: Whether a reload applies another state than that of `snapshot`.
        applies_hand_edit: Whether another edit also applies a hand edit.
    """

    snapshot: Snapshot | None
    served_config: bytes | None = None
    was_edited_by_hand: bool = False
    applies_hand_edit: bool = False

    @property
    def ensemble(self) -> Ensemble | None:
        """The ensemble before the edit."""
        return None if self.snapshot is None else self.snapshot.ensemble

    @classmethod
    def on_disk(cls, target_edit: TargetEdit) -> Baseline:
        """Return the state on disk; a hand edit that was not reloaded gets the names that a reload would give it."""
        current = snapshot_or_none(target_edit.plan.disk(), target_edit.name)
        served = _served_differently(target_edit)
        if current is None or _has_matching_averaging_names(current):
            return cls(current, _if_complete(target_edit, served), applies_hand_edit=served is not None)
        return cls(_reloaded(target_edit, current), _if_complete(target_edit, served), applies_hand_edit=True)


def baseline_before_reload(target_edit: TargetEdit) -> Baseline:
    """Return the state before a hand edit: the last one in the history, else the one that a server has loaded, else the one on disk."""
    from defensemble_export.editing import read_history

    repository, name = target_edit.repository, target_edit.name
    overlay = _served_files(target_edit)
    served = overlay.get(f"{name}/config.pbtxt")
    recorded = [edit.after for edit in read_history(repository) if edit.ensemble == name and edit.after is not None]
    current = snapshot_or_none(target_edit.plan.disk(), name)
    if recorded:
        before: Snapshot | None = recorded[-1]
    else:
        before = snapshot_or_none(RepositoryView(repository, dict(overlay)), name) if overlay else current
    if before is None or current is None or is_same_state(before, current):
        only = before or current
        # Parameters of averaging models that were edited before any edit was recorded: the old values are unknown.
        return Baseline(only if only is None or _has_matching_averaging_names(only) else None)
    return Baseline(before, _if_complete(target_edit, served), was_edited_by_hand=True)


def snapshot_or_none(files: RepositoryView, name: str) -> Snapshot | None:
    """Read the state of an ensemble; return None if there is none, or it is not wired the way an export wires it."""
    from defensemble_export.editing import read_snapshot

    try:
        return read_snapshot(files, name) if files.has(name) else None
    except (ConfigError, EnsembleError):
        return None


def _served_files(target_edit: TargetEdit) -> dict[str, bytes]:
    """Return the configurations of the ensemble and its averaging models from the first server that has loaded it."""
    from defensemble_export.editing import config_from_server

    for server in target_edit.servers:
        if (loaded := target_edit.loaded_config(server)) is None:
            continue
        files = {f"{target_edit.name}/config.pbtxt": pbtxt_from_config(config_from_server(loaded))}
        for model, _ in target_edit.served_steps(server):
            config = server.config(model) if is_averaging(model) else None
            if config is not None:
                files[f"{model}/config.pbtxt"] = pbtxt_from_config(config_from_server(config))
        return files
    return {}


def _served_differently(target_edit: TargetEdit) -> bytes | None:
    """Return the configuration of the ensemble that a server has loaded if it differs from the one on disk."""
    from defensemble_export.editing import config_from_server, is_served_as_on_disk

    disk = target_edit.plan.disk()
    for server in target_edit.servers if disk.has(target_edit.name) else ():
        if (loaded := target_edit.loaded_config(server)) is None:
            continue
        try:
            differs = not is_served_as_on_disk(disk, target_edit.name, loaded)
        except ConfigError:
            differs = True
        if differs:
            return pbtxt_from_config(config_from_server(loaded))
    return None


def _if_complete(target_edit: TargetEdit, served: bytes | None) -> bytes | None:
    """Return a server's configuration unless it runs models that are not on disk, as after a restored backup: it could not be loaded."""
    from defensemble_export.editing import step_models

    if served is None:
        return None
    steps = step_models(config_from_pbtxt(served.decode(), "the configuration"))
    return served if all(target_edit.plan.disk().has(model) for model, _ in steps) else None


def is_same_state(first: Snapshot, second: Snapshot) -> bool:
    """Return whether two states are equal, apart from averaging models, which follow from the members.

    Comments do not count, and neither do fields that only one state has: a server fills in fields that a file omits.
    """
    from defensemble_export.editing import is_subset

    if (first.ensemble, first.labels) != (second.ensemble, second.labels):
        return False
    configs = [config_from_pbtxt(snapshot.config, "the configuration") for snapshot in (first, second)]
    for config in configs:
        del config.ensemble_scheduling.step[len(first.ensemble.members) :]
    return is_subset(configs[0], configs[1]) or is_subset(configs[1], configs[0])


def _has_matching_averaging_names(snapshot: Snapshot) -> bool:
    """Return whether the averaging models, one or two, are named after what they compute; if not, their parameters were edited by hand."""
    max_batch_size = int(config_from_pbtxt(snapshot.config, "the configuration").max_batch_size)
    arguments = (snapshot.ensemble, snapshot.num_classes, max_batch_size)
    return set(snapshot.averaging) <= {averaging_model_name(*arguments), *two_model_names(*arguments)}


def _reloaded(target_edit: TargetEdit, current: Snapshot) -> Snapshot:
    """Return the state that a reload would make of a hand edit, which can be restored; `current` if that cannot be planned."""
    from defensemble_export.editing import plan_ensemble

    try:
        return snapshot_or_none(plan_ensemble(target_edit.repository, current.ensemble).outcome(), target_edit.name) or current
    except RepositoryError:
        return current
