"""From "undo the last edits" or "go to that edit" to the request that restores a state: which edits are undone, by the history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.view import RepositoryView

from .._exceptions import InputError
from .baseline import is_same_state, snapshot_or_none
from .edit import EditRunner
from .results import Applied

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Restore


@dataclass(frozen=True)
class RollbackPlan:
    """What is restored; `unrecorded` is the last edit where the ensemble was changed since, by hand or by an export."""

    request: Restore
    unrecorded: Edit | None = None


def roll_back(runner: EditRunner, count: int, *, name: str | None, to: str | None, message: str | None, dry_run: bool) -> Applied:
    """Undo edits, or make undone ones again: see `Ensembles.rollback`.

    Raises:
        InputError: There are not so many edits, no such edit, or what was before one is not known; or the ensemble was changed meanwhile.
    """
    from defensemble_export.editing import read_history

    if count < 1:
        raise InputError(f"the number of edits to undo must be 1 or more, got {count}")
    first, *others = (target.repository for target in runner.targets)

    def plans() -> list[RollbackPlan]:
        return [rollback_plan(read_history(repository), chosen, count, to, repository) for repository in (first, *others)]

    def check_unchanged() -> None:
        if plans() != found:
            raise InputError(f"'{chosen}' was changed meanwhile, by hand or by another program: look at it, and roll back again")

    with runner.locked_and_recovered(writes=not dry_run):
        chosen = name or _edited(read_history(first), to, first)
        plan, *other_plans = found = plans()
        for other, other_plan in zip(others, other_plans, strict=True):  # each folder has a history of its own, of the same edits
            if other_plan.request != plan.request:
                raise InputError(f"the history of {other} has other last edits of '{chosen}': look at it (`defensemble ensemble history`)")
    if (last := plan.unrecorded) is not None:
        runner.on_warning(
            f"'{chosen}' was changed since its last edit ({last.id}), by hand or by an export: that counts as one edit, undone first"
        )
    if plan.request.redoes:
        message = message or f"goes forward again to {plan.request.to}"
    return runner.run(plan.request, message=message, dry_run=dry_run, check=check_unchanged)


def _edited(history: list[Edit], to: str | None, repository: Path) -> str:
    """The ensemble that is meant: that of the edit `to`, or the one that was edited last."""
    if not history:
        raise InputError(f"{repository} has no history: no edit was made there yet, so there is none to undo")
    return next((edit.ensemble for edit in history if edit.id == to), history[-1].ensemble)


def rollback_plan(history: list[Edit], name: str, count: int, to: str | None, repository: Path) -> RollbackPlan:
    """Find the edits of `name` to undo: the last `count`, or those since `to`; or find that `to` is to be made again.

    A change that no edit recorded counts as one, the last.
    """
    from defensemble_export.editing import Restore, undoable_edits

    stack = undoable_edits(history, name)
    last = next((edit for edit in reversed(history) if edit.ensemble == name), None)
    now = snapshot_or_none(RepositoryView(repository), name)
    changed = last is not None and not (
        now == last.after or (now is not None and last.after is not None and is_same_state(now, last.after))
    )
    unrecorded = last if changed else None
    if to is None:
        known = len(stack) + changed
        if count > known:
            others = ", ".join(dict.fromkeys(edit.ensemble for edit in history)) or "none"
            look = f": `defensemble ensemble history {name}` lists them" if known else f"; ensembles whose edits were recorded: {others}"
            raise InputError(f"'{name}' has {known} edit{'' if known == 1 else 's'} that can be undone, got {count}{look}")
        recorded = count - changed
        if recorded == 0 and last is not None:
            return RollbackPlan(Restore(name, to=last.id), unrecorded)
        return RollbackPlan(_undoing(stack[len(stack) - recorded :], name), unrecorded)
    ids = [edit.id for edit in stack]
    if to in ids:
        later = stack[ids.index(to) + 1 :]
        if later:
            return RollbackPlan(_undoing(later, name), unrecorded)
        if unrecorded is None:
            raise InputError(f"{to} is the last edit of '{name}' that stands: it is as that left it")
        return RollbackPlan(Restore(name, to=to), unrecorded)
    if any(edit.id == to and edit.ensemble == name for edit in history):
        return RollbackPlan(Restore(name, to=to, redoes=True), unrecorded)
    raise InputError(f"no edit {to} of '{name}' is in the history: `defensemble ensemble history` lists them")


def _undoing(edits: list[Edit], name: str) -> Restore:
    """The request that undoes these edits, of which the state before the first must be known."""
    from defensemble_export.editing import Restore

    oldest = edits[0]
    if oldest.before is None and oldest.action != "create":
        raise InputError(
            f"what '{name}' was before the edit {oldest.id} ({oldest.action}) is not known: nothing had been recorded then; "
            "`defensemble ensemble apply FILE` makes it what you say"
        )
    return Restore(name, undone=tuple(edit.id for edit in reversed(edits)))
