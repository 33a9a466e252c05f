"""Which attacks the paper runs, by name: every setting as a value; no torch is needed to read them.

All l_inf attacks start at the image itself and take the sign of the gradient of the cross-entropy, as the authors' code does; only
adversarial training starts at random, as Madry et al. (arXiv 1706.06083) do, from whom the paper takes it (it does not say otherwise).

Of CW the paper says kappa and the 30 search steps for c. The 1,000 steps of Adam within each are the default of the authors' code, the
first c of 0.001 is theirs and Foolbox's, Adam's step of 0.01 is Carlini's and Foolbox's. (The authors' script takes 0.0005, but carries the
perturbation from one c to the next and works on normalised images; Foolbox starts anew.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
    "momentum": ("[0, 2] (the paper's is 1)", lambda value: 0 <= value <= 2),  # as far as Dong et al. looked
    "confidence": ("[0, inf) (the paper's is 40, or 20 where the source is ResNet-18)", lambda value: 0 <= value < math.inf),
}


@dataclass(frozen=True)
class AttackPreset:
    """An untargeted attack with all of its settings; what an algorithm does not have is None.

    Attributes:
        name: how the preset is called.
        algorithm: `fgsm`, `pgd`, `mifgsm` (these in l_inf) or `cw` (in l2).
        epsilon: l_inf radius in [0, 1], images being in [0, 1]; `cw` has none.
        step_size: of one step, in (0, 1]; `fgsm` takes epsilon. For `cw` Adam's, in the space of its tangent.
        steps: gradients an image, at least 1; for `cw` the most within one search step.
        momentum: weight in [0, 2] of the gradients before; `mifgsm` only.
        random_start: whether it starts at a uniform point of the epsilon ball; `pgd` only.
        confidence: kappa, at least 0, the margin of logits by which the class must be wrong; `cw` only.
        search_steps: how many values of c are tried; `cw` only.
        paper: where the setting comes from.

    Raises:
        SpecError: a value is outside of its range, is missing, or does not belong to the algorithm.
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
            value, needed = getattr(self, field), field in _FIELDS[self.algorithm]
            if (value is not None) != needed:
                needs = ", ".join(_FIELDS[self.algorithm])
                raise SpecError(f"{self.algorithm} is described by {needs}; got {field}={value!r} in the preset {self.name!r}")
        if self.random_start and self.algorithm != "pgd":
            raise SpecError(f"random_start must be False for {self.algorithm} (pgd alone has it), got True in the preset {self.name!r}")
        for field, (expected, holds) in _NUMBERS.items():
            if (value := getattr(self, field)) is not None:
                object.__setattr__(self, field, checked_number(field, value, f"in {expected}", holds))
        for field in ("steps", "search_steps"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, checked_integer(field, getattr(self, field), minimum=1))


def attack_preset(name: str | AttackPreset) -> AttackPreset:
    """Return the preset of a name, or a preset as it is; raise a `SpecError` where there is none of that name."""
    if isinstance(name, AttackPreset):
        return name
    if not isinstance(name, str) or name not in ATTACKS:
        raise SpecError(f"an attack must be an AttackPreset or one of {', '.join(ATTACKS)}; got {name!r}")
    return ATTACKS[name]


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
    _pgd("pgd2,16", 2, 10, 16, _TABLE_5),
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
    _pgd("adversarial-training", 2, 7, 8, "adversarial training's inner attack; the random start is Madry et al.'s", random_start=True),
)
ATTACKS: Mapping[str, AttackPreset] = MappingProxyType({preset.name: preset for preset in _PRESETS})
