"""The right answers, by numpy in float64 from the logits of each network: no code that is being measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from defensemble_export import ExportedMember
from defensemble_repository.averaging import reference_outputs

Array = NDArray[np.float64]


def right_answers(logits: NDArray[np.floating[Any]]) -> dict[str, Array]:
    """All outputs of an ensemble with equal weights that averages probabilities, from the logits (M, N, K) of its members."""
    return reference_outputs([*logits], "probabilities", [1.0] * len(logits))


def session_of(content: bytes, threads: int = 1, *, spins: bool = False, optimised: bool = True) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a graph, in this process.

    Answers of int8 are compared without optimisations, since those for int8 saturate on some processors.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def logits_of_members(members: Sequence[ExportedMember], images: NDArray[np.float32]) -> Array:
    """The logits (M, N, K) of each member for images (N, C, H, W), by ONNX Runtime in this process."""
    return np.stack([session_of(member.onnx).run(["logits"], {"images": images})[0].astype(np.float64) for member in members])
