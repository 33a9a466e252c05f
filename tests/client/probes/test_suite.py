"""The worst case of several probes equals what numpy finds image by image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from defensemble import InputError
from defensemble.probes import ProbeOutcome, worst_case
from defensemble.probes.suite import WORST_CASE
from tests.support.facts import assert_facts, raises
from tests.support.outcomes import attack_outcome, outcome

TAKEN = {"noise": "sigma 8", "boundary": "l2 0.5"}


def parts(n: int = 40) -> list[ProbeOutcome]:
    """The outcomes of noise and of an attack on the same targets, which give the clean images the same classes."""
    noise, attack = outcome(n), attack_outcome(n)
    targets = [
        replace(other, predicted={**other.predicted, "clean": target.predicted["clean"]})
        for target, other in zip(attack.targets, noise.targets, strict=True)
    ]
    return [replace(noise, targets=tuple(targets)), attack]


def test_an_image_is_correct_if_it_is_under_each_condition() -> None:
    noise, attack = parts()
    suite = worst_case([noise, attack], TAKEN)
    assert [condition.name for condition in suite.conditions] == ["noise: sigma 8", "boundary: l2 0.5", WORST_CASE]
    for number, target in enumerate(suite.targets):
        clean = attack.targets[number].predicted["clean"] == attack.labels
        noisy = noise.targets[number].predicted["sigma 8"] == noise.labels
        found = attack.targets[number].attack
        assert found is not None
        safe = clean & np.array([not distance <= 0.5 for distance in found.distance])  # True for NaN
        for name, expected in (("noise: sigma 8", noisy), ("boundary: l2 0.5", safe), (WORST_CASE, clean & noisy & safe)):
            np.testing.assert_array_equal(target.predicted[name] == suite.labels, expected, err_msg=name)
    queries = [target.queries for target in suite.targets]
    assert [count.sent for count in queries] == [
        one.queries.sent + other.queries.sent for one, other in zip(noise.targets, attack.targets, strict=True)
    ]
    rates = suite.json()["targets"][0]["conditions"]
    assert rates[-1]["accuracy"]["value"] <= min(entry["accuracy"]["value"] for entry in rates[:-1])


def test_a_failed_target_has_no_worst_case() -> None:
    noise, attack = parts()
    failed = replace(noise.targets[0], failure="NotReadyError: stopped", predicted={"clean": noise.targets[0].predicted["clean"]})
    suite = worst_case([replace(noise, targets=(failed, noise.targets[1])), attack], TAKEN)
    assert suite.failures == {"alpha": "NotReadyError: stopped"}
    assert WORST_CASE not in suite.targets[0].predicted
    assert suite.json()["targets"][0]["conditions"][-1]["accuracy"] is None


def test_a_target_that_changed_between_two_probes_fails_a_check() -> None:
    noise, attack = parts()
    edited = replace(attack.targets[0], identity={"version": "2"})
    suite = worst_case([noise, replace(attack, targets=(edited, attack.targets[1]))], TAKEN)
    found = {check.text.split(":")[0]: check for check in suite.checks if check.name == "target did not change between probes"}
    assert {name: check.status for name, check in found.items()} == {"alpha": "FAIL", "beta": "PASS"}
    assert_facts(found["alpha"].text, "noise | boundary")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda noise, attack: [], "at least one | none"),
        (lambda noise, attack: [noise, replace(attack, image_digests=attack.image_digests + 1)], "noise | boundary | different images"),
        (lambda noise, attack: [noise, replace(attack, targets=attack.targets[::-1])], "noise | boundary | different targets"),
        (lambda noise, attack: [noise, replace(attack, conditions=attack.conditions[1:])], "boundary | l2 0.5 | l2 1"),
    ],
)
def test_outcomes_that_do_not_fit_together_are_refused(change: Any, facts: str) -> None:
    with raises(InputError, facts):
        worst_case(change(*parts()), TAKEN)
