"""Base of the residual networks: a stem, stages of residual units, global average pooling, a linear classifier.

Source: arXiv 1512.03385 for the networks, arXiv 1911.08432 for the masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .layers import (
    ConvUnit,
    Normalize,
    Shape,
    channels_in_block,
    constant_network_error,
    conv1x1,
    conv3x3,
    drops_everything,
    mask_layer_at,
    strided,
)
from .spec import ModelSpec


class Unit(nn.Module):
    """A residual unit."""

    shape: Shape  # (C, H, W) of the output


# (spec, block, path, input shape, channels of the stage, stride)
MakeUnit = Callable[[ModelSpec, int, str, Shape, int, int], Unit]


class BasicUnit(Unit):
    """Two 3x3 convolutions parallel to a shortcut: an identity if the shape does not change, else a 1x1 projection.

    Masks come after BatchNorm and before the sum and the ReLU. The sum and identity shortcuts are never masked.
    """

    mask_on_projection = True  # whether projections are masked

    def __init__(self, spec: ModelSpec, block: int, path: str, shape_in: Shape, channels: int, stride: int) -> None:
        super().__init__()
        self.shape = strided(shape_in, channels, stride)
        self.conv1 = conv3x3(shape_in[0], channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.defect1 = mask_layer_at(spec, block, f"{path}.defect1", self.shape)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.defect2 = mask_layer_at(spec, block, f"{path}.defect2", self.shape)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or shape_in[0] != channels:
            defect = mask_layer_at(spec, block, f"{path}.shortcut.defect", self.shape) if self.mask_on_projection else nn.Identity()
            self.shortcut = ConvUnit(conv1x1(shape_in[0], channels, stride), defect)
            if drops_everything(defect) and (drops_everything(self.defect1) or drops_everything(self.defect2)):
                raise constant_network_error(spec, path, self.shape)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, *shape)."""
        branch = functional.relu(self.defect1(self.bn1(self.conv1(activations))))
        branch = self.defect2(self.bn2(self.conv2(branch)))
        return functional.relu(branch + self.shortcut(activations))


class ResidualNetwork(nn.Module):
    """A residual network. Maps images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Block 0 is the stem; each other block is a stage. The first stage has `spec.width` channels, and each further stage has twice as many at
    half the size. The stem's mask comes after BatchNorm; for ImageNet, before the pooling.

    Args:
        spec: The network's spec.
        unit: Class of the residual units.
        depths: Number of units per stage.
        stem_channels: Channels of the stem.
        mask_on_stem: Whether the stem has a mask if block 0 is defective.
    """

    def __init__(self, spec: ModelSpec, unit: MakeUnit, depths: tuple[int, ...], *, stem_channels: int, mask_on_stem: bool = True) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        channels = channels_in_block(spec, 0, stem_channels)
        size, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
        shape = strided(spec.input_shape, channels, stride)
        conv = nn.Conv2d(spec.input_shape[0], channels, size, stride, padding=size // 2, bias=False)
        self.stem = ConvUnit(conv, mask_layer_at(spec, 0, "stem.defect", shape) if mask_on_stem else nn.Identity())
        if drops_everything(self.stem.defect):
            raise constant_network_error(spec, "stem", shape)
        self.pool: nn.Module = nn.Identity()
        if spec.stem == "imagenet":
            self.pool = nn.MaxPool2d(3, 2, padding=1)
            shape = strided(shape, channels, 2)
        self._stages = tuple(f"block{block}" for block in range(1, len(depths) + 1))
        for block, (name, depth) in enumerate(zip(self._stages, depths, strict=True), start=1):
            channels = channels_in_block(spec, block, spec.width * 2 ** (block - 1))
            units = []
            for index in range(depth):
                units.append(unit(spec, block, f"{name}.{index}", shape, channels, 2 if block > 1 and index == 0 else 1))
                shape = units[-1].shape
            self.add_module(name, nn.Sequential(*units))
        self.classifier = nn.Linear(shape[0], spec.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = self.pool(functional.relu(self.stem(self.normalize(images))))
        for stage in self._stages:
            features = self.get_submodule(stage)(features)
        return self.classifier(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]
