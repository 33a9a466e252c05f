"""Checkpoints to ONNX, and to entries of a Triton model repository. Edits of what is there: `defensemble_export.editing`."""

from __future__ import annotations

from defensemble_repository.errors import EnsembleError
from defensemble_repository.transaction import write_plan

from . import _telemetry as _telemetry
from .checks.ensemble import check_ensemble, check_repository
from .engines.build_all import EngineOptions, build_engines, planned_engines
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
from .fused import fuse_repository, fused_member, fused_plan
from .graphs.averaging import average_onnx
from .graphs.fp16 import fp16_from_onnx
from .graphs.fusion import fused_onnx
from .graphs.int8 import int8_from_onnx
from .labels import labels_from_file
from .members.calibration import calibration_images
from .members.from_checkpoint import member_from_onnx, onnx_from_checkpoint, onnx_from_module
from .members.from_onnx import FromOnnx
from .members.write import Form
from .profiles import KeptEngines, profile_states, remove_profile, write_profile
from .verification.fused import verify_fused
from .verification.images import RANDOM_ALONE
from .verification.network import answers_from_module, verify_onnx

__all__ = [
    "RANDOM_ALONE",
    "DeclarationError",
    "EngineError",
    "EngineOptions",
    "EnsembleError",
    "ExistsError",
    "ExportError",
    "Form",
    "FromCheckpoint",
    "FromOnnx",
    "HistoryError",
    "KeptEngines",
    "Member",
    "OtherImagesWarning",
    "ProfileError",
    "VerificationError",
    "answers_from_module",
    "average_onnx",
    "build_engines",
    "calibration_images",
    "check_ensemble",
    "check_repository",
    "check_target",
    "export_checkpoints",
    "export_networks",
    "find_target",
    "fp16_from_onnx",
    "fuse_repository",
    "fused_member",
    "fused_onnx",
    "fused_plan",
    "int8_from_onnx",
    "labels_from_file",
    "member_from_onnx",
    "onnx_from_checkpoint",
    "onnx_from_module",
    "planned_engines",
    "profile_states",
    "remove_profile",
    "repository_plan",
    "verify_fused",
    "verify_onnx",
    "write_plan",
    "write_profile",
]
