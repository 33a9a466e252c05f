"""ResNet-18: four stages of two units of two 3x3 convolutions. Masks: on the stem, every convolution and every projection of a block."""

from __future__ import annotations

from .residual import BasicUnit, ResidualNetwork
from .spec import ModelSpec


class ResNet18(ResidualNetwork):
    """ResNet-18: 11.17 million parameters at width 64 with 3 channels and 10 classes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, BasicUnit, (2, 2, 2, 2), stem_channels=spec.width)
