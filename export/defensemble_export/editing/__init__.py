"""Edits of ensembles: requests, the plans of their changes, their history, and the journal of an edit in progress.

The client uses only what this module exports.
"""

from __future__ import annotations

from .changes import changes_between as changes_between
from .declaration import read_declaration as read_declaration, yaml_from_ensemble as yaml_from_ensemble
from .existing import (
    check_ensemble_exists as check_ensemble_exists,
    ensemble_names as ensemble_names,
    existing_ensemble as existing_ensemble,
)
from .history import (
    Edit as Edit,
    Snapshot as Snapshot,
    append_edit as append_edit,
    check_history as check_history,
    current_user as current_user,
    line_from_edit as line_from_edit,
    new_edit_id as new_edit_id,
    read_history as read_history,
    read_snapshot as read_snapshot,
    undoable_edits as undoable_edits,
    utc_now as utc_now,
    withdraw_edit as withdraw_edit,
)
from .journal import EditJournal as EditJournal, read_journal as read_journal, remove_stale_temporaries as remove_stale_temporaries
from .member_info import MemberInfo as MemberInfo, read_member_info as read_member_info
from .plan import EditPlan as EditPlan, plan_ensemble as plan_ensemble, step_models as step_models, used_models as used_models
from .pruning import Prunable as Prunable, find_prunable as find_prunable, prune_files as prune_files
from .refreshing import version_copy as version_copy
from .requests import (
    AddMembers as AddMembers,
    ApplyDeclaration as ApplyDeclaration,
    CreateEnsemble as CreateEnsemble,
    DeleteEnsemble as DeleteEnsemble,
    EditRequest as EditRequest,
    RefreshMembers as RefreshMembers,
    Reload as Reload,
    RemoveMembers as RemoveMembers,
    Restore as Restore,
    SetAverage as SetAverage,
    SetWeights as SetWeights,
)
from .served_config import config_from_server as config_from_server, is_served_as_on_disk as is_served_as_on_disk, is_subset as is_subset
