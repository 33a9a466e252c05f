"""The worst case of several probes: an image counts only if no probe found a perturbation that is misclassified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .base import ADVERSARIAL, CLEAN, Condition
from .outcome import Check, ProbeOutcome, QueryCounts, TargetOutcome, same_json

WORST_CASE = "worst case"
_THREAT = "The attacker of each probe, and for the worst case all of them: an image counts as correct if it is under each condition."


def worst_case(outcomes: Sequence[ProbeOutcome], conditions: Mapping[str, str]) -> ProbeOutcome:
    """Return the outcome of a suite: one condition of each probe, and the worst case per image over all.

    Args:
        outcomes: The outcomes of the probes on the same images and targets, in the order of the table.
        conditions: The condition to take, by the name of the probe.

    Raises:
        InputError: The outcomes have different images or targets, or a condition does not exist.
    """
    if not outcomes:
        raise InputError("a suite needs the outcome of at least one probe, got none")
    first = outcomes[0]
    for other in outcomes[1:]:
        if not np.array_equal(first.image_digests, other.image_digests):
            raise InputError(f"{first.probe} and {other.probe} have different images: measure all probes of a suite on the same ones")
        if [target.name for target in first.targets] != [target.name for target in other.targets]:
            raise InputError(f"{first.probe} and {other.probe} have different targets: measure all probes of a suite on the same ones")
    taken = [Condition(f"{outcome.probe}: {_condition(outcome, conditions).name}") for outcome in outcomes]
    return replace(
        first,
        probe="suite",
        title=f"Suite of {', '.join(outcome.probe for outcome in outcomes)}",
        threat_model=_THREAT,
        paper=None,
        norm=None,
        settings={outcome.probe: dict(outcome.settings) for outcome in outcomes},
        conditions=(*taken, Condition(WORST_CASE)),
        is_source_fooled={},
        targets=tuple(_target(outcomes, number, conditions, taken) for number in range(len(first.targets))),
        checks=(
            *(replace(check, name=f"{outcome.probe}: {check.name}") for outcome in outcomes for check in outcome.checks),
            *(_same_target_check(outcomes, number) for number in range(len(first.targets))),
        ),
        gallery=tuple(entry for outcome in outcomes for entry in outcome.gallery),
        duration_s=sum(outcome.duration_s for outcome in outcomes),
        details={outcome.probe: dict(outcome.details) for outcome in outcomes if outcome.details},
    )


def _same_target_check(outcomes: Sequence[ProbeOutcome], number: int) -> Check:
    """Return the check that all probes measured the same version of a target."""
    first = outcomes[0].targets[number]
    identities = {outcome.probe: dict(outcome.targets[number].identity) for outcome in outcomes}
    changed = [
        probe for probe, identity in identities.items() if identity and first.identity and not same_json(identity, dict(first.identity))
    ]
    if changed:
        text = f"{first.name}: it was another version or configuration under {', '.join(changed)} than under {outcomes[0].probe}"
        return Check("target did not change between probes", "FAIL", f"{text}: measure the suite again")
    return Check("target did not change between probes", "PASS", f"{first.name}: the same under all probes")


def _condition(outcome: ProbeOutcome, conditions: Mapping[str, str]) -> Condition:
    name = conditions[outcome.probe]
    for condition in outcome.conditions:
        if condition.name == name:
            return condition
    raise InputError(f"{outcome.probe} has no condition {name!r}; it has {', '.join(condition.name for condition in outcome.conditions)}")


def _target(outcomes: Sequence[ProbeOutcome], number: int, conditions: Mapping[str, str], taken: Sequence[Condition]) -> TargetOutcome:
    """Return what all probes found for one target."""
    targets = [outcome.targets[number] for outcome in outcomes]
    failure = next((target.failure for target in targets if target.failure is not None), None)
    predicted: dict[str, NDArray[np.int64]] = {}
    if CLEAN in targets[0].predicted:
        predicted[CLEAN] = targets[0].predicted[CLEAN]
    worst = predicted.get(CLEAN)
    for outcome, target, condition in zip(outcomes, targets, taken, strict=True):
        classes = _classes(outcome, target, _condition(outcome, conditions).name)
        if classes is not None:
            predicted[condition.name] = classes
        worst = None if worst is None or classes is None else np.where(worst == outcome.labels, classes, worst)
    if worst is not None:
        predicted[WORST_CASE] = worst
    counts = [target.queries for target in targets]
    return replace(
        targets[0],
        failure=failure,
        queries=QueryCounts(*(sum(getattr(count, name) for count in counts) for name in QueryCounts.__dataclass_fields__)),
        predicted=predicted,
        entropy={CLEAN: targets[0].entropy[CLEAN]} if CLEAN in targets[0].entropy else {},
        mutual_information={},
        attack=None,
        details={outcome.probe: dict(target.details) for outcome, target in zip(outcomes, targets, strict=True) if target.details},
    )


def _classes(outcome: ProbeOutcome, target: TargetOutcome, condition: str) -> NDArray[np.int64] | None:
    """Return the classes under a condition. Where a query attack found nothing within its norm, they are those of the clean image."""
    if target.attack is None:
        return target.predicted.get(condition)
    correct = outcome.correct(target, condition)
    if correct is None:
        return None
    clean = target.predicted[CLEAN]
    return np.where(correct | (clean != outcome.labels), clean, target.predicted[ADVERSARIAL])
