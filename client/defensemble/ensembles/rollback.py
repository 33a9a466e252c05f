"""Going back to what an ensemble was before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._exceptions import InputError
from .baseline import is_same_state, snapshot_or_none
from .edit import Flow
from .results import Applied

if TYPE_CHECKING:
    from defensemble_export import Edit, Snapshot
    from defensemble_export.editing.plan import EditPlan


@dataclass(frozen=True)
class _Way:
    """From which edits back (the last one first), or forward to which, to what state; and the edit since which others changed it."""

    undone: tuple[Edit, ...]
    forward: Edit | None
    state: Snapshot | None
    unrecorded: Edit | None = None


def rolled_back(flow: Flow, count: int, *, name: str | None, to: str | None, message: str | None, dry_run: bool) -> Applied:
    """Undoes edits, or goes forward again: see `Ensembles.rollback`.

    Raises:
        InputError: There are not so many edits, no such edit, or what was before one is not known.
        EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: see `Flow.edit`.
    """
    from defensemble_export import read_history
    from defensemble_export.editing.plan import plan_snapshot

    if count < 1:
        raise InputError(f"the number of edits to undo must be 1 or more, got {count}")
    first = flow.places[0].repository
    with flow.settled(writes=not dry_run):
        history = read_history(first)
    chosen = name or _edited(history, to, first)
    way = _way(history, chosen, count, to, first)
    if way.unrecorded is not None:
        last = way.unrecorded
        flow.warn(f"'{chosen}' was changed since its last edit ({last.id}), by hand or by an export: that counts as one edit, undone first")

    def change(repository: Path) -> EditPlan:
        # Each folder has a history of its own; the edits are the same, and read again under the lock.
        here = _way(read_history(repository), chosen, count, to, repository)
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


def _way(history: list[Edit], name: str, count: int, to: str | None, repository: Path) -> _Way:
    from defensemble_export import undoable
    from defensemble_repository.view import RepositoryView

    stack = undoable(history, name)
    last = next((edit for edit in reversed(history) if edit.ensemble == name), None)
    # What was changed since, by hand or by an export, lies on top of the stack, though nothing has recorded it.
    now = snapshot_or_none(RepositoryView(repository), name)
    other = last is not None and not (now == last.after or (now is not None and last.after is not None and is_same_state(now, last.after)))
    since = last if other else None
    if to is None:
        if count > len(stack) + other:
            known = len(stack) + other
            if not known:
                others = ", ".join(dict.fromkeys(edit.ensemble for edit in history)) or "none"
                raise InputError(f"'{name}' has 0 edits that can be undone, got {count}; ensembles whose edits were recorded: {others}")
            raise InputError(
                f"'{name}' has {known} edit{'' if known == 1 else 's'} that can be undone, got {count}: "
                f"`defensemble ensemble history {name}` lists them"
            )
        left = count - other
        if left == 0 and last is not None:
            return _Way((), None, last.after, since)
        return _back(stack[len(stack) - left :], name, since)
    known_ids = [edit.id for edit in stack]
    if to in known_ids:
        later = stack[known_ids.index(to) + 1 :]
        if later:
            return _back(later, name, since)
        if since is None:
            raise InputError(f"{to} is the last edit of '{name}' that stands: it is as that left it")
        return _Way((), None, stack[-1].after, since)
    for edit in history:
        if edit.id == to and edit.ensemble == name:
            return _Way((), edit, edit.after, since)
    raise InputError(f"no edit {to} of '{name}' is in the history: `defensemble ensemble history` lists them")


def _back(chosen: list[Edit], name: str, since: Edit | None) -> _Way:
    oldest = chosen[0]
    if oldest.before is None and oldest.action != "create":
        raise InputError(
            f"what '{name}' was before the edit {oldest.id} ({oldest.action}) is not known: nothing had been recorded then; "
            "`defensemble ensemble apply FILE` makes it what you say"
        )
    return _Way(tuple(reversed(chosen)), None, oldest.before, since)
