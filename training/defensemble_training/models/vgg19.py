"""VGG-19 with BatchNorm: sixteen 3x3 convolutions in five groups, each followed by max-pooling.

Block 0 is convolutions 1 and 2, block 1 is 3 and 4, blocks 2 to 4 are the groups of four. Masks: between BatchNorm and ReLU of every
convolution of a block.
Sources: arXiv 1409.1556 for the network, arXiv 1911.08432 for the masks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import ConvUnit, Normalize, Shape, channels_in_block, constant_network_error, drops_everything, mask_layer_at
from .spec import ModelSpec

GROUPS = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))  # (channels in units of the width, convolutions)


class Group(nn.Sequential):
    """Convolutions with BatchNorm, mask and ReLU, then 2x2 max-pooling that rounds sizes up, so that 1x1 stays 1x1."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape: Shape, channels: int, depth: int) -> None:
        units = []
        for index in range(depth):
            shape_in, shape = shape[0], (channels, *shape[1:])
            conv = nn.Conv2d(shape_in, channels, 3, padding=1)
            units.append(ConvUnit(conv, mask_layer_at(spec, block, f"{path}.{index}.defect", shape)))
            if drops_everything(units[-1].defect):
                raise constant_network_error(spec, f"{path}.{index}", shape)
        super().__init__(*units)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, channels, ceil(H / 2), ceil(W / 2))."""
        for unit in self:
            activations = functional.relu(unit(activations))
        return functional.max_pool2d(activations, 2, ceil_mode=True)


class VGG19(nn.Module):
    """VGG-19. Maps images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes).

    The classifier is global average pooling and one linear layer. 20.04 million parameters at width 64 with 3 channels and 10 classes.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        shape = spec.input_shape
        self._groups = tuple(f"block{block}" for block in range(len(GROUPS)))
        for block, (name, (factor, depth)) in enumerate(zip(self._groups, GROUPS, strict=True)):
            channels = channels_in_block(spec, block, factor * spec.width)
            self.add_module(name, Group(spec, block, name, shape, channels, depth))
            shape = (channels, (shape[1] + 1) // 2, (shape[2] + 1) // 2)
        self.classifier = nn.Linear(shape[0], spec.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = self.normalize(images)
        for group in self._groups:
            features = self.get_submodule(group)(features)
        return self.classifier(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]
