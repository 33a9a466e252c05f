"""Sanity checks of a run: whether the targets behave as a measurement assumes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..results.intervals import rate
from .base import CLEAN, Condition
from .outcome import Check, Status

if TYPE_CHECKING:
    from .run import TargetRun

_SINGLE_IMAGES = 8
_TOLERANCE = 1e-4  # of probabilities: batches of other sizes are summed in another order


def check_determinism(entry: TargetRun, images: NDArray[np.float32]) -> float:
    """Ask about the same images in a batch and one by one, add the check, and return the images per second of the batch.

    Args:
        entry: The target.
        images: The first images of the probe, as many as one request may have.
    """
    singly = [entry.target.ask(images[index : index + 1], "sanity") for index in range(min(_SINGLE_IMAGES, len(images)))]
    started = time.monotonic()  # now that there is a connection
    together = entry.target.ask(images, "sanity")
    seconds = time.monotonic() - started
    classes = np.concatenate([response.classes for response in singly])
    changed = int((classes != together.classes[: len(singly)]).sum())
    name, text = "same image, same response", f"{entry.target.name}: {len(singly)} images, one by one and in a batch of {len(images)}"
    if changed:
        entry.checks.append(Check(name, "FAIL", f"{text}: {changed} have another class. The target is random, or was edited meanwhile."))
    elif together.probabilities is None:
        entry.checks.append(Check(name, "PASS", f"{text}: the same classes"))
    else:
        pairs = [(one.probabilities, together.probabilities[index]) for index, one in enumerate(singly)]
        largest = max(float(np.abs(np.asarray(one)[0] - other).max()) for one, other in pairs)
        status: Status = "PASS" if largest <= _TOLERANCE else "WARN"
        entry.checks.append(Check(name, status, f"{text}: the same classes; probabilities differ by up to {largest:.2g}"))
    return len(images) / max(seconds, 1e-9)


def extreme_check(entry: TargetRun, condition: Condition, correct: NDArray[np.bool_]) -> Check:
    """Return the check that a perturbation which leaves nothing of an image leaves the accuracy of chance.

    Args:
        entry: The target.
        condition: The perturbation.
        correct: bool (k,): which images are classified correctly.
    """
    measured, chance = rate(correct), _chance(entry.target.num_classes, None)
    is_chance = chance is None or measured.low is None or measured.low <= 2 * chance
    expected = "" if chance is None else f"; chance is {chance:.1%}"
    text = f"{entry.target.name}: {measured.successes} of {measured.n} correct at {condition.name}{expected}"
    return Check("extreme perturbation reaches chance", "PASS" if is_chance else "WARN", text)


def checks_of(runs: Sequence[TargetRun], labels: NDArray[np.int64], num_classes: int | None) -> list[Check]:
    """Return the checks of all targets.

    Args:
        runs: The targets.
        labels: The classes of the images, (n,).
        num_classes: Number of classes, if it is known.
    """
    checks = []
    for entry in runs:
        checks += entry.checks
        if entry.failure is not None:
            checks.append(Check("target responds", "FAIL", f"{entry.target.name}: {entry.failure}"))
        if CLEAN in entry.predicted:
            checks.append(_clean_check(entry, labels, num_classes))
        checks.append(_identity_check(entry))
    return checks


def _clean_check(entry: TargetRun, labels: NDArray[np.int64], num_classes: int | None) -> Check:
    predicted = entry.predicted[CLEAN]
    measured = rate((predicted == labels)[predicted >= 0])
    name, chance = "clean accuracy above chance", _chance(entry.target.num_classes, num_classes)
    if measured.value is None:
        return Check(name, "FAIL", f"{entry.target.name}: no clean image was classified")
    text = f"{entry.target.name}: {measured.value:.1%} of {measured.n:,}"
    if measured.successes == 0:
        return Check(name, "FAIL", f"{text}: there is nothing to attack. Are the labels those of the model?")
    if chance is None:
        return Check(name, "PASS", text)
    text += f"; chance is {chance:.1%}"
    if measured.low is not None and measured.low <= chance:
        return Check(name, "WARN", f"{text}. Are the labels in the model's order?")
    return Check(name, "PASS", text)


def _chance(own: int | None, given: int | None) -> float | None:
    count = own or given
    return None if not count else 1 / count


def _identity_check(entry: TargetRun) -> Check:
    name = "target did not change"
    if len(entry.identities) > 1:
        keys = sorted({key for one, other in zip(entry.identities, entry.identities[1:], strict=False) for key in _differences(one, other)})
        text = f"{entry.target.name}: changed {len(entry.identities) - 1} times during the probe ({', '.join(keys)}): measure it again"
        return Check(name, "FAIL", text)
    identity = entry.identities[0] if entry.identities else {}
    if entry.target.role != "function" and identity.get("config_sha256") is None:
        return Check(name, "WARN", f"{entry.target.name}: its configuration cannot be read, so that only another version is noticed")
    return Check(name, "PASS", f"{entry.target.name}: {_short(identity)}")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _short(identity: dict[str, Any]) -> str:
    digest = identity.get("config_sha256")
    return f"configuration {digest[:12]}" if digest else "identity unknown"
