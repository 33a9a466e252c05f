"""Checkpoints to ONNX, and to entries of a Triton model repository."""

from . import _telemetry as _telemetry
from ._errors import ConfigError, EngineError, EnsembleError, ExistsError, ExportError, VerificationError
from .averaging import average_onnx, uncertainty_onnx
from .config import config_from_pbtxt, pbtxt_from_config
from .engine import engine_from_onnx
from .engines import BuiltEngine, EngineOptions, PlannedEngine, build_engines, planned_engines
from .ensemble import Ensemble, Vote
from .exporting import export_checkpoints
from .fused_plan import check_fuse_request, fuse_planned, fuse_repository, fused_member, fused_plan
from .fused_verify import verify_fused
from .fusing import fused_onnx
from .manifest import Manifest
from .member import member_from_onnx, onnx_from_checkpoint, onnx_from_module
from .plan import Member, repository_plan
from .reading import ensemble_from_configs, read_config, read_ensemble
from .verify import verify_onnx
from .writing import write_plan

__all__ = [
    "BuiltEngine",
    "ConfigError",
    "EngineError",
    "EngineOptions",
    "Ensemble",
    "EnsembleError",
    "ExistsError",
    "ExportError",
    "Manifest",
    "Member",
    "PlannedEngine",
    "VerificationError",
    "Vote",
    "average_onnx",
    "build_engines",
    "check_fuse_request",
    "config_from_pbtxt",
    "engine_from_onnx",
    "ensemble_from_configs",
    "export_checkpoints",
    "fuse_planned",
    "fuse_repository",
    "fused_member",
    "fused_onnx",
    "fused_plan",
    "member_from_onnx",
    "onnx_from_checkpoint",
    "onnx_from_module",
    "pbtxt_from_config",
    "planned_engines",
    "read_config",
    "read_ensemble",
    "repository_plan",
    "uncertainty_onnx",
    "verify_fused",
    "verify_onnx",
    "write_plan",
]
