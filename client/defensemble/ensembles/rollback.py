"""Rollbacks: which edits to undo, by the history, and the request that restores the state before them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.names import check_name
from defensemble_repository.view import RepositoryView

from .._exceptions import InputError
from .baseline import is_same_state, snapshot_or_none
from .edit import EditRunner
from .results import Applied

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Restore


@dataclass(frozen=True)
class RollbackPlan:
    """A planned rollback.

    Attributes:
        request: The request that restores a state.
        unrecorded: The last edit, if the ensemble was changed after it by hand or by an export.
    """

    request: Restore
    unrecorded: Edit | None = None


def roll_back(runner: EditRunner, count: int, *, name: str | None, to: str | None, message: str | None, dry_run: bool) -> Applied:
    """Undo edits, or redo undone edits; see `Ensembles.rollback`.

    Raises:
        InputError: There are fewer edits, no such edit, the state before an edit is unknown, or the ensemble changed meanwhile.
    """
    from defensemble_export.editing import read_history

    if count < 1:
        raise InputError(f"the number of edits to undo must be 1 or more, got {count}")
    first, *others = (target.repository for target in runner.targets)

    def plans() -> list[RollbackPlan]:
        return [rollback_plan(read_history(repository), ensemble, count, to, repository) for repository in (first, *others)]

    def check_unchanged() -> None:
        if plans() != first_plans:
            raise InputError(f"'{ensemble}' was changed meanwhile, by hand or by another program; check it and roll back again")

    with runner.locked_and_recovered(writes=not dry_run):
        ensemble = _default_ensemble(read_history(first), to, first) if name is None else check_name(name)
        plan, *other_plans = first_plans = plans()
        for other, other_plan in zip(others, other_plans, strict=True):  # each folder has its own history of the same edits
            if other_plan.request != plan.request:
                raise InputError(
                    f"the last edits of '{ensemble}' in the history of {other} differ from those in {first}; compare them with "
                    "`defensemble ensemble history`"
                )
    if (last := plan.unrecorded) is not None:
        runner.on_warning(
            f"'{ensemble}' was changed since its last edit ({last.id}), by hand or by an export; that counts as one edit, undone first"
        )
    if plan.request.redoes:
        message = message or f"redoes {plan.request.to}"
    return runner.run(plan.request, message=message, dry_run=dry_run, check=check_unchanged)


def _default_ensemble(history: list[Edit], to: str | None, repository: Path) -> str:
    """Return the ensemble of the edit `to`, or else the one that was edited last."""
    if not history:
        raise InputError(f"{repository} has no history: there are no edits to undo")
    return next((edit.ensemble for edit in history if edit.id == to), history[-1].ensemble)


def rollback_plan(history: list[Edit], name: str, count: int, to: str | None, repository: Path) -> RollbackPlan:
    """Find the edits to undo: the last `count`, or all after `to`; an undone edit `to` is redone.

    A change that the history does not record counts as the last edit.

    Args:
        history: All edits of the repository.
        name: The ensemble.
        count: The number of edits to undo.
        to: The id of the edit whose result is restored, instead of `count`.
        repository: The repository.

    Raises:
        InputError: There are fewer edits, no such edit, or the state before an edit is unknown.
    """
    from defensemble_export.editing import Restore, undoable_edits

    stack = undoable_edits(history, name)
    last = next((edit for edit in reversed(history) if edit.ensemble == name), None)
    current = snapshot_or_none(RepositoryView(repository), name)
    has_changed = last is not None and not (
        current == last.after or (current is not None and last.after is not None and is_same_state(current, last.after))
    )
    unrecorded = last if has_changed else None
    if to is None:
        available = len(stack) + has_changed
        if count > available:
            others = ", ".join(dict.fromkeys(edit.ensemble for edit in history)) or "none"
            fix = f"`defensemble ensemble history {name}` lists them" if available else f"ensembles with recorded edits: {others}"
            raise InputError(f"'{name}' has {available} edit{'' if available == 1 else 's'} that can be undone, got {count}; {fix}")
        recorded = count - has_changed
        if recorded == 0 and last is not None:
            return RollbackPlan(Restore(name, to=last.id), unrecorded)
        return RollbackPlan(_undo_request(stack[len(stack) - recorded :], name), unrecorded)
    ids = [edit.id for edit in stack]
    if to in ids:
        later = stack[ids.index(to) + 1 :]
        if later:
            return RollbackPlan(_undo_request(later, name), unrecorded)
        if unrecorded is None:
            raise InputError(f"{to} is the last edit of '{name}' that is not undone; '{name}' already has its result")
        return RollbackPlan(Restore(name, to=to), unrecorded)
    if any(edit.id == to and edit.ensemble == name for edit in history):
        return RollbackPlan(Restore(name, to=to, redoes=True), unrecorded)
    raise InputError(f"the history has no edit {to} of '{name}'; `defensemble ensemble history` lists the edits")


def _undo_request(edits: list[Edit], name: str) -> Restore:
    """Return the request that undoes these edits; the state before the first must be known."""
    from defensemble_export.editing import Restore

    oldest = edits[0]
    if oldest.before is None and oldest.action != "create":
        raise InputError(
            f"the state of '{name}' before the edit {oldest.id} ({oldest.action}) is unknown, because nothing was recorded then; declare "
            "the ensemble that you want with `defensemble ensemble apply FILE`"
        )
    return Restore(name, undone=tuple(edit.id for edit in reversed(edits)))
