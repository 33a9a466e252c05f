from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import InputError
from defensemble.probes import Folders, Noise, Square
from defensemble.probes.base import NOISE, Probe
from defensemble.probes.limits import LIMITS, check_limits, limits_from_texts, misses
from tests.support.facts import assert_facts, raises
from tests.support.outcomes import attack_outcome, outcome, random_labels, target


@given(st.sampled_from([name for name in LIMITS if name != "defense_rate_source_fooled"]), st.floats(0, 1))
@settings(max_examples=15)
def test_the_lowest_rate_over_the_conditions_is_compared(name: str, limit: float) -> None:
    measured = outcome(25)
    values = measured.json()
    found = {miss.target: miss for miss in misses(measured, {name: limit})}
    for one in values["targets"]:
        rates = {"clean": one["clean"]} if name == "clean" else {rates["name"]: rates[name] for rates in one["conditions"]}
        condition = min(rates, key=lambda key: rates[key]["value"])
        assert (one["name"] in found) == (rates[condition]["value"] < limit)
        if one["name"] in found:
            miss = found[one["name"]]
            assert (miss.condition, miss.rate_name, miss.limit) == (condition, name, limit)
            assert miss.rate is not None
            assert miss.rate.json() == rates[condition]
            assert_facts(str(miss), f"{one['name']} | {name} | n = 25" if name in ("clean", "accuracy") else f"{one['name']} | {name}")


@pytest.mark.parametrize(
    ("probe", "limits", "facts"),
    [
        (Noise((8.0,)), {"defense_rate_source_fooled": 0.5}, "noise | defense_rate_source_fooled"),
        (Square(), {"defense_rate_source_fooled": 0.5}, "square | defense_rate_source_fooled"),
        (Folders(), {"clean": 0.5, "defense_rate": 0.5}, "folders | defense_rate | clean"),
    ],
)
def test_limits_that_a_probe_cannot_have_are_refused_before_it_runs(probe: Probe, limits: dict[str, float], facts: str) -> None:
    with raises(InputError, facts):
        check_limits(probe, limits)
    check_limits(probe, {"clean": 0.5})


def test_a_rate_that_equals_its_limit_is_enough() -> None:
    measured = outcome(25)
    clean = measured.clean_rate(measured.targets[0])
    assert clean is not None
    assert clean.value is not None
    one = replace(measured, targets=measured.targets[:1])
    assert misses(one, {"clean": clean.value}) == []
    assert len(misses(one, {"clean": np.nextafter(clean.value, 2)})) == 1


def test_rates_that_were_not_measured_miss_every_limit() -> None:
    labels = random_labels(10)
    failed = target("beta", labels, ["sigma 8"], failure="gone")
    silent = target("gamma", labels, [], predicted={}, failure="not loaded")
    wrong = target("delta", labels, ["sigma 8", "sigma 32"], accuracy=0)
    found = misses(outcome(10, (failed, silent, wrong)), {"defense_rate": 0.0, "clean": 0.0})
    assert [(miss.target, miss.rate_name, miss.condition) for miss in found] == [
        ("beta", "defense_rate", "sigma 32"),
        ("gamma", "defense_rate", "sigma 8"),
        ("gamma", "clean", "clean"),
        ("delta", "defense_rate", "sigma 8"),
    ]
    assert "not measured" in str(found[0])
    assert "no images" in str(found[3])


def test_the_baseline_of_random_noise_has_no_limit() -> None:
    measured = outcome(25)
    low, high = measured.conditions
    condition = misses(measured, {"accuracy": 1.0})[0].condition
    assert condition == high.name
    baseline = replace(measured, conditions=(low, replace(high, group=NOISE)))
    assert misses(baseline, {"accuracy": 1.0})[0].condition == low.name


def test_rates_of_attacks_and_of_transferred_examples_have_limits() -> None:
    assert misses(attack_outcome(), {"accuracy": 1.0})[0].condition == "l2 1"
    transfer = outcome(20, is_source_fooled={"sigma 8": np.ones(20, np.bool_)})
    assert {miss.condition for miss in misses(transfer, {"defense_rate_source_fooled": 1.0})} == {"sigma 8"}
    with raises(InputError, "noise | defense_rate_source_fooled"):
        misses(outcome(), {"defense_rate_source_fooled": 0.5})


def test_limits_are_parsed() -> None:
    assert limits_from_texts(["defense_rate=0.7", "clean=1", "accuracy=0"]) == {"defense_rate": 0.7, "clean": 1.0, "accuracy": 0.0}
    assert limits_from_texts([]) == {}


@pytest.mark.parametrize(
    ("texts", "facts"),
    [
        (["robustness=0.7"], "robustness=0.7 | defense_rate | accuracy_on_common"),
        (["0.7"], "0.7 | RATE=VALUE"),
        (["accuracy=70"], "accuracy | 70"),
        (["accuracy="], "accuracy | ''"),
        (["accuracy=nan"], "nan"),
        (["accuracy=-0.1"], "-0.1"),
        (["accuracy=x"], "'x'"),
        (["accuracy=0.5", "accuracy=0.6"], "accuracy | 0.5 | 0.6"),
    ],
)
def test_other_texts_are_refused(texts: list[str], facts: str) -> None:
    with raises(InputError, facts):
        limits_from_texts(texts)
