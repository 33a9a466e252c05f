"""Untrained networks to serve, and their logits by torch for the callers' images."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.command_line import OnProgress, silent
from defensemble_export import ExportedMember, ExportOptions, member_from_onnx, onnx_from_checkpoint, reference_from_module, verify_onnx
from defensemble_training import ModelSpec, TrainingRecord, build, save_checkpoint

COUNT = 5
SHAPE = (3, 32, 32)
WIDTH = 16
_SPEC: dict[str, Any] = {"arch": "resnet18", "keep": 0.3, "blocks": (0, 1, 2)}
_CLASSES = tuple(str(digit) for digit in range(10))
_CELL = 8  # pixels; to a convolutional network, images of independent pixels all look the same


@dataclass(frozen=True)
class Networks:
    """Exported members, and their `logits` (M, N, 10) by torch."""

    members: list[ExportedMember]
    logits: NDArray[np.float32]


def random_images(count: int, seed: int) -> NDArray[np.float32]:
    """Return images (count, 3, 32, 32) of random squares, float32 in [0, 1)."""
    cells = np.random.default_rng(seed).random((count, SHAPE[0], SHAPE[1] // _CELL, SHAPE[2] // _CELL), np.float32)
    return cells.repeat(_CELL, axis=2).repeat(_CELL, axis=3)


def spec_values(width: Any = WIDTH) -> dict[str, Any]:
    """Describe the networks for a result."""
    return {**_SPEC, "blocks": list(_SPEC["blocks"]), "width": width, "trained": False}


def untrained_networks(
    images: NDArray[np.float32], seed: int, *, count: int = COUNT, width: int = WIDTH, on_progress: OnProgress = silent
) -> Networks:
    """Export defective ResNet-18s with random weights, and compute their logits for `images` (N, C, H, W).

    The speed of a network does not depend on training. BatchNorm sees `images` once: without statistics, all images get the same outputs to
    three digits, and comparing outputs would show nothing. Each export is compared with torch.

    Args:
        images: The images.
        seed: Seed of weights and masks.
        count: Number of networks.
        width: Width of the networks.
        on_progress: Called with the current step.

    Raises:
        VerificationError: The outputs of an export differ from torch's.
    """
    on_progress(f"creating and exporting {count} networks of width {width}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's thread pool must not compete with what is timed
    try:
        with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
            built = [_network(Path(folder), f"member{index}", images, seed + index, width) for index in range(count)]
    finally:
        torch.set_num_threads(threads)
    return Networks([member for member, _ in built], np.stack([logits for _, logits in built]))


def _network(folder: Path, name: str, images: NDArray[np.float32], seed: int, width: int) -> tuple[ExportedMember, NDArray[np.float32]]:
    torch.manual_seed(seed)
    spec = ModelSpec(**_SPEC, width=width, mask_seed=seed)
    module = build(spec)
    batch = torch.from_numpy(images)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the mean over all batches, which is this one
        module.train()(batch)
        logits: NDArray[np.float32] = module.eval()(batch).numpy()
    checkpoint = folder / f"{name}.safetensors"
    save_checkpoint(checkpoint, module, spec, TrainingRecord.untrained(_CLASSES, seed=seed))
    # Plain graphs, so that every runtime that is compared computes the same. Verification would need a training dataset.
    path = onnx_from_checkpoint(checkpoint, folder / f"{name}.onnx", verify=False, options=ExportOptions(mask_aware="off"))
    verify_onnx(path, reference_from_module(module), images, max_batch_size=16)
    return member_from_onnx(path, name), logits
