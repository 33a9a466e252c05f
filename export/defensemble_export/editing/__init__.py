"""Edits of ensembles: requests, what they change in a repository, its history, and the journal of an edit that is under way.

This is all of editing that the client uses.
"""

from __future__ import annotations

from .changes import changes_between
from .declaration import read_declaration, yaml_from_ensemble
from .existing import check_ensemble_exists, ensemble_names, existing_ensemble
from .history import (
    Edit,
    Snapshot,
    append_edit,
    check_history,
    line_from_edit,
    new_id,
    now_text,
    read_history,
    snapshot_of,
    this_user,
    undoable,
    withdraw_edit,
)
from .journal import EditJournal, read_journal, remove_stale_temporaries
from .member_info import MemberInfo, read_member_info
from .plan import EditPlan, plan_ensemble, steps_of, used_models
from .pruning import Prunable, prune_files, prune_plan
from .requests import (
    AddMembers,
    ApplyDeclaration,
    CreateEnsemble,
    DeleteEnsemble,
    EditRequest,
    Reload,
    RemoveMembers,
    Restore,
    SetAverage,
    SetWeights,
)
from .served_config import config_from_server, is_served_as_on_disk, is_subset

__all__ = [
    "AddMembers",
    "ApplyDeclaration",
    "CreateEnsemble",
    "DeleteEnsemble",
    "Edit",
    "EditJournal",
    "EditPlan",
    "EditRequest",
    "MemberInfo",
    "Prunable",
    "Reload",
    "RemoveMembers",
    "Restore",
    "SetAverage",
    "SetWeights",
    "Snapshot",
    "append_edit",
    "changes_between",
    "check_ensemble_exists",
    "check_history",
    "config_from_server",
    "ensemble_names",
    "existing_ensemble",
    "is_served_as_on_disk",
    "is_subset",
    "line_from_edit",
    "new_id",
    "now_text",
    "plan_ensemble",
    "prune_files",
    "prune_plan",
    "read_declaration",
    "read_history",
    "read_journal",
    "read_member_info",
    "remove_stale_temporaries",
    "snapshot_of",
    "steps_of",
    "this_user",
    "undoable",
    "used_models",
    "withdraw_edit",
    "yaml_from_ensemble",
]
