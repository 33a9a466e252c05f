"""Checkpoints to ONNX, and to entries of a Triton model repository."""

from __future__ import annotations

from defensemble_repository.checks.finding import Finding
from defensemble_repository.ensemble import Ensemble, Vote
from defensemble_repository.errors import ConfigError, EnsembleError, LockedError, RepositoryError
from defensemble_repository.names import HISTORY_FILE, RESERVED
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.plan_manifest import Manifest
from defensemble_repository.reader import ensemble_from_configs, read_config, read_ensemble
from defensemble_repository.transaction import write_plan

from . import _telemetry as _telemetry
from .checks.ensemble import check_ensemble, check_repository
from .editing.changes import changes_between
from .editing.declaration import ensemble_from_yaml, read_declaration, yaml_from_ensemble
from .editing.history import Edit, Snapshot, append_edit, new_id, now_text, read_history, snapshot_of, this_user, undoable
from .editing.member_info import Standing, member_standing
from .editing.pruning import Prunable, prune_files, prune_plan
from .engines.build_all import BuiltEngine, EngineOptions, PlannedEngine, build_engines, planned_engines
from .engines.builder import engine_from_onnx
from .engines.target import check_target, find_target
from .entries.members import Member, repository_plan
from .errors import (
    DeclarationError,
    EngineError,
    ExistsError,
    ExportError,
    HistoryError,
    OtherImagesWarning,
    ProfileError,
    VerificationError,
)
from .export import FromCheckpoint, export_checkpoints, export_networks
from .foreign.convert import foreign_interface, foreign_reference, onnx_from_foreign
from .fused import check_fuse_request, fuse_planned, fuse_repository, fused_member, fused_plan, outdated_graphs
from .graphs.averaging import average_onnx
from .graphs.fp16 import fp16_from_onnx
from .graphs.fusion import fused_onnx
from .graphs.int8 import int8_from_onnx, masked_region
from .labels import labels_from_file
from .members.calibration import Calibration, calibration_images
from .members.from_checkpoint import member_from_onnx, onnx_from_checkpoint, onnx_from_module
from .members.from_onnx import FromOnnx
from .members.report import Reported, read_reports
from .members.write import Form, report_beside
from .profiles import PROFILES, KeptEngines, ProfileState, profile_states, remove_profile, write_profile
from .verification.fused import verify_fused
from .verification.images import RANDOM_ALONE
from .verification.network import Verification, answers_from_module, verify_onnx
from .verification.tolerances import PRECISIONS, TOLERANCES, Tolerance

__all__ = [
    "HISTORY_FILE",
    "PRECISIONS",
    "PROFILES",
    "RANDOM_ALONE",
    "RESERVED",
    "TOLERANCES",
    "BuiltEngine",
    "Calibration",
    "ConfigError",
    "DeclarationError",
    "Edit",
    "EngineError",
    "EngineOptions",
    "Ensemble",
    "EnsembleError",
    "ExistsError",
    "ExportError",
    "Finding",
    "Form",
    "FromCheckpoint",
    "FromOnnx",
    "HistoryError",
    "KeptEngines",
    "LockedError",
    "Manifest",
    "Member",
    "OtherImagesWarning",
    "PlannedEngine",
    "ProfileError",
    "ProfileState",
    "Prunable",
    "Reported",
    "RepositoryError",
    "Snapshot",
    "Standing",
    "Tolerance",
    "Verification",
    "VerificationError",
    "Vote",
    "answers_from_module",
    "append_edit",
    "average_onnx",
    "build_engines",
    "calibration_images",
    "changes_between",
    "check_ensemble",
    "check_fuse_request",
    "check_repository",
    "check_target",
    "config_from_pbtxt",
    "engine_from_onnx",
    "ensemble_from_configs",
    "ensemble_from_yaml",
    "export_checkpoints",
    "export_networks",
    "find_target",
    "foreign_interface",
    "foreign_reference",
    "fp16_from_onnx",
    "fuse_planned",
    "fuse_repository",
    "fused_member",
    "fused_onnx",
    "fused_plan",
    "int8_from_onnx",
    "labels_from_file",
    "masked_region",
    "member_from_onnx",
    "member_standing",
    "new_id",
    "now_text",
    "onnx_from_checkpoint",
    "onnx_from_foreign",
    "onnx_from_module",
    "outdated_graphs",
    "pbtxt_from_config",
    "planned_engines",
    "profile_states",
    "prune_files",
    "prune_plan",
    "read_config",
    "read_declaration",
    "read_ensemble",
    "read_history",
    "read_reports",
    "remove_profile",
    "report_beside",
    "repository_plan",
    "snapshot_of",
    "this_user",
    "undoable",
    "verify_fused",
    "verify_onnx",
    "write_plan",
    "write_profile",
    "yaml_from_ensemble",
]
