"""ResNet-50: stages of three, four, six and three bottlenecks. Masks: on the stem and the 3x3 convolution of each bottleneck."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import ConvUnit, Shape, conv1x1, conv3x3, mask_layer_at, strided
from .residual import ResidualNetwork, Unit
from .spec import ModelSpec

EXPANSION = 4


class Bottleneck(Unit):
    """A 1x1, a 3x3 (with the stride) and a widening 1x1 convolution, parallel to a shortcut. Only the 3x3 convolution has a mask."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape_in: Shape, channels: int, stride: int) -> None:
        super().__init__()
        self.shape = strided(shape_in, EXPANSION * channels, stride)
        self.conv1 = conv1x1(shape_in[0], channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.defect2 = mask_layer_at(spec, block, f"{path}.defect2", strided(shape_in, channels, stride))
        self.conv3 = conv1x1(channels, self.shape[0])
        self.bn3 = nn.BatchNorm2d(self.shape[0])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or shape_in[0] != self.shape[0]:
            self.shortcut = ConvUnit(conv1x1(shape_in[0], self.shape[0], stride), nn.Identity())

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, *shape)."""
        branch = functional.relu(self.bn1(self.conv1(activations)))
        branch = functional.relu(self.defect2(self.bn2(self.conv2(branch))))
        return functional.relu(self.bn3(self.conv3(branch)) + self.shortcut(activations))


class ResNet50(ResidualNetwork):
    """ResNet-50: 23.52 million parameters at width 64 with 3 channels and 10 classes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, Bottleneck, (3, 4, 6, 3), stem_channels=spec.width)
