"""Sanity checks of attacks on their own source: an attack that is broken would make every target look robust."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..data.dataset import Images, Labels
from ..evaluation import predict_classes
from .examples import SourceAttack
from .presets import AttackPreset

CHECKED_IMAGES = 100
FOOLS_SOURCE = "fools its source"
"""Name of the check without which the accuracy of a target means nothing."""
_ENOUGH_FOOLED, _HARDLY_FOOLED = 0.5, 0.1
_HUGE = 128 / 255
_TOLERANCE = 0.02

Perturb = Callable[[AttackPreset, bool], Images]


def attack_checks(
    attack: SourceAttack,
    source: nn.Module,
    num_classes: int,
    images: Images,
    labels: Labels,
    is_fooled: NDArray[np.bool_],
    perturb: Perturb,
) -> list[dict[str, str]]:
    """Check an attack on some images: on its source, at epsilon 0, at a huge epsilon, and with twice as many steps.

    Args:
        attack: The attack.
        source: The attacked module.
        num_classes: Its number of classes.
        images: The clean images.
        labels: Their classes.
        is_fooled: Whether the source misclassifies their examples.
        perturb: Attacks the images with other settings, with or without redrawn masks.

    Returns:
        For each check `name`, `status` (`PASS`, `WARN` or `FAIL`) and `text`.
    """
    preset, name = attack.preset, attack.name
    fools = _fools_source(name, is_fooled[predict_classes(source, images) == labels])
    if preset.epsilon is None:
        text = f"{name}: checks at other epsilons and steps do not apply, because cw minimises the norm"
        return [_check("attack settings", "PASS", text), fools]
    unchanged = np.array_equal(perturb(dataclasses.replace(preset, epsilon=0.0), False), images)
    text = "the images are unchanged" if unchanged else "the images changed; expected none to change"
    checks = [_check("epsilon 0", "PASS" if unchanged else "FAIL", f"{name}: {text} ({len(images)} images)")]

    huge = perturb(_at_huge_epsilon(preset), False)
    accuracy, chance = float((predict_classes(source, huge) == labels).mean()), 1 / num_classes
    bound = chance + 3 * (chance * (1 - chance) / len(images)) ** 0.5
    text = f"{name} within 128/255: the source classifies {accuracy:.1%} of {len(images)} images correctly, chance is {chance:.1%}"
    checks.append(_check("huge epsilon", "PASS" if accuracy <= bound else "WARN", text))

    if preset.steps is None:
        return [*checks, _check("twice the steps", "PASS", f"{name}: does not apply, because fgsm is one step"), fools]
    success, doubled = float(is_fooled.mean()), perturb(dataclasses.replace(preset, steps=2 * preset.steps), True)
    more = float((predict_classes(source, doubled) != labels).mean())
    text = f"{name}: the source misclassifies {success:.1%} of {len(images)} examples, with {2 * preset.steps} steps {more:.1%}"
    is_converged = abs(more - success) <= max(_TOLERANCE, 1 / len(images)) + 1e-9
    status, more_steps = ("PASS", "") if is_converged else ("WARN", ": more steps would be stronger")
    return [*checks, _check("twice the steps", status, text + more_steps), fools]


def _fools_source(name: str, is_fooled: NDArray[np.bool_]) -> dict[str, str]:
    """Check that examples of images that the source classifies correctly fool it."""
    text = f"{name}: {is_fooled.sum()} of {len(is_fooled)} examples of images that the source classifies correctly fool it"
    share = float(is_fooled.mean()) if len(is_fooled) else 0.0
    status = "PASS" if share >= _ENOUGH_FOOLED else "WARN" if share >= _HARDLY_FOOLED else "FAIL"
    return _check(FOOLS_SOURCE, status, text + ("" if status == "PASS" else ": a weak attack makes every target look robust"))


def _at_huge_epsilon(preset: AttackPreset) -> AttackPreset:
    step_size = None if preset.steps is None else min(1.0, 2.5 * _HUGE / preset.steps)
    return dataclasses.replace(preset, epsilon=_HUGE, step_size=step_size)


def _check(name: str, status: str, text: str) -> dict[str, str]:
    return {"name": name, "status": status, "text": text}
