"""Going back to what an ensemble was before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble._exceptions import InputError
from defensemble.ensembles._before import snapshot_or_none
from defensemble.ensembles._flow import Flow
from defensemble.ensembles._results import Applied

if TYPE_CHECKING:
    from defensemble_export import Edit, Snapshot
    from defensemble_export.edit_plan import EditPlan


@dataclass(frozen=True)
class _Way:
    """From which edits back (the last one first), or forward to which, and to what state."""

    undone: tuple[Edit, ...]
    forward: Edit | None
    state: Snapshot | None


def rolled_back(flow: Flow, count: int, *, name: str | None, to: str | None, message: str | None, dry_run: bool) -> Applied:
    """Undoes edits, or goes forward again: see `Ensembles.rollback`.

    Raises:
        InputError: There are not so many edits, no such edit, or what was before one is not known.
        EditRefusedError, EditFailedError, ServiceError, defensemble_export.ExportError, OSError: see `Flow.edit`.
    """
    from defensemble_export import read_history
    from defensemble_export.edit_plan import plan_snapshot

    if count < 1:
        raise InputError(f"the number of edits to undo must be 1 or more, got {count}")
    first = flow.places[0].repository
    with flow.settled(writes=not dry_run):
        history = read_history(first)
    chosen = name or _edited(history, to, first)
    way = _way(history, chosen, count, to)
    _tell_of_other_changes(flow, history, chosen)

    def change(repository: Path) -> EditPlan:
        # Each folder has a history of its own; the edits are the same, and read again under the lock.
        here = _way(read_history(repository), chosen, count, to)
        if [edit.id for edit in here.undone] != [edit.id for edit in way.undone] or (here.forward is None) != (way.forward is None):
            raise InputError(f"the history of {repository} has other last edits of '{chosen}': look at it (`defensemble ensemble history`)")
        return plan_snapshot(repository, chosen, here.state)

    ids = [edit.id for edit in way.undone]
    if way.forward is not None:
        told = message or f"goes forward again to {way.forward.id}"
        return flow.edit("apply", chosen, change, message=told, dry_run=dry_run)
    return flow.edit("rollback", chosen, change, message=message, dry_run=dry_run, undoes=ids)


def _edited(history: list[Edit], to: str | None, repository: Path) -> str:
    """The ensemble that is meant: that of the edit `to`, or the one that was edited last."""
    if not history:
        raise InputError(f"{repository} has no history: no edit was made there yet, so there is none to undo")
    return next((edit.ensemble for edit in history if edit.id == to), history[-1].ensemble)


def _way(history: list[Edit], name: str, count: int, to: str | None) -> _Way:
    from defensemble_export import undoable

    stack = undoable(history, name)
    if to is None:
        if count > len(stack):
            raise InputError(
                f"'{name}' has {len(stack)} edit{'' if len(stack) == 1 else 's'} that can be undone, got {count}: "
                f"`defensemble ensemble history --ensemble {name}` lists them"
            )
        return _back(stack[len(stack) - count :], name)
    known = [edit.id for edit in stack]
    if to in known:
        later = stack[known.index(to) + 1 :]
        if not later:
            raise InputError(f"{to} is the last edit of '{name}' that stands: it is as that left it")
        return _back(later, name)
    for edit in history:
        if edit.id == to and edit.ensemble == name:
            return _Way((), edit, edit.after)
    raise InputError(f"no edit {to} of '{name}' is in the history: `defensemble ensemble history` lists them")


def _back(chosen: list[Edit], name: str) -> _Way:
    oldest = chosen[0]
    if oldest.before is None and oldest.action != "create":
        raise InputError(
            f"what '{name}' was before the edit {oldest.id} ({oldest.action}) is not known: nothing had been recorded then; "
            "`defensemble ensemble apply FILE` makes it what you say"
        )
    return _Way(tuple(reversed(chosen)), None, oldest.before)


def _tell_of_other_changes(flow: Flow, history: list[Edit], name: str) -> None:
    """Warns where the last edit is not what lies on disk: what was changed since is undone too."""
    from defensemble_export.files import Files

    last = next((edit for edit in reversed(history) if edit.ensemble == name), None)
    now = snapshot_or_none(Files(flow.places[0].repository), name)
    if last is not None and now != last.after:
        flow.warn(f"'{name}' was changed since its last edit ({last.id}), by hand or by an export: that is undone too")
