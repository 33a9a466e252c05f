"""What an edit leaves behind: its changes in words, the entry of the history, and the journal of what is under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .baseline import Baseline, snapshot_or_none
from .checks import refused
from .server_models import is_averaging
from .targets import TargetEdit

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, EditRequest


def edit_changes(target_edits: Sequence[TargetEdit], baselines: Sequence[Baseline]) -> tuple[str, ...]:
    """Describe what changes; with several targets, what changes at any of them."""
    from defensemble_export.editing import changes_between

    found: dict[str, None] = {}
    for target_edit, baseline in zip(target_edits, baselines, strict=True):
        plan = target_edit.plan
        if not (plan.changes_files or baseline.was_edited_by_hand):
            continue  # weights of 2 and 2 are those of 1 and 1
        texts = changes_between(plan.before if baseline.votes is None else baseline.votes, plan.after)
        if not texts and plan.converts_two_models:
            old, new = ([model for model, _ in steps if is_averaging(model)] for steps in (plan.steps_before(), plan.steps()))
            texts = [f"averages by one model, {', '.join(new)}, instead of {', '.join(old)}"]
        elif not texts and plan.averaging:
            texts = [f"generates {model} again, which had been changed by hand" for model in plan.new_models]
        if not texts:
            texts = ["takes up a hand edit of config.pbtxt, which leaves the votes as they are"]
        found |= dict.fromkeys(texts)
    return tuple(found)


def prepare_journals(
    request: EditRequest, target_edits: Sequence[TargetEdit], baselines: Sequence[Baseline], message: str | None
) -> Edit | None:
    """Give each target edit the journal that is written while it is under way; return the edit as the history will hold it.

    Raises:
        EditRefusedError: The ensemble's configuration was changed since the edit was planned.
    """
    from defensemble_export.editing import Edit, EditJournal, new_edit_id, utc_now, current_user

    number, when, who = new_edit_id(), utc_now(), current_user()
    name = request.name
    group = [str(target_edit.repository.resolve()) for target_edit in target_edits]
    for target_edit, baseline in zip(target_edits, baselines, strict=True):
        path = f"{name}/config.pbtxt"
        if target_edit.plan.disk().digest(path) != target_edit.planned_digest:
            raise refused(request, [f"{target_edit.repository / path} was changed while this was checked: make the edit again"])
        after = None if target_edit.plan.after is None else snapshot_or_none(target_edit.plan.outcome(), name)
        edit = Edit(
            number,
            when,
            who,
            name,
            request.action_in(target_edit.repository),
            message,
            edit_changes([target_edit], [baseline]),
            request.undone_edits,
            baseline.snapshot,
            after,
        )
        target_edit.journal = EditJournal.of(
            target_edit.plan,
            edit,
            group=group,
            urls=[served.url for served in target_edit.servers],
            loads=target_edit.lacking_models(),
            released=list(dict.fromkeys(model for models in target_edit.unload_candidates.values() for model in models)),
            served_before=baseline.served,
        )
    return next((target_edit.journal.edit for target_edit in target_edits if target_edit.journal is not None), None)
