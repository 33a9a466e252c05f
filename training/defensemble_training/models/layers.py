"""Layers that the architectures share: normalisation, convolutions, and masks."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import SpecError
from .defect import Defect
from .drop import DefectThenDrop, make_drop
from .masks import defect_mask, mask_shape
from .spec import ModelSpec

Shape = tuple[int, int, int]


class Normalize(nn.Module):
    """Normalise images float32 (N, C, H, W) in [0, 1] to (image - mean) / std. The first layer of every network.

    The buffers `mean` and `std` are not saved with the weights, because the spec contains them.
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
        """Return mean and standard deviation."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, then the result of `mask_layer_at`, without an activation function."""

    def __init__(self, conv: nn.Conv2d, defect: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.defect = defect

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply the three layers."""
        return self.defect(self.bn(self.conv(activations)))  # type: ignore[no-any-return]


def mask_layer_at(spec: ModelSpec, block: int, path: str, shape: Shape) -> nn.Module:
    """Return the mask layer for a tensor (C, H, W) of a block: a `Defect`, the spec's drop, both in one module, or an identity.

    Args:
        spec: The network's spec.
        block: Number of the block.
        path: Path of the layer in the network, which seeds the mask.
        shape: (C, H, W) of the tensor.
    """
    drop = make_drop(spec.drop) if spec.drop is not None and spec.drop.keep < 1 and block in spec.drop.blocks else None
    if spec.keep == 1.0 or block not in spec.blocks:
        return nn.Identity() if drop is None else drop
    is_meta = torch.get_default_device().type == "meta"  # masks then have a shape but no values, like all tensors
    drawn_shape = (1, 1, 1) if is_meta else shape
    mask = defect_mask(drawn_shape, spec.keep, spec.pattern, spec.sampling, seed=spec.mask_seed, name=path)
    defect = Defect(mask) if drop is None else DefectThenDrop(mask, drop)
    if is_meta:
        defect.mask = torch.empty(mask_shape(shape, spec.pattern), dtype=torch.bool)
    return defect


def drops_everything(layer: nn.Module) -> bool:
    """Return whether a mask zeroes its whole tensor; False on the device `meta`, where masks have no values."""
    return isinstance(layer, Defect) and not layer.mask.is_meta and not bool(layer.mask.any())


def constant_network_error(spec: ModelSpec, path: str, shape: Shape) -> SpecError:
    """Return the error for masks at a module path, on tensors (C, H, W), that block the whole image."""
    return SpecError(
        f"with keep={spec.keep}, pattern={spec.pattern!r}, sampling={spec.sampling!r} and mask_seed={spec.mask_seed} the masks at {path} "
        f"({'x'.join(str(extent) for extent in shape)}) keep nothing, so the network would be constant. "
        "Use a larger keep, another mask_seed, or sampling='exact', which keeps at least one position per mask."
    )


def channels_in_block(spec: ModelSpec, block: int, channels: int) -> int:
    """Return the number of channels of a layer in a block: `channels`, times `channel_multiplier` if the block is defective."""
    return channels * spec.channel_multiplier if block in spec.blocks else channels


def strided(shape: Shape, channels: int, stride: int) -> Shape:
    """Return the output shape of a convolution or pooling with an odd kernel, padded by half of it."""
    return channels, (shape[1] - 1) // stride + 1, (shape[2] - 1) // stride + 1


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
