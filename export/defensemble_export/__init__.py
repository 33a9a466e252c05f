"""Checkpoints to ONNX, and to entries of a Triton model repository."""

from . import _telemetry as _telemetry
from ._errors import ConfigError, EnsembleError, ExistsError, ExportError, ProfileError, VerificationError
from .averaging import average_onnx, uncertainty_onnx
from .config import config_from_pbtxt, pbtxt_from_config
from .ensemble import Ensemble, Vote
from .exporting import export_checkpoints
from .member import member_from_onnx, onnx_from_checkpoint, onnx_from_module
from .plan import Member, repository_plan
from .profiles import PROFILES, EngineSettings, ProfileState, profile_states, remove_profile, write_profile
from .reading import ensemble_from_configs, read_config, read_ensemble
from .verify import verify_onnx
from .writing import write_plan

__all__ = [
    "PROFILES",
    "ConfigError",
    "EngineSettings",
    "Ensemble",
    "EnsembleError",
    "ExistsError",
    "ExportError",
    "Member",
    "ProfileError",
    "ProfileState",
    "VerificationError",
    "Vote",
    "average_onnx",
    "config_from_pbtxt",
    "ensemble_from_configs",
    "export_checkpoints",
    "member_from_onnx",
    "onnx_from_checkpoint",
    "onnx_from_module",
    "pbtxt_from_config",
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
