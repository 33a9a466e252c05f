"""The hyper-parameters of a network, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from ..errors import SpecError
from ..validation import INTEGRAL, check_choice, checked_integer, checked_number
from .masks import PATTERNS, SAMPLINGS, checked_keep

STEMS = ("cifar", "imagenet")
DROPS = ("spatial_dropout", "drop_block")
LAST_BLOCK = 4
MINIMUM_EXTENT = 8  # after three halvings, the last stage of most architectures still has one position


@dataclass(frozen=True)
class _Limits:
    """Allowed hyper-parameters of an architecture."""

    last_block: int = LAST_BLOCK
    stems: tuple[str, ...] = ("cifar",)
    width_multiple: int = 1
    width_reason: str = ""


_LIMITS = {
    "resnet18": _Limits(stems=STEMS),
    "resnet50": _Limits(stems=STEMS),
    "densenet121": _Limits(width_multiple=2, width_reason="a dense layer adds half the width"),
    "senet18": _Limits(width_multiple=16, width_reason="squeeze-and-excitation has a sixteenth of the channels"),
    "vgg19": _Limits(),
    "wrn32_4": _Limits(last_block=3, width_multiple=4, width_reason="the stem has a quarter of the width"),
}
ARCHITECTURES = tuple(_LIMITS)


@dataclass(frozen=True)
class Drop:
    """Random drops of activations in training, never in inference: the baselines for defective layers.

    A drop is at the position of a block's masks, after the mask if the block has both.

    Attributes:
        kind: `spatial_dropout` (whole channels, arXiv 1411.4280) or `drop_block` (squares, arXiv 1810.12890).
        keep: Expected fraction of kept activations in (0, 1]; 1.0 drops nothing.
        blocks: Blocks with a drop, numbered as in `ModelSpec`.
        block_size: Side of a square of `drop_block`, at least 1; ignored by `spatial_dropout`.

    Raises:
        SpecError: A value is out of range.

    Example:
        >>> ModelSpec("resnet18", keep=1.0, blocks=(), drop=Drop("drop_block", keep=0.9))
    """

    kind: str
    keep: float = 0.9
    blocks: tuple[int, ...] = (3, 4)
    block_size: int = 3

    def __post_init__(self) -> None:
        check_choice("the kind of a drop", self.kind, DROPS)
        object.__setattr__(self, "keep", checked_keep(self.keep))
        object.__setattr__(self, "blocks", _checked_blocks("the blocks of a drop", self.blocks, LAST_BLOCK))
        object.__setattr__(self, "block_size", checked_integer("the block_size of a drop", self.block_size, minimum=1, maximum=4096))


@dataclass(frozen=True)
class ModelSpec:
    """The hyper-parameters of a network, defective or standard. The defaults are the paper's ResNet-18 for CIFAR-10.

    Attributes:
        arch: Architecture: `resnet18`, `resnet50`, `densenet121`, `senet18`, `vgg19` or `wrn32_4`.
        keep: Keep probability of the masks in (0, 1]; 1.0 is the standard network, without masks, whatever `blocks` is.
        blocks: Defective blocks, 0 (the stem) to 4 (`wrn32_4`: 0 to 3), sorted. SENet-18 and DenseNet-121 have no mask in block 0.
        pattern: `neuron` (each neuron independently), `channel` (whole channels) or `shared` (one mask for all channels of a layer).
        sampling: `bernoulli` or `exact` (a fixed number of kept positions per layer).
        mask_seed: Seed of all masks, at least 0.
        width: Channels of the first stage (64 in the paper), which scale all others. A multiple of 2 for `densenet121`, of 16 for
            `senet18`, of 4 for `wrn32_4`.
        channel_multiplier: Factor for the channels of the blocks in `blocks`, at least 1 (xn in the paper).
        drop: SpatialDropout or DropBlock, for comparison, or None.
        stem: `cifar` (3x3 convolution, no pooling) or, for the two ResNets, `imagenet` (7x7 convolution, then pooling, both of stride 2).
        mean: Mean that the network's first layer subtracts from the images, one value per channel.
        std: Standard deviation that it then divides by, one value above 0 per channel.
        num_classes: Number of classes, at least 2.
        input_shape: (C, H, W) of one image; H and W at least 8.

    Raises:
        SpecError: A value is out of range.

    Example:
        >>> ModelSpec("resnet18", keep=0.5, blocks=(0, 1, 2), mask_seed=1)
    """

    arch: str
    keep: float
    blocks: tuple[int, ...]
    pattern: str = "neuron"
    sampling: str = "bernoulli"
    mask_seed: int = 0
    width: int = 64
    channel_multiplier: int = 1
    drop: Drop | None = None
    stem: str = "cifar"
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    num_classes: int = 10
    input_shape: tuple[int, int, int] = (3, 32, 32)

    def __post_init__(self) -> None:
        check_choice("arch", self.arch, ARCHITECTURES)
        check_choice("pattern", self.pattern, PATTERNS)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_choice("stem", self.stem, STEMS)
        self._set("keep", checked_keep(self.keep))
        self._set("blocks", _checked_blocks("blocks", self.blocks, _LIMITS[self.arch].last_block))
        self._set("mask_seed", checked_integer("mask_seed", self.mask_seed, minimum=0))
        self._set("width", checked_integer("width", self.width, minimum=1, maximum=4096))
        self._set("channel_multiplier", checked_integer("channel_multiplier", self.channel_multiplier, minimum=1, maximum=64))
        self._set("num_classes", checked_integer("num_classes", self.num_classes, minimum=2))
        self._check_architecture()
        self._set("input_shape", _checked_input_shape(self.input_shape))
        channels = self.input_shape[0]
        self._set("mean", _checked_statistic("mean", self.mean, channels))
        self._set("std", _checked_statistic("std", self.std, channels))
        if min(self.std) <= 0:
            raise SpecError(f"std must be above 0 in every channel, got {self.std}")

    def _check_architecture(self) -> None:
        limits = _LIMITS[self.arch]
        if self.stem not in limits.stems:
            supported = ", ".join(name for name, other in _LIMITS.items() if self.stem in other.stems)
            raise SpecError(
                f"the stem of {self.arch} must be one of {', '.join(limits.stems)}; got {self.stem!r}, which only {supported} support"
            )
        if self.width % limits.width_multiple:
            raise SpecError(
                f"the width of {self.arch} must be a multiple of {limits.width_multiple} ({limits.width_reason}), got {self.width}"
            )
        if self.drop is None:
            return
        if not isinstance(self.drop, Drop):
            raise SpecError(f"drop must be None or a Drop, such as Drop('drop_block', keep=0.9), got {self.drop!r}")
        _checked_blocks(f"the blocks of a drop in {self.arch}", self.drop.blocks, limits.last_block)

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def to_json(self) -> str:
        """Return the spec as a JSON object, one key per field, in the order of the fields."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read a spec from JSON. Fields with a default are optional.

        Raises:
            SpecError: The text is not a JSON object, has an unknown key, lacks `arch`, `keep` or `blocks`, or a value is out of range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"a spec must be a JSON object, got {text[:80]!r} ({error})") from error
        if not isinstance(values, dict):
            raise SpecError(f"a spec must be a JSON object, got {text[:80]!r}")
        _check_keys("a spec", values, cls)
        if isinstance(values.get("drop"), dict):
            _check_keys("the drop of a spec", values["drop"], Drop)
            values["drop"] = Drop(**values["drop"])
        return cls(**values)


