"""WRN-32-4: a stem with a quarter of the channels (16 at width 64), then three stages of five units of two 3x3 convolutions.

32 = 6 * 5 + 2, the depth of arXiv 1512.03385 (section 4.2) with four times its channels (16, 32, 64). Masks: on the stem and every
convolution of a block, never on a projection.
"""

from __future__ import annotations

from .residual import BasicUnit, ResidualNetwork
from .spec import ModelSpec


class PlainProjectionUnit(BasicUnit):
    """A basic unit without a mask on its projection."""

    mask_on_projection = False


class WideResNet32x4(ResidualNetwork):
    """WRN-32-4: 7.40 million parameters at width 64 with 3 channels and 10 classes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, PlainProjectionUnit, (5, 5, 5), stem_channels=spec.width // 4)
