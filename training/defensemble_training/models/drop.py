"""Activations dropped at random in training: SpatialDropout and DropBlock, the baselines of defective layers.

Unlike a mask they are drawn anew for every batch, from torch's global random generator, what is kept is scaled up, and in eval mode, hence
in exported graphs, they do nothing.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .defect import Defect
from .masks import BoolArray
from .spec import Drop


class SpatialDropout(nn.Dropout2d):
    """Drops whole channels of (N, C, H, W), each of each image on its own; kept ones are scaled by 1 / keep. Source: arXiv 1411.4280."""

    def __init__(self, keep: float) -> None:
        super().__init__(1 - keep)


class DropBlock(nn.Module):
    """Drops squares of (N, C, H, W), other ones in each channel of each image. Source: arXiv 1810.12890, algorithm 1.

    `keep` is the expected fraction of activations that is kept, were squares never to overlap; `block_size` is the side of a square, at
    most that of the image.
    """

    def __init__(self, keep: float, block_size: int) -> None:
        super().__init__()
        self.keep = keep
        self.block_size = block_size

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Drop in training, else return what came."""
        if not self.training:
            return activations
        batch, channels, height, width = activations.shape
        size = min(self.block_size, height, width)
        valid = (height - size + 1, width - size + 1)
        rate = (1 - self.keep) * height * width / (size**2 * valid[0] * valid[1])
        seeds = torch.rand(batch, channels, *valid, device=activations.device) < rate
        return drop_squares(activations, seeds, size)

    def extra_repr(self) -> str:
        """Return both numbers."""
        return f"keep={self.keep}, block_size={self.block_size}"


class DefectThenDrop(Defect):
    """A mask, then a drop: one module, so that the mask's name is the same with a drop and without."""

    def __init__(self, mask: BoolArray, drop: nn.Module) -> None:
        super().__init__(mask)
        self.drop = drop

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.drop(super().forward(activations))  # type: ignore[no-any-return]


def drop_squares(activations: torch.Tensor, seeds: torch.Tensor, size: int) -> torch.Tensor:
    """Zero one square of side `size` in (N, C, H, W) for each seed, and scale what is kept by the share of positions that is.

    Of `seeds`, bool (N, C, H - size + 1, W - size + 1), position (i, j) stands for the square of rows i to i + size - 1 and columns j to j
    + size - 1, which is inside of the image.
    """
    margin = size - 1
    padded = functional.pad(seeds.to(activations.dtype), (margin, margin, margin, margin))
    kept = functional.max_pool2d(padded, size, stride=1) == 0
    share = kept.float().mean().clamp(min=1 / kept.numel())  # nothing is kept: then nothing is scaled
    return torch.where(kept, activations / share.to(activations.dtype), 0.0)


def make_drop(drop: Drop) -> nn.Module:
    """Return the module of a drop."""
    return SpatialDropout(drop.keep) if drop.kind == "spatial_dropout" else DropBlock(drop.keep, drop.block_size)
