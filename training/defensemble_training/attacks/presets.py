"""Named settings of the paper's attacks. This module does not import torch.

All l_inf attacks start at the image itself and step along the sign of the gradient of the cross-entropy, as the authors' code does. Only
adversarial training has a random start, like its source, Madry et al. (arXiv 1706.06083); the paper does not state a difference.

For CW the paper states kappa and the 30 search steps for c. The 1,000 steps of Adam per search step are the default of the authors' code;
the initial c of 0.001 is theirs and Foolbox's; Adam's step size of 0.01 is Carlini's and Foolbox's. (The authors' script uses 0.0005, but
keeps the perturbation from one c to the next and works on normalised images, whereas Foolbox restarts for each c.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import SpecError
from ..validation import check_choice, checked_integer, checked_number

ALGORITHMS = ("fgsm", "pgd", "mifgsm", "cw")
_FIELDS = {
    "fgsm": ("epsilon",),
    "pgd": ("epsilon", "step_size", "steps"),
    "mifgsm": ("epsilon", "step_size", "steps", "momentum"),
    "cw": ("step_size", "steps", "confidence", "search_steps"),
}
_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "epsilon": ("[0, 1] (of images in [0, 1]: 8 grey levels of 255 are 8 / 255)", lambda value: 0 <= value <= 1),
    "step_size": ("(0, 1] (of images in [0, 1]: 2 grey levels of 255 are 2 / 255)", lambda value: 0 < value <= 1),
    "momentum": ("[0, 2] (1 in the paper)", lambda value: 0 <= value <= 2),  # the range that Dong et al. tested
    "confidence": ("[0, inf) (40 in the paper, or 20 if the source is ResNet-18)", lambda value: 0 <= value < math.inf),
}


@dataclass(frozen=True)
class AttackPreset:
    """An untargeted attack and its settings. Settings that an algorithm does not have are None.

    Attributes:
        name: Name of the preset.
        algorithm: `fgsm`, `pgd` or `mifgsm` (in l_inf), or `cw` (in l2).
        epsilon: l_inf radius in [0, 1], for images in [0, 1]; not for `cw`.
        step_size: Size of one step in (0, 1]; `fgsm` uses epsilon. For `cw`, Adam's step size in tanh space.
        steps: Gradients per image, at least 1; for `cw`, the maximum per search step.
        momentum: Weight of the previous gradients in [0, 2]; only for `mifgsm`.
        random_start: Whether to start at a uniform point of the epsilon ball; only for `pgd`.
        confidence: Kappa, at least 0: the required margin of the wrong class's logit; only for `cw`.
        search_steps: Number of values of c to try; only for `cw`.
        paper: Where the setting comes from.

    Raises:
        SpecError: A value is out of range, missing, or does not belong to the algorithm.

    Example:
        >>> AttackPreset("pgd4", "pgd", epsilon=4 / 255, step_size=1 / 255, steps=10)
    """

    name: str
    algorithm: str
    epsilon: float | None = None
    step_size: float | None = None
    steps: int | None = None
    momentum: float | None = None
    random_start: bool = False
    confidence: float | None = None
    search_steps: int | None = None
    paper: str = ""

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        for field in ("epsilon", "step_size", "steps", "momentum", "confidence", "search_steps"):
            value, is_required = getattr(self, field), field in _FIELDS[self.algorithm]
            if (value is not None) != is_required:
                fields = ", ".join(_FIELDS[self.algorithm])
                raise SpecError(f"{self.algorithm} has exactly the settings {fields}; got {field}={value!r} in the preset {self.name!r}")
        if self.random_start and self.algorithm != "pgd":
            raise SpecError(f"random_start must be False for {self.algorithm} (only pgd has it), got True in the preset {self.name!r}")
        for field, (expected, is_valid) in _NUMBERS.items():
            if (value := getattr(self, field)) is not None:
                object.__setattr__(self, field, checked_number(field, value, f"in {expected}", is_valid))
        for field in ("steps", "search_steps"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, checked_integer(field, getattr(self, field), minimum=1))


def attack_preset(name: str | AttackPreset) -> AttackPreset:
    """Return the preset with a name, or a preset unchanged.

    Raises:
        SpecError: The name is unknown.
    """
    if isinstance(name, AttackPreset):
        return name
    if not isinstance(name, str) or name not in ATTACKS:
        raise SpecError(f"an attack must be an AttackPreset or one of {', '.join(ATTACKS)}; got {name!r}")
    return ATTACKS[name]


def at_epsilon(preset: AttackPreset, epsilon: float) -> AttackPreset:
    """Return an l_inf preset with another epsilon in [0, 1], and a step size in the same proportion to it.

    Raises:
        SpecError: The preset is `cw`, which has no epsilon, or the epsilon is out of range.
    """
    if preset.epsilon is None:
        raise SpecError(f"the preset {preset.name!r} has no epsilon to change: cw minimises the l2 norm")
    step_size = preset.step_size
    if step_size is not None and preset.epsilon > 0 and epsilon > 0:
        step_size = min(1.0, step_size * epsilon / preset.epsilon)
    return dataclasses.replace(preset, name=f"{preset.name} at {255 * epsilon:g}", epsilon=epsilon, step_size=step_size)


def _fgsm(name: str, grey_levels: int, paper: str) -> AttackPreset:
    return AttackPreset(name, "fgsm", epsilon=grey_levels / 255, paper=paper)


def _pgd(name: str, step: int, steps: int, grey_levels: int, paper: str, *, random_start: bool = False) -> AttackPreset:
    epsilon, step_size = grey_levels / 255, step / 255
    return AttackPreset(name, "pgd", epsilon=epsilon, step_size=step_size, steps=steps, random_start=random_start, paper=paper)


def _mifgsm(name: str, steps: int, grey_levels: int, paper: str) -> AttackPreset:
    return AttackPreset(name, "mifgsm", epsilon=grey_levels / 255, step_size=1 / 255, steps=steps, momentum=1.0, paper=paper)


def _cw(name: str, confidence: float, paper: str) -> AttackPreset:
    return AttackPreset(name, "cw", step_size=0.01, steps=1000, confidence=confidence, search_steps=30, paper=paper)


_TABLE_5 = "Tables 5 and 14 to 18; 5,000 images"
_TABLE_12 = "Table 12, white box"
_PRESETS = (
    _fgsm("table2-fgsm", 8, "Table 2, CIFAR-10; source a standard ResNet-18; all test images"),
    _pgd("table2-pgd", 2, 7, 8, "Table 2, CIFAR-10; source a standard ResNet-18; all test images; also PGD-7 in the white box"),
    _pgd("table3-pgd", 2, 20, 8, "Table 3, Tiny-ImageNet; source a ResNet-50; all images"),
    _pgd("table4-pgd", 1, 20, 16, "Table 4, five sources; 5,000 images"),
    _fgsm("fgsm8", 8, _TABLE_5),
    _fgsm("fgsm16", 16, _TABLE_5),
    _fgsm("fgsm32", 32, _TABLE_5),
    _pgd("pgd16", 1, 20, 16, _TABLE_5),
    _pgd("pgd2-16", 2, 10, 16, _TABLE_5),
    _pgd("pgd32", 1, 40, 32, _TABLE_5),
    _cw("cw", 40.0, "Tables 5 and 14 to 18, sources but ResNet-18; 1,000 images"),
    _cw("cw-resnet18", 20.0, "Tables 5 and 14 to 18, source ResNet-18; 1,000 images"),
    AttackPreset("mnist-pgd", "pgd", epsilon=0.3, step_size=0.01, steps=40, paper="Table 9, MNIST; 5,000 images"),
    _fgsm("table12-fgsm1", 1, _TABLE_12),
    _fgsm("table12-fgsm2", 2, _TABLE_12),
    _fgsm("table12-fgsm4", 4, _TABLE_12),
    _pgd("table12-pgd2", 1, 4, 2, _TABLE_12),
    _pgd("table12-pgd4", 1, 6, 4, _TABLE_12),
    _pgd("table12-pgd8", 1, 10, 8, _TABLE_12),
    _mifgsm("mifgsm16", 40, 16, "MIFGSM, CIFAR-10"),
    _mifgsm("mifgsm32", 40, 32, "MIFGSM, CIFAR-10"),
    _mifgsm("mifgsm32-tiny-imagenet", 80, 32, "MIFGSM, Tiny-ImageNet"),
    _mifgsm("mifgsm64-tiny-imagenet", 80, 64, "MIFGSM, Tiny-ImageNet"),
    _pgd("adversarial-training", 2, 7, 8, "inner attack of adversarial training; random start by Madry et al.", random_start=True),
    _pgd("adversarial-training-3", 4, 3, 8, "adversarial training with fewer, larger steps; not of the paper", random_start=True),
)
ATTACKS: Mapping[str, AttackPreset] = MappingProxyType({preset.name: preset for preset in _PRESETS})


@dataclass(frozen=True)
class PaperPreset:
    """One row of the paper's experiments, or the rows of one table.

    Attributes:
        name: Name of the preset, such as `paper-pgd16`.
        attacks: Its attacks.
        n_images: The paper's number of images; None if it uses all test images or does not state it.
        text: What the paper states.

    Example:
        >>> [attack.name for attack in PAPER_PRESETS["paper-table2"].attacks]
        ['table2-fgsm', 'table2-pgd']
    """

    name: str
    attacks: tuple[AttackPreset, ...]
    n_images: int | None
    text: str


def paper_preset(name: str) -> PaperPreset:
    """Return the paper's preset with a name.

    Raises:
        SpecError: The name is unknown.
    """
    if name not in PAPER_PRESETS:
        raise SpecError(f"a preset must be one of {', '.join(PAPER_PRESETS)}; got {name!r}")
    return PAPER_PRESETS[name]


_GRADIENT_ATTACKS = ("fgsm8", "fgsm16", "fgsm32", "pgd16", "pgd2-16", "pgd32")
# By the tables of the paper. CW is not in that of table 5, because the paper runs it on fewer images.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "table2": ("table2-fgsm", "table2-pgd"),
    "table3": ("table3-pgd",),
    "table4": ("table4-pgd",),
    **dict.fromkeys(("table5", "table14", "table15", "table16", "table17", "table18"), _GRADIENT_ATTACKS),
    "table9": ("mnist-pgd",),
    "table12": ("table12-fgsm1", "table12-fgsm2", "table12-fgsm4", "table12-pgd2", "table12-pgd4", "table12-pgd8"),
    "mifgsm": ("mifgsm16", "mifgsm32"),
    "mifgsm-tiny-imagenet": ("mifgsm32-tiny-imagenet", "mifgsm64-tiny-imagenet"),
}
_N_IMAGES = {**dict.fromkeys(("table4-pgd", *_GRADIENT_ATTACKS, "mnist-pgd"), 5000), "cw": 1000, "cw-resnet18": 1000}


def _paper_presets() -> Iterator[PaperPreset]:
    rows = {name: (name,) for name in ATTACKS if not name.startswith("adversarial-training")}
    for name, attacks in {**_GROUPS, **rows}.items():
        presets = tuple(ATTACKS[attack] for attack in attacks)
        yield PaperPreset(f"paper-{name}", presets, _N_IMAGES.get(attacks[0]), presets[0].paper)


PAPER_PRESETS: Mapping[str, PaperPreset] = MappingProxyType({preset.name: preset for preset in _paper_presets()})
