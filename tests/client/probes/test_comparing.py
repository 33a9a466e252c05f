from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from defensemble import InputError
from defensemble.probes.base import Condition
from defensemble.probes.comparing import compare
from defensemble.probes.outcome import ProbeOutcome
from defensemble.probes.outcome_reader import outcome_from_json
from defensemble.results.statistics import difference_interval
from tests.support.facts import assert_facts, raises
from tests.support.outcomes import attack_outcome, outcome, split, target


def later(whole: ProbeOutcome, *names: str) -> ProbeOutcome:
    """The same images, measured again on targets of these names, which respond otherwise."""
    conditions = [condition.name for condition in whole.conditions]
    targets = tuple(replace(target(f"{name}+", whole.labels, conditions, 0.6), name=name) for name in names)
    return replace(whole, targets=targets)


def test_the_same_targets_are_compared_on_the_same_images() -> None:
    a = outcome(60)
    b = later(a, "beta", "gamma", "alpha")
    found = compare(a, b)
    assert (found.settings, found.n_same, found.notes) == ((), 60, ())
    assert [(one.a, one.b) for one in found.targets] == [("alpha", "alpha"), ("beta", "beta")]
    in_a, in_b = a.targets[0], b.targets[2]
    for one in found.targets[0].rates:
        assert (one.low, one.high) == (None, None)
        if one.name != "accuracy":
            assert one.test is None
            continue
        right_a, right_b = (each.predicted[one.condition] == a.labels for each in (in_a, in_b))
        assert one.a is not None
        assert one.b is not None
        assert (one.a.successes, one.b.successes, one.a.n) == (right_a.sum(), right_b.sum(), 60)
        assert one.difference == pytest.approx(right_b.mean() - right_a.mean())
        only_a, only_b = int((right_a > right_b).sum()), int((right_b > right_a).sum())
        assert one.test is not None
        assert (one.test.only_a, one.test.only_b) == (only_a, only_b)
        assert one.test.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    names = [(one.condition, one.name) for one in found.targets[0].rates]
    assert names == [
        ("clean", "accuracy"),
        *((condition, name) for condition in ("sigma 8", "sigma 32") for name in ("accuracy", "defense_rate", "accuracy_on_common")),
    ]


def test_an_outcome_does_not_differ_from_itself_read_from_a_file() -> None:
    a = attack_outcome()
    found = compare(a, outcome_from_json(a.json()))
    assert (found.settings, found.n_same) == ((), 40)
    assert {one.difference for both in found.targets for one in both.rates} == {0.0}
    assert {one.test.p for both in found.targets for one in both.rates if one.test is not None} == {1.0}
    assert found.json() == json.loads(json.dumps(found.json(), allow_nan=False))


def test_named_targets_are_compared_and_their_identities() -> None:
    a, b = outcome(), later(outcome(), "gamma")
    found = compare(a, b, [("alpha", "gamma"), ("beta", "gamma")])
    assert [(one.a, one.b, one.identity) for one in found.targets] == [("alpha", "gamma", ("digest",)), ("beta", "gamma", ("digest",))]
    with raises(InputError, "second | delta | gamma"):
        compare(a, b, [("alpha", "delta")])
    with raises(InputError, "alpha, beta | gamma | alpha=gamma"):
        compare(a, b)


def test_the_images_that_both_have_are_compared_in_any_order() -> None:
    a = outcome(40)
    backwards = np.arange(39, 9, -1)
    [b] = split(a, 1)
    b = replace(b, shard=None, rows=a.rows[backwards], labels=a.labels[backwards], image_digests=a.image_digests[backwards])
    predicted = {name: values[backwards] for name, values in a.targets[0].predicted.items()}
    b = replace(b, targets=(replace(a.targets[0], predicted=predicted, entropy={}, mutual_information={}),))
    found = compare(a, b)
    assert found.n_same == 30
    assert_facts(found.notes[0], "30 | 40")
    assert [one.test.only_a + one.test.only_b for one in found.targets[0].rates if one.test is not None] == [0, 0, 0]
    assert ("data.n", 40, 30) in found.settings


@pytest.mark.parametrize("is_same_row", [True, False])
def test_other_images_have_intervals_instead_of_tests(is_same_row: bool) -> None:
    a = outcome(40)
    b = later(a, "alpha")
    b = replace(b, image_digests=a.image_digests + 1) if is_same_row else replace(b, rows=a.rows + 1000)
    found = compare(a, b)
    assert found.n_same == 0
    assert_facts(found.notes[0], "independent")
    for one in found.targets[0].rates:
        assert one.test is None
        assert one.a is not None
        assert one.b is not None
        assert (one.low, one.high) == difference_interval(one.a, one.b)


def test_other_settings_conditions_and_failures_are_listed() -> None:
    a = outcome()
    failed = replace(later(a, "alpha").targets[0], failure="gone", predicted={})
    b = replace(
        a,
        input="8bit",
        settings={"seed": 3, "sigmas": (8.0,), "kind": "uniform"},
        conditions=(a.conditions[0], Condition("sigma 99")),
        class_names=("a", "b", "c"),
        targets=(failed,),
    )
    found = compare(a, b)
    assert dict((key, (one, other)) for key, one, other in found.settings) == {
        "input": ("float32", "8bit"),
        "settings.sigmas": ((8.0, 32.0), (8.0,)),
        "settings.kind": (None, "uniform"),
        "class_names": (a.class_names, b.class_names),
    }
    text = " ".join(found.notes)
    assert_facts(text, "classes differ | first result has sigma 32 | second result has sigma 99 | alpha failed")
    assert {one.difference for one in found.targets[0].rates} == {None}
    assert {one.b for one in found.targets[0].rates} == {None}
