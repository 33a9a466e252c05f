"""SENet-18: pre-activation residual units with squeeze-and-excitation.

Masks: between BatchNorm and ReLU before each 3x3 convolution of a block. The stem and the shortcuts have no mask of their own; a projection
has the same masked input as the unit's first convolution.
Sources: arXiv 1603.05027 for the units, arXiv 1709.01507 for squeeze-and-excitation, arXiv 1911.08432 for the masks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import Shape, constant_network_error, conv1x1, conv3x3, drops_everything, mask_layer_at, strided
from .residual import ResidualNetwork, Unit
from .spec import ModelSpec

REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor in (0, 1), computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.excite = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Scale the channels of (N, C, H, W)."""
        means = activations.mean(dim=(2, 3), keepdim=True)
        return activations * torch.sigmoid(self.excite(functional.relu(self.squeeze(means))))


class PreActivationUnit(Unit):
    """Twice BatchNorm, mask, ReLU, 3x3 convolution, then squeeze-and-excitation, parallel to a shortcut."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape_in: Shape, channels: int, stride: int) -> None:
        super().__init__()
        self.shape = strided(shape_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(shape_in[0])
        self.defect1 = mask_layer_at(spec, block, f"{path}.defect1", shape_in)
        self.conv1 = conv3x3(shape_in[0], channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.defect2 = mask_layer_at(spec, block, f"{path}.defect2", self.shape)
        self.conv2 = conv3x3(channels, channels)
        self.scale = SqueezeExcitation(channels)
        self.projection: nn.Module | None = None
        if stride != 1 or shape_in[0] != channels:
            self.projection = conv1x1(shape_in[0], channels, stride)
            if drops_everything(self.defect1):
                raise constant_network_error(spec, path, shape_in)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, *shape)."""
        active = functional.relu(self.defect1(self.bn1(activations)))
        shortcut = activations if self.projection is None else self.projection(active)
        branch = functional.relu(self.defect2(self.bn2(self.conv1(active))))
        return self.scale(self.conv2(branch)) + shortcut  # type: ignore[no-any-return]


class SENet18(ResidualNetwork):
    """SENet-18: 11.26 million parameters at width 64 with 3 channels and 10 classes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, PreActivationUnit, (2, 2, 2, 2), stem_channels=spec.width, mask_on_stem=False)
