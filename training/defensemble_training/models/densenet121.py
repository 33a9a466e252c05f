"""DenseNet-121: dense blocks of 6, 12, 24 and 16 layers, separated by transitions that halve channels and size.

Masks: between the first BatchNorm and its ReLU in each dense layer of a block, and in its transition (transition i belongs to block i; the
last block has none). The stem, the inputs of the 3x3 convolutions and the concatenated features have no mask.
Sources: arXiv 1608.06993 for the network, arXiv 1911.08432 for the masks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import Normalize, Shape, channels_in_block, constant_network_error, conv1x1, conv3x3, drops_everything, mask_layer_at
from .spec import ModelSpec

DEPTHS = (6, 12, 24, 16)
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """BatchNorm, mask, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution; the output is concatenated to the input."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape: Shape, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(shape[0])
        self.defect = mask_layer_at(spec, block, f"{path}.defect", shape)
        self.conv1 = conv1x1(shape[0], BOTTLENECK * growth)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = conv3x3(BOTTLENECK * growth, growth)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        features = self.conv1(functional.relu(self.defect(self.bn1(activations))))
        features = self.conv2(functional.relu(self.bn2(features)))
        return torch.cat((activations, features), dim=1)


class Transition(nn.Module):
    """BatchNorm, mask, ReLU, 1x1 convolution to half the channels, average pooling to half the size."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape: Shape) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(shape[0])
        self.defect = mask_layer_at(spec, block, f"{path}.defect", shape)
        self.conv = conv1x1(shape[0], shape[0] // 2)
        if drops_everything(self.defect):
            raise constant_network_error(spec, path, shape)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C // 2, H // 2, W // 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.defect(self.bn(activations)))), 2)


class DenseNet121(nn.Module):
    """DenseNet-121. Maps images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Each dense layer adds `spec.width // 2` channels (32 at width 64). 6.96 million parameters at width 64 with 3 channels and 10 classes.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, width = spec.input_shape
        self.normalize = Normalize(spec)
        self.stem = conv3x3(channels, channels_in_block(spec, 0, spec.width))
        channels = self.stem.out_channels
        stages: list[str] = []
        for block, depth in enumerate(DEPTHS, start=1):
            growth = channels_in_block(spec, block, spec.width // 2)
            layers = []
            for index in range(depth):
                layers.append(DenseLayer(spec, block, f"block{block}.{index}", (channels, height, width), growth))
                channels += growth
            self.add_module(f"block{block}", nn.Sequential(*layers))
            stages.append(f"block{block}")
            if block < len(DEPTHS):
                self.add_module(f"transition{block}", Transition(spec, block, f"transition{block}", (channels, height, width)))
                stages.append(f"transition{block}")
                channels, height, width = channels // 2, height // 2, width // 2
        self._stages = tuple(stages)
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, spec.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = self.stem(self.normalize(images))
        for stage in self._stages:
            features = self.get_submodule(stage)(features)
        return self.classifier(functional.relu(self.bn(features)).mean(dim=(2, 3)))  # type: ignore[no-any-return]
