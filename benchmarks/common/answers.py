"""Expected outputs, computed by numpy in float64 from the logits of each network, without the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from defensemble_export import ExportedMember
from defensemble_repository.averaging import reference_outputs

Array = NDArray[np.float64]


def expected_outputs(logits: NDArray[np.floating[Any]]) -> dict[str, Array]:
    """Return all outputs of an ensemble that averages probabilities with equal weights, from the logits (M, N, K) of its members."""
    return reference_outputs([*logits], "probabilities", [1.0] * len(logits))


def session_from_onnx(
    content: bytes, threads: int = 1, *, spins: bool = False, optimised: bool = True, operators: Path | None = None
) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session of a graph, in this process.

    Args:
        content: The ONNX file.
        threads: Number of threads.
        spins: Whether waiting threads spin.
        optimised: Whether graph optimisations are on. Outputs of int8 are compared without: some processors saturate in the optimised ones.
        operators: The operator library, for mask-aware graphs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def member_logits(members: Sequence[ExportedMember], images: NDArray[np.float32]) -> Array:
    """Return the logits (M, N, K) of each member for images (N, C, H, W), computed by ONNX Runtime in this process."""
    return np.stack([session_from_onnx(member.onnx).run(["logits"], {"images": images})[0].astype(np.float64) for member in members])
