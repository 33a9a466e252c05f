"""The pieces that architectures share: normalisation, convolution with BatchNorm and mask, and where a mask goes."""

import numpy as np
import torch
from torch import nn

from .defect import Defect
from .masks import defect_mask, mask_shape
from .spec import ModelSpec


class Normalize(nn.Module):
    """Takes images float32 (N, C, H, W) in [0, 1] to (image - mean) / std; the first layer of every network.

    `mean` and `std` are buffers that follow from the spec alone, hence they are not saved with the weights.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return both statistics."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, mask (where the block is defective); no activation."""

    def __init__(self, conv: nn.Conv2d, defect: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.defect = defect

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply all three."""
        return self.defect(self.bn(self.conv(activations)))  # type: ignore[no-any-return]


def defect_at(spec: ModelSpec, block: int, path: str, shape: tuple[int, int, int]) -> nn.Module:
    """Return the `Defect` of the tensor (C, H, W) at a module path, or an identity where its block is not defective."""
    if spec.keep == 1.0 or block not in spec.blocks:
        return nn.Identity()
    if torch.get_default_device().type == "meta":
        return _undrawn(mask_shape(shape, spec.pattern))
    return Defect(defect_mask(shape, spec.keep, spec.pattern, spec.sampling, seed=spec.mask_seed, name=path))


def keeps_nothing(defect: nn.Module) -> bool:
    """Tell whether a mask zeroes its whole tensor; one without values, on the device `meta`, is not known to."""
    return isinstance(defect, Defect) and not defect.mask.is_meta and not bool(defect.mask.any())


def _undrawn(shape: tuple[int, int, int]) -> Defect:
    """Return a defect whose mask has a shape and, as everything on the device `meta`, no values."""
    defect = Defect(np.ones((1, 1, 1), dtype=np.bool_))
    defect.mask = torch.empty(shape, dtype=torch.bool)
    return defect
