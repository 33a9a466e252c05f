"""What a network answers, and how often it is right."""

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

_AT_ONCE = 2048  # images that are copied out of their file


def predicted(module: nn.Module, images: Images, batch_size: int = 256) -> Labels:
    """Return the classes int64 (n,) that a module gives to images float32 (n, C, H, W), in eval mode, on the device that it is on.

    Raises:
        SpecError: images or batch_size outside of their range.
    """
    batch_size = checked_integer("batch_size", batch_size, minimum=1)
    check_images(images)
    device = device_of(module)
    with in_eval_mode(module), torch.inference_mode():
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        parts = [module(torch.from_numpy(np.array(batch)).to(device)).argmax(dim=1).cpu() for batch in batches]
    return torch.cat(parts).numpy()


def count_right(module: nn.Module, part: Part, *, share: slice = slice(None)) -> int:
    """Return how many images of a part, or of a share of it, a module gets right, in eval mode and float32 arithmetic."""
    start, stop, _ = share.indices(len(part))
    right = 0
    for first in range(start, stop, _AT_ONCE):
        rows = slice(first, min(first + _AT_ONCE, stop))
        right += int((predicted(module, part.images(rows)) == part.labels[rows]).sum())
    return right


def check_images(images: Images, *, in_range: bool = False) -> None:
    """Raise `SpecError` unless these are images float32 (n, C, H, W), at least one, and with `in_range` in [0, 1]."""
    fault = image_problem(images, in_range=in_range)
    if fault is not None:
        raise SpecError(fault)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters, or else of its buffers."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and afterwards each submodule in the mode that it was in."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
