"""The hyper-parameters of a training run, two presets, and the learning-rate schedule.

`paper` is the authors' recipe for CIFAR-10 (arXiv 1911.08432 and its code): SGD with momentum, 350 epochs, the learning rate divided by ten
after 150 and 250. The authors keep the epoch with the best test accuracy. Here the test images select nothing: the last epoch is kept, or
with `choose="best"` the best epoch on held-out images. `fast` is a one-cycle schedule with few epochs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..attacks.presets import ATTACKS
from ..errors import SpecError
from ..validation import check_choice, checked_integer, checked_number

SCHEDULES = ("one-cycle", "steps")
CHOICES = ("last", "best")
WARM_UP = 0.25  # fraction of the steps in which the one-cycle learning rate rises
LARGEST_SEED = 2**63 - 1


_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("above 0 and at most 1e+30", lambda value: 0 < value <= 1e30),
    "momentum": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "weight_decay": ("at least 0 and at most 1e+6", lambda value: 0 <= value <= 1e6),
    "label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "largest_shift": ("at least 0 and at most 0.5", lambda value: 0 <= value <= 0.5),
}


def _checked_milestones(milestones: object, schedule: str) -> tuple[int, ...]:
    if isinstance(milestones, (str, bytes)) or not isinstance(milestones, (list, tuple)):
        raise SpecError(f"milestones must be epochs, such as (150, 250); got {milestones!r:.120}")
    checked = tuple(checked_integer("each of the milestones", milestone, minimum=0) for milestone in milestones)
    if list(checked) != sorted(checked):
        raise SpecError(f"milestones must be in ascending order, got {checked}")
    if checked and schedule != "steps":
        raise SpecError(f"milestones need the schedule 'steps', got {schedule!r}")
    return checked


@dataclass(frozen=True)
class Recipe:
    """All hyper-parameters of a training run except the seed.

    Attributes:
        epochs: Passes over the training images, at least 1.
        batch_size: Images per step over all processes, at least 2 (BatchNorm needs two). Batches of an epoch differ by at most one image.
        learning_rate: Highest learning rate of the schedule, above 0.
        schedule: `one-cycle` (a linear rise over the first quarter, then half a cosine to 0) or `steps` (divided by ten at each milestone).
        milestones: Epochs after which the schedule `steps` lowers the learning rate.
        momentum: Momentum of SGD in [0, 1).
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Weight decay of SGD on all parameters, at least 0.
        label_smoothing: Label smoothing of the cross-entropy in [0, 1).
        largest_shift: Largest random shift in each direction, as a fraction of height and width. Images shift by whole pixels and are
            padded with zeros (1/8 equals the usual crop of 32 pixels with a padding of 4).
        flip: Whether to mirror images at random, if a mirrored image of the dataset keeps its class.
        adversarial: Name of an attack in `ATTACKS` whose examples replace the training images, or None.
        choose: Which weights to save: those of the `last` epoch, or of the `best` by accuracy on held-out images.
        held_out: Number of training images that are held out and evaluated after each epoch; at least 1 if `choose` is `best`.

    Raises:
        SpecError: A value is out of range.

    Example:
        >>> Recipe(epochs=20, batch_size=128, learning_rate=0.1, schedule="one-cycle")
        >>> recipe_from_preset("paper", epochs=35)
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    largest_shift: float = 1 / 8
    flip: bool = True
    adversarial: str | None = None
    choose: str = "last"
    held_out: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 1), ("batch_size", 2), ("held_out", 0)):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), minimum=minimum))
        for name in ("nesterov", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, (expected, is_valid) in _NUMBERS.items():
            object.__setattr__(self, name, checked_number(name, getattr(self, name), expected, is_valid))
        check_choice("schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "milestones", _checked_milestones(self.milestones, self.schedule))
        if self.nesterov and not self.momentum:
            raise SpecError("nesterov needs a momentum above 0, got momentum=0")
        if self.adversarial is not None:
            # Not CW: it needs up to 30,000 gradients per image.
            check_choice("adversarial", self.adversarial, tuple(name for name, preset in ATTACKS.items() if preset.algorithm != "cw"))
        check_choice("choose", self.choose, CHOICES)
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise SpecError(f"milestones must be below the number of epochs, {self.epochs}, got {self.milestones}")
        if self.choose == "best" and not self.held_out:
            raise SpecError("choose='best' needs held_out of at least 1, because it selects the epoch by held-out images")

    def to_values(self) -> dict[str, Any]:
        """Return the recipe as a JSON object, one key per field."""
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: Number of the step, from 0 over the whole run.
            steps_per_epoch: Steps per epoch.
        """
        if self.schedule == "one-cycle":
            return self.learning_rate * one_cycle(step, self.epochs * steps_per_epoch)
        return self.learning_rate * 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)


PRESETS: Mapping[str, Recipe] = {
    "fast": Recipe(epochs=8, batch_size=64, learning_rate=0.1, schedule="one-cycle", nesterov=True, largest_shift=1 / 16),
    "paper": Recipe(epochs=350, batch_size=128, learning_rate=0.1, schedule="steps", milestones=(150, 250)),
}


def recipe_from_preset(preset: str = "fast", **changes: Any) -> Recipe:
    """Return a preset with some values changed.

    If only `epochs` changes, the milestones scale with it: for 35 epochs, those of `paper` are 15 and 25.

    Args:
        preset: A name in `PRESETS`.
        **changes: Fields of the `Recipe` and their new values.

    Raises:
        SpecError: The preset or a field does not exist, or a value is out of range.

    Example:
        >>> recipe_from_preset("fast", epochs=20, batch_size=128)
    """
    check_choice("preset", preset, tuple(PRESETS))
    base = PRESETS[preset]
    unknown = sorted(set(changes) - {item.name for item in dataclasses.fields(Recipe)})
    if unknown:
        fields = ", ".join(item.name for item in dataclasses.fields(Recipe))
        raise SpecError(f"a recipe has no field {', '.join(unknown)}; expected some of {fields}")
    if base.milestones and "milestones" not in changes:
        if changes.get("schedule", base.schedule) != "steps":
            changes["milestones"] = ()
        elif "epochs" in changes:
            epochs = checked_integer("epochs", changes["epochs"], minimum=1)
            scaled = (round(milestone * epochs / base.epochs) for milestone in base.milestones)
            changes["milestones"] = tuple(milestone for milestone in scaled if 0 < milestone < epochs)
    return dataclasses.replace(base, **changes)


def one_cycle(step: int, steps: int) -> float:
    """Return the factor in (0, 1] on the highest learning rate at step 0 to steps - 1: a linear rise, then half a cosine."""
    rise = math.ceil(WARM_UP * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step + 1 - rise) / (steps + 1 - rise))) / 2
