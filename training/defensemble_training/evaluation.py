"""What a network answers, and how often it is right."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from .data import Images, Labels, Part


def predicted_classes(module: nn.Module, images: Images, batch_size: int = 256) -> Labels:
    """Return the classes (n,) that a module in eval mode gives to images float32 (n, C, H, W) in [0, 1], in float32 arithmetic."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
            parts.append(module(batch).argmax(dim=1).cpu())
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)


def count_right(module: nn.Module, part: Part, *, share: slice = slice(None), batch_size: int = 256) -> int:
    """Return how many images of a part, or of a share of it, a module gets right; it is left in the mode that it was in."""
    training = module.training
    module.eval()
    try:
        answered = ((predicted_classes(module, part.images(rows), batch_size), part.labels[rows]) for rows in _rows(part, share))
        return sum(int((got == expected).sum()) for got, expected in answered)
    finally:
        module.train(training)


def _rows(part: Part, share: slice, at_once: int = 2048) -> Iterator[slice]:
    start, stop, _ = share.indices(len(part))
    for first in range(start, stop, at_once):
        yield slice(first, min(first + at_once, stop))
