"""What a network is: every hyper-parameter as a value of one frozen dataclass."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from ._errors import SpecError
from .masks import INTEGRAL, PATTERNS, REAL, SAMPLINGS, checked_choice, checked_integer, checked_keep

ARCHITECTURES = ("resnet18",)
STEMS = ("cifar",)
LAST_BLOCK = 4
MINIMUM_EXTENT = 8  # three halvings: the last stage of ResNet-18 then still has one real position


@dataclass(frozen=True)
class ModelSpec:
    """A network, defective or standard, without its weights; the defaults give the paper's ResNet-18 for CIFAR-10.

    Attributes:
        arch: the architecture; `resnet18` exists.
        keep: keep probability of the masks in (0, 1]; 1.0 is the standard network, without masks whatever `blocks` says.
        blocks: the defective blocks, 0 (the stem) to 4, sorted.
        pattern: `neuron` (each on its own), `channel` (whole channels) or `shared` (one mask for all channels of a layer).
        sampling: `bernoulli` or `exact` (a fixed count of kept positions a layer).
        mask_seed: the seed of all masks, at least 0.
        width: channels of the first stage (64 in the paper); every later stage scales with it.
        channel_multiplier: factor on the channels of the defective blocks; 1 exists.
        drop: another way of dropping activations, for comparison; None exists.
        stem: `cifar` (3x3 convolution, no pooling) exists.
        mean: subtracted from the images by the network's first layer, one value a channel.
        std: what the images are then divided by, one value above 0 a channel.
        num_classes: at least 2.
        input_shape: (C, H, W) of one image; H and W at least 8.

    Raises:
        SpecError: a value is outside of its range.
    """

    arch: str
    keep: float
    blocks: tuple[int, ...]
    pattern: str = "neuron"
    sampling: str = "bernoulli"
    mask_seed: int = 0
    width: int = 64
    channel_multiplier: int = 1
    drop: None = None
    stem: str = "cifar"
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    num_classes: int = 10
    input_shape: tuple[int, int, int] = (3, 32, 32)

    def __post_init__(self) -> None:
        checked_choice("arch", self.arch, ARCHITECTURES)
        checked_choice("pattern", self.pattern, PATTERNS)
        checked_choice("sampling", self.sampling, SAMPLINGS)
        checked_choice("stem", self.stem, STEMS)
        self._set("keep", checked_keep(self.keep))
        self._set("blocks", _checked_blocks(self.blocks))
        self._set("mask_seed", checked_integer("mask_seed", self.mask_seed, minimum=0))
        self._set("width", checked_integer("width", self.width, minimum=1, maximum=4096))
        self._set("num_classes", checked_integer("num_classes", self.num_classes, minimum=2))
        if checked_integer("channel_multiplier", self.channel_multiplier, minimum=1) != 1:
            raise SpecError(f"channel_multiplier must be 1 (no other value is built yet), got {self.channel_multiplier!r}")
        if self.drop is not None:
            raise SpecError(f"drop must be None (neither SpatialDropout nor DropBlock is built yet), got {self.drop!r}")
        self._set("input_shape", _checked_input_shape(self.input_shape))
        channels = self.input_shape[0]
        self._set("mean", _checked_statistic("mean", self.mean, channels))
        self._set("std", _checked_statistic("std", self.std, channels))
        if min(self.std) <= 0:
            raise SpecError(f"std must be above 0 in every channel, got {self.std}")

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def to_json(self) -> str:
        """Return the spec as a JSON object with one key a field, in the order of the fields."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Read a spec from JSON; fields with a default may be missing.

        Raises:
            SpecError: the text is no JSON object, has a key that is no field, lacks `arch`, `keep` or `blocks`, or a value is outside of
                its range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"a spec must be a JSON object, got {text[:80]!r} ({error})") from error
        if not isinstance(values, dict):
            raise SpecError(f"a spec must be a JSON object, got {text[:80]!r}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise SpecError(f"unknown keys in a spec: {', '.join(unknown)}; the keys are {', '.join(fields)}")
        missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
        if missing:
            raise SpecError(f"a spec must have {', '.join(missing)}; got the keys {', '.join(values) or 'none'}")
        return cls(**values)


def _checked_blocks(blocks: object) -> tuple[int, ...]:
    expected = f"blocks must be different integers from 0 (the stem) to {LAST_BLOCK}, such as (0, 1, 2)"
    if isinstance(blocks, (str, bytes)) or not isinstance(blocks, Sequence):
        raise SpecError(f"{expected}; got {blocks!r}")
    if any(isinstance(block, bool) or not isinstance(block, INTEGRAL) or not 0 <= block <= LAST_BLOCK for block in blocks):
        raise SpecError(f"{expected}; got {tuple(blocks)!r}")
    if len(set(blocks)) != len(blocks):
        raise SpecError(f"{expected}; got {tuple(blocks)!r}, with one of them twice")
    return tuple(sorted(int(block) for block in blocks))


def _checked_input_shape(shape: object) -> tuple[int, int, int]:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise SpecError(f"input_shape must be (C, H, W), got {shape!r}")
    channels = checked_integer("the channels in input_shape", shape[0], minimum=1, maximum=4096)
    height = checked_integer("the height in input_shape", shape[1], minimum=MINIMUM_EXTENT, maximum=4096)
    width = checked_integer("the width in input_shape", shape[2], minimum=MINIMUM_EXTENT, maximum=4096)
    return channels, height, width


def _checked_statistic(what: str, values: object, channels: int) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise SpecError(f"{what} must hold one number a channel, got {values!r}")
    if len(values) != channels:
        raise SpecError(
            f"{what} must hold one number for each of the {channels} channels of input_shape, got {len(values)}: {tuple(values)!r}"
        )
    if any(isinstance(value, bool) or not isinstance(value, REAL) or not _is_finite(value) for value in values):
        raise SpecError(f"{what} must hold finite numbers, got {tuple(values)!r}")
    return tuple(float(value) for value in values)


def _is_finite(value: SupportsFloat) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond the range of floats
        return False