def _check_keys(what: str, values: dict[str, object], target: type[ModelSpec] | type[Drop]) -> None:
    fields = {field.name: field for field in dataclasses.fields(target)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise SpecError(f"unknown keys in {what}: {', '.join(unknown)}; expected {', '.join(fields)}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise SpecError(f"{what} must have {', '.join(missing)}; got the keys {', '.join(values) or 'none'}")


def _checked_blocks(what: str, blocks: object, last: int) -> tuple[int, ...]:
    expected = f"{what} must be different integers from 0 (the stem) to {last}, such as (0, 1, 2)"
    if isinstance(blocks, (str, bytes)) or not isinstance(blocks, Sequence):
        raise SpecError(f"{expected}; got {blocks!r}")
    if any(isinstance(block, bool) or not isinstance(block, INTEGRAL) or not 0 <= block <= last for block in blocks):
        raise SpecError(f"{expected}; got {tuple(blocks)!r}")
    if len(set(blocks)) != len(blocks):
        raise SpecError(f"{expected}; got {tuple(blocks)!r}, which has duplicates")
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
        raise SpecError(f"{what} must hold one number per channel, got {values!r}")
    if len(values) != channels:
        raise SpecError(
            f"{what} must hold one number for each of the {channels} channels of input_shape, got {len(values)}: {tuple(values)!r}"
        )
    return tuple(checked_number(f"each of {what}", value, "a finite number", _is_finite) for value in values)


def _is_finite(value: SupportsFloat) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer outside the range of floats
        return False
