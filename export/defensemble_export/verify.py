"""Does an exported graph compute what the module does?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from ._errors import VerificationError

if TYPE_CHECKING:
    import torch

# Largest difference of a logit, in units of max(1, largest |logit|); float32 everywhere.
TOLERANCE = 1e-5


def verify_onnx(
    path: str | os.PathLike[str], module: torch.nn.Module, images: np.ndarray[Any, Any], *, max_batch_size: int, seed: int = 0
) -> float:
    """Compare ONNX Runtime with torch on ``images`` (N,C,H,W) and on random ones, at batch 1, 2 and ``max_batch_size``.

    Returns the largest difference of a logit in units of max(1, largest |logit|), at most 1e-5. The classes must agree wherever torch's two
    best logits are further apart than the tolerance.

    Raises:
        VerificationError: names, types, shapes or values differ; says where and by how much.
    """
    import torch

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        num_classes = module(torch.from_numpy(np.ascontiguousarray(images[:1]))).shape[1]
    _check_interface(session, images.shape[1:], num_classes)
    generator = np.random.default_rng(seed)
    worst = 0.0
    for batch in sorted({1, 2, max_batch_size}):
        real = images[generator.integers(len(images), size=batch)]
        for kind, sample in (("real", real), ("random", generator.random(real.shape, np.float32))):
            with torch.inference_mode():
                expected = module(torch.from_numpy(sample)).numpy()
            (got,) = session.run(["logits"], {"images": sample})
            worst = max(worst, _compare(got, expected, f"{batch} {kind} image{'s' if batch > 1 else ''}"))
    return worst


def _check_interface(session: onnxruntime.InferenceSession, shape: tuple[int, ...], num_classes: int) -> None:
    for what, tensors, name, dims in (
        ("input", session.get_inputs(), "images", list(shape)),
        ("output", session.get_outputs(), "logits", [num_classes]),
    ):
        got = [(tensor.name, tensor.type, tensor.shape[1:], isinstance(tensor.shape[0], str)) for tensor in tensors]
        expected = [(name, "tensor(float)", dims, True)]
        if got != expected:
            raise VerificationError(f"the graph's {what}s (name, type, shape, free batch) are {got}, expected {expected}")


def _compare(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], where: str) -> float:
    if got.shape != expected.shape:
        raise VerificationError(f"{where}: the graph answers shape {got.shape}, torch {expected.shape}")
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(got - expected).max()) / scale
    if not difference <= TOLERANCE:  # also where it is NaN
        raise VerificationError(
            f"{where}: logits differ by {difference * scale:.3g}, allowed is {TOLERANCE * scale:.3g}; the export is not used"
        )
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > TOLERANCE * scale
    if not np.array_equal(got.argmax(1)[clear], expected.argmax(1)[clear]):
        raise VerificationError(f"{where}: the graph and torch choose different classes; the export is not used")
    return difference
