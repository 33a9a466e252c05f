"""Edits of ensembles: requests, what they change in a repository, its history, and the journal of an edit that is under way.

This is all of editing that the client uses.
"""

from __future__ import annotations

from .changes import changes_between as changes_between
from .declaration import read_declaration as read_declaration
from .declaration import yaml_from_ensemble as yaml_from_ensemble
from .existing import check_ensemble_exists as check_ensemble_exists
from .existing import ensemble_names as ensemble_names
from .existing import existing_ensemble as existing_ensemble
from .history import Edit as Edit
from .history import Snapshot as Snapshot
from .history import append_edit as append_edit
from .history import check_history as check_history
from .history import line_from_edit as line_from_edit
from .history import new_id as new_id
from .history import now_text as now_text
from .history import read_history as read_history
from .history import snapshot_of as snapshot_of
from .history import this_user as this_user
from .history import undoable as undoable
from .history import withdraw_edit as withdraw_edit
from .journal import EditJournal as EditJournal
from .journal import read_journal as read_journal
from .journal import remove_stale_temporaries as remove_stale_temporaries
from .member_info import MemberInfo as MemberInfo
from .member_info import read_member_info as read_member_info
from .plan import EditPlan as EditPlan
from .plan import plan_ensemble as plan_ensemble
from .plan import steps_of as steps_of
from .plan import used_models as used_models
from .pruning import Prunable as Prunable
from .pruning import prune_files as prune_files
from .pruning import prune_plan as prune_plan
from .requests import AddMembers as AddMembers
from .requests import ApplyDeclaration as ApplyDeclaration
from .requests import CreateEnsemble as CreateEnsemble
from .requests import DeleteEnsemble as DeleteEnsemble
from .requests import EditRequest as EditRequest
from .requests import Reload as Reload
from .requests import RemoveMembers as RemoveMembers
from .requests import Restore as Restore
from .requests import SetAverage as SetAverage
from .requests import SetWeights as SetWeights
from .served_config import config_from_server as config_from_server
from .served_config import is_served_as_on_disk as is_served_as_on_disk
from .served_config import is_subset as is_subset
