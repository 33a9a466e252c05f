"""Going back to what an ensemble was before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from defensemble._exceptions import InputError
from defensemble.ensembles._flow import Flow
from defensemble.ensembles._results import Applied

if TYPE_CHECKING:
    from defensemble_export import Edit
    from defensemble_export.edit_plan import EditPlan


def rolled_back(flow: Flow, count: int, *, name: str | None, to: str | None, message: str | None, dry_run: bool) -> Applied:
    """Undoes edits: see `Ensembles.rollback`.

    Raises:
        InputError: There are not so many edits, no such edit, or what was before one is not known.
        EditRefusedError, EditFailedError, ServiceError, defensemble_export.ExportError, OSError: see `Flow.edit`.
    """
    from defensemble_export import read_history, undoable
    from defensemble_export.edit_plan import plan_snapshot

    if count < 1:
        raise InputError(f"the number of edits to undo must be 1 or more, got {count}")
    with flow.settled():
        history = read_history(flow.places[0].repository)
    chosen = name or _last_edited(history, flow.places[0].repository)
    undone = _undone(undoable(history, chosen), count, to, chosen)
    ids = [edit.id for edit in undone]

    def change(repository: Path) -> EditPlan:
        # Each folder has a history of its own; the ids are the same, and read again under the lock.
        here = _undone(undoable(read_history(repository), chosen), count, to, chosen)
        if [edit.id for edit in here] != ids:
            raise InputError(f"the history of {repository} has other last edits of '{chosen}': look at it (`defensemble ensemble history`)")
        return plan_snapshot(repository, chosen, here[-1].before)

    told = message if message is not None else f"undoes {', '.join(ids)}"
    return flow.edit("rollback", chosen, change, message=told, dry_run=dry_run, undoes=ids)


def _last_edited(history: list[Edit], repository: Path) -> str:
    if not history:
        raise InputError(f"{repository} has no history: no edit was made there yet, so there is none to undo")
    return history[-1].ensemble


def _undone(stack: list[Edit], count: int, to: str | None, name: str) -> list[Edit]:
    """The edits to undo, the last one first."""
    if to is not None:
        known = [edit.id for edit in stack]
        if to not in known:
            raise InputError(f"no edit {to} of '{name}' can be gone back to: there are {', '.join(known) or 'none'} (ensemble history)")
        chosen = stack[known.index(to) + 1 :]
        if not chosen:
            raise InputError(f"{to} is the last edit of '{name}': it is as that left it")
    else:
        if count > len(stack):
            raise InputError(f"'{name}' has {len(stack)} edit{'' if len(stack) == 1 else 's'} that can be undone, got {count}")
        chosen = stack[len(stack) - count :]
    oldest = chosen[0]
    if oldest.before is None and oldest.action != "create":
        raise InputError(
            f"what '{name}' was before the edit {oldest.id} ({oldest.action}) is not known: nothing had been recorded then; "
            "`defensemble ensemble apply FILE` makes it what you say"
        )
    return list(reversed(chosen))
