"""The records of an edit: its changes in words, the entry of the history, and the journal while it is in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .baseline import Baseline, snapshot_or_none
from .checks import refusal
from .server_models import is_averaging
from .targets import TargetEdit

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, EditRequest


def edit_changes(target_edits: Sequence[TargetEdit], baselines: Sequence[Baseline]) -> tuple[str, ...]:
    """Describe the changes of an edit; with several targets, the changes at any of them."""
    from defensemble_export.editing import changes_between

    changes: dict[str, None] = {}
    for target_edit, baseline in zip(target_edits, baselines, strict=True):
        plan = target_edit.plan
        if not (plan.changes_files or baseline.was_edited_by_hand):
            continue  # equal ensembles, such as weights of 2 and 2 instead of 1 and 1
        texts = changes_between(plan.before if baseline.ensemble is None else baseline.ensemble, plan.after)
        if not texts and plan.converts_two_models:
            old, new = ([model for model, _ in steps if is_averaging(model)] for steps in (plan.steps_before(), plan.steps()))
            texts = [f"replaces the averaging models {', '.join(old)} by one, {', '.join(new)}"]
        elif not texts and plan.averaging:
            texts = [f"generates {model} again, which was changed by hand" for model in plan.new_models]
        if not texts:
            texts = ["applies a hand edit of config.pbtxt; members and weights stay the same"]
        changes |= dict.fromkeys(texts)
    return tuple(changes)


def prepare_journals(
    request: EditRequest, target_edits: Sequence[TargetEdit], baselines: Sequence[Baseline], message: str | None
) -> Edit | None:
    """Create the journal of each target edit; return the edit as the history will record it.

    Args:
        request: The edit.
        target_edits: The plans, by target; receive their journals.
        baselines: The states before the edit, by target.
        message: A message for the history.

    Raises:
        EditRefusedError: The ensemble's configuration has changed since the edit was planned.
    """
    from defensemble_export.editing import Edit, EditJournal, current_user, new_edit_id, utc_now

    edit_id, time, user = new_edit_id(), utc_now(), current_user()
    name = request.name
    group = [str(target_edit.repository.resolve()) for target_edit in target_edits]
    for target_edit, baseline in zip(target_edits, baselines, strict=True):
        path = f"{name}/config.pbtxt"
        if target_edit.plan.disk().digest(path) != target_edit.planned_digest:
            raise refusal(request, [f"{target_edit.repository / path} changed while the edit was checked; repeat the edit"])
        after = None if target_edit.plan.after is None else snapshot_or_none(target_edit.plan.outcome(), name)
        edit = Edit(
            edit_id,
            time,
            user,
            name,
            request.action_in(target_edit.repository),
            message,
            edit_changes([target_edit], [baseline]),
            request.undone_edits,
            baseline.snapshot,
            after,
        )
        target_edit.journal = EditJournal.from_plan(
            target_edit.plan,
            edit,
            group=group,
            urls=[server.url for server in target_edit.servers],
            loads=target_edit.missing_models(),
            released=list(dict.fromkeys(model for models in target_edit.unload_candidates.values() for model in models)),
            served_before=baseline.served_config,
        )
    return next((target_edit.journal.edit for target_edit in target_edits if target_edit.journal is not None), None)
