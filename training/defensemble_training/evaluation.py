"""Predict classes with a network, and count correct predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from defensemble_images import image_problem

from .data.dataset import Images, Labels, Part
from .errors import SpecError
from .validation import checked_integer

_CHUNK_IMAGES = 2048  # images that are read from their file at a time


def predict_classes(module: nn.Module, images: Images, batch_size: int = 256) -> Labels:
    """Predict the classes int64 (n,) of images, in eval mode, on the module's device.

    Args:
        module: Maps images float32 (N, C, H, W) to logits (N, K).
        images: float32 (n, C, H, W) in [0, 1].
        batch_size: Images per forward pass, at least 1.

    Raises:
        SpecError: The images or the batch size are invalid.
    """
    batch_size = checked_integer("batch_size", batch_size, minimum=1)
    check_images(images)
    device = device_of(module)
    with in_eval_mode(module), torch.inference_mode():
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        parts = [module(torch.from_numpy(np.array(batch)).to(device)).argmax(dim=1).cpu() for batch in batches]
    return torch.cat(parts).numpy()


def count_correct(module: nn.Module, part: Part, *, rows: slice = slice(None)) -> int:
    """Count the images of a part, or of some of its rows, that a module classifies correctly, in eval mode and float32."""
    start, stop, _ = rows.indices(len(part))
    correct = 0
    for first in range(start, stop, _CHUNK_IMAGES):
        chunk = slice(first, min(first + _CHUNK_IMAGES, stop))
        correct += int((predict_classes(module, part.images(chunk)) == part.labels[chunk]).sum())
    return correct


def check_images(images: Images, *, in_range: bool = False) -> None:
    """Raise a `SpecError` unless images are float32 (n, C, H, W) with n >= 1 and, if `in_range`, in [0, 1]."""
    problem = image_problem(images, in_range=in_range)
    if problem is not None:
        raise SpecError(problem)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters or, if it has none, of its buffers; the CPU if it has neither."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and restore the mode of every submodule on exit."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
