"""Checkpoints to ONNX, and to entries of a Triton model repository."""

from . import _telemetry as _telemetry
from ._errors import ConfigError, EngineError, EnsembleError, ExistsError, ExportError, ProfileError, VerificationError
from .averaging import average_onnx, uncertainty_onnx
from .config import config_from_pbtxt, pbtxt_from_config
from .engine import engine_from_onnx
from .engines import BuiltEngine, EngineOptions, PlannedEngine, build_engines, planned_engines
from .ensemble import Ensemble, Vote
from .exporting import export_checkpoints
from .manifest import Manifest
from .member import member_from_onnx, onnx_from_checkpoint, onnx_from_module
from .plan import Member, repository_plan
from .profiles import PROFILES, KeptEngines, ProfileState, profile_states, remove_profile, write_profile
from .reading import ensemble_from_configs, read_config, read_ensemble
from .verify import verify_onnx
from .writing import write_plan

__all__ = [
    "PROFILES",
    "BuiltEngine",
    "ConfigError",
    "EngineError",
    "EngineOptions",
    "Ensemble",
    "EnsembleError",
    "ExistsError",
    "ExportError",
    "KeptEngines",
    "Manifest",
    "Member",
    "PlannedEngine",
    "ProfileError",
    "ProfileState",
    "VerificationError",
    "Vote",
    "average_onnx",
    "build_engines",
    "config_from_pbtxt",
    "engine_from_onnx",
    "ensemble_from_configs",
    "export_checkpoints",
    "member_from_onnx",
    "onnx_from_checkpoint",
    "onnx_from_module",
    "pbtxt_from_config",
    "planned_engines",
    "profile_states",
    "read_config",
    "read_ensemble",
    "remove_profile",
    "repository_plan",
    "uncertainty_onnx",
    "verify_onnx",
    "write_plan",
    "write_profile",
]
