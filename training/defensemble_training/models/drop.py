"""SpatialDropout and DropBlock: random drops of activations in training, the baselines for defective layers.

Unlike masks, drops are redrawn for every batch from torch's global random generator and scale up the kept activations. They do nothing in
eval mode, so exported graphs do not contain them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .defect import Defect
from .masks import BoolArray
from .spec import Drop


class SpatialDropout(nn.Dropout2d):
    """Drop each channel of each image (N, C, H, W) independently, and scale the others by 1 / keep. Source: arXiv 1411.4280."""

    def __init__(self, keep: float) -> None:
        super().__init__(1 - keep)


class DropBlock(nn.Module):
    """Drop random squares in each channel of each image (N, C, H, W). Source: arXiv 1810.12890, algorithm 1.

    Args:
        keep: Expected fraction of kept activations if squares never overlapped.
        block_size: Side of a square; larger squares are cut to the image's size.
    """

    def __init__(self, keep: float, block_size: int) -> None:
        super().__init__()
        self.keep = keep
        self.block_size = block_size

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Drop squares in training mode; return the input unchanged in eval mode."""
        if not self.training:
            return activations
        batch, channels, height, width = activations.shape
        size = min(self.block_size, height, width)
        valid = (height - size + 1, width - size + 1)
        rate = (1 - self.keep) * height * width / (size**2 * valid[0] * valid[1])
        seeds = torch.rand(batch, channels, *valid, device=activations.device) < rate
        return drop_squares(activations, seeds, size)

    def extra_repr(self) -> str:
        """Return keep and block size."""
        return f"keep={self.keep}, block_size={self.block_size}"


class DefectThenDrop(Defect):
    """A mask followed by a drop. A single module, so that the mask's name is the same with and without a drop."""

    def __init__(self, mask: BoolArray, drop: nn.Module) -> None:
        super().__init__(mask)
        self.drop = drop

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply the mask, then the drop."""
        return self.drop(super().forward(activations))  # type: ignore[no-any-return]


def drop_squares(activations: torch.Tensor, seeds: torch.Tensor, size: int) -> torch.Tensor:
    """Zero a square of (N, C, H, W) for each seed, and divide the kept activations by the fraction of kept positions.

    Args:
        activations: (N, C, H, W).
        seeds: Bool (N, C, H - size + 1, W - size + 1). Position (i, j) is the square of rows i to i + size - 1 and columns j to
            j + size - 1, which is always inside the image.
        size: Side of a square.
    """
    margin = size - 1
    padded = functional.pad(seeds.to(activations.dtype), (margin, margin, margin, margin))
    kept = functional.max_pool2d(padded, size, stride=1) == 0
    fraction = kept.float().mean().clamp(min=1 / kept.numel())  # avoid a division by 0 if nothing is kept
    return torch.where(kept, activations / fraction.to(activations.dtype), 0.0)


def make_drop(drop: Drop) -> nn.Module:
    """Return a drop's module."""
    return SpatialDropout(drop.keep) if drop.kind == "spatial_dropout" else DropBlock(drop.keep, drop.block_size)
