"""Export checkpoints and ONNX files into a Triton model repository. To edit a repository, see `defensemble_export.editing`."""

from __future__ import annotations

from defensemble_repository.errors import EnsembleError as EnsembleError
from defensemble_repository.transaction import write_files as write_files

from . import _telemetry as _telemetry
from .checks.ensemble import check_ensemble as check_ensemble, check_repository as check_repository
from .engines.build_all import build_engines as build_engines, planned_engines as planned_engines
from .engines.build_steps import EngineOptions as EngineOptions
from .engines.target import check_target as check_target, find_target as find_target
from .entries.members import ExportedMember as ExportedMember, planned_files as planned_files
from .errors import (
    DatasetMismatchWarning as DatasetMismatchWarning,
    DeclarationError as DeclarationError,
    EngineError as EngineError,
    ExistsError as ExistsError,
    ExportError as ExportError,
    HistoryError as HistoryError,
    ProfileError as ProfileError,
    VerificationError as VerificationError,
)
from .export import CheckpointSource as CheckpointSource, export_checkpoints as export_checkpoints, export_networks as export_networks
from .fused import fuse_repository as fuse_repository, fused_member as fused_member, planned_fused_files as planned_fused_files
from .graphs.averaging import average_onnx as average_onnx
from .graphs.fp16 import fp16_from_onnx as fp16_from_onnx
from .graphs.fusion import fused_onnx as fused_onnx
from .graphs.int8 import int8_from_onnx as int8_from_onnx
from .graphs.mask_aware import mask_aware_from_onnx as mask_aware_from_onnx
from .labels import labels_from_file as labels_from_file
from .members.calibration import calibration_images as calibration_images
from .members.from_checkpoint import (
    member_from_onnx as member_from_onnx,
    onnx_from_checkpoint as onnx_from_checkpoint,
    onnx_from_module as onnx_from_module,
)
from .members.from_onnx import OnnxSource as OnnxSource
from .members.write import ExportOptions as ExportOptions
from .profiles import (
    EngineCacheOptions as EngineCacheOptions,
    profile_states as profile_states,
    remove_profile as remove_profile,
    write_profile as write_profile,
)
from .verification.fused import verify_fused as verify_fused
from .verification.images import RANDOM_ONLY as RANDOM_ONLY
from .verification.network import reference_from_module as reference_from_module, verify_onnx as verify_onnx
