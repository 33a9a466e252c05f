from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import InputError, wilson
from defensemble.probes.base import ADVERSARIAL, CLEAN, Condition
from defensemble.probes.outcome import AttackOutcome, ProbeOutcome, QueryCounts, TargetOutcome
from defensemble.probes.rates import MAX_TARGETS_IN_PAIRS
from tests.support.outcomes import NORMS, SIGMAS, attack_outcome, attacked_target, outcome, random_labels, target


def share(hits: list[bool]) -> dict[str, Any]:
    """The rate of a list, as JSON."""
    n, successes = len(hits), sum(hits)
    low, high = wilson(successes, n) if n else (None, None)
    return {"value": successes / n if n else None, "successes": successes, "n": n, "low": low, "high": high}


def right(one: TargetOutcome, condition: str, index: int, labels: list[int]) -> bool:
    return int(one.predicted[condition][index]) == labels[index]


@given(st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=30)
def test_rates_are_counts_over_their_own_images(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(n)
    names = (CLEAN, "sigma 8", "sigma 32")
    targets = [target(name, labels, (), predicted={key: rng.integers(3, size=n) for key in names}) for name in ("alpha", "beta")]
    fooled = {"sigma 8": rng.random(n) < 0.5}
    values = outcome(n, targets, is_source_fooled=fooled).json()
    truth = labels.tolist()
    common = [all(right(one, CLEAN, index, truth) for one in targets) for index in range(n)]
    assert values["data"]["n_common"] == sum(common)
    for one, found in zip(targets, values["targets"], strict=True):
        clean = [right(one, CLEAN, index, truth) for index in range(n)]
        assert found["clean"] == share(clean)
        assert found["skipped"] == clean.count(False)
        for name, rates in zip(("sigma 8", "sigma 32"), found["conditions"], strict=True):
            correct = [right(one, name, index, truth) for index in range(n)]
            assert rates["name"] == name
            assert rates["accuracy"] == share(correct)
            assert rates["defense_rate"] == share([correct[index] for index in range(n) if clean[index]])
            assert rates["accuracy_on_common"] == share([correct[index] for index in range(n) if common[index]])
            on_fooled = [correct[index] for index in range(n) if clean[index] and fooled["sigma 8"][index]]
            assert rates["defense_rate_source_fooled"] == (share(on_fooled) if name == "sigma 8" else None)


def test_a_failed_target_has_no_rates_from_there_on_and_no_image_is_common() -> None:
    labels = random_labels(20)
    stopped = target("beta", labels, ["sigma 8"], failure="the server is gone")
    silent = target("gamma", labels, [], predicted={}, entropy={}, mutual_information={}, failure="not loaded")
    measured = outcome(20, (target("alpha", labels, ["sigma 8", "sigma 32"]), stopped))
    values = measured.json()
    assert values["targets"][1]["conditions"][0]["accuracy_on_common"] is not None  # all clean images were measured
    assert values["targets"][1]["conditions"][1] == {
        "name": "sigma 32",
        **dict.fromkeys(("accuracy", "defense_rate", "defense_rate_source_fooled", "accuracy_on_common")),
    }
    assert [(test["condition"], test["n"]) for test in values["comparisons"]] == [(CLEAN, 20), ("sigma 8", 20)]
    values = replace(measured, targets=(measured.targets[0], silent)).json()
    assert values["data"]["n_common"] is None
    assert [rates["accuracy_on_common"] for rates in values["targets"][0]["conditions"]] == [None, None]
    assert (values["targets"][1]["clean"], values["targets"][1]["skipped"]) == (None, None)
    assert values["comparisons"] == []


def test_images_that_are_all_wrong_when_clean_give_rates_without_a_value() -> None:
    labels = random_labels(5)
    wrong = target("alpha", labels, ["sigma 8", "sigma 32"], accuracy=0)
    rates = outcome(5, (wrong,)).json()["targets"][0]["conditions"][0]
    assert rates["defense_rate"] == rates["accuracy_on_common"] == share([])
    assert rates["accuracy"]["n"] == 5


def test_an_attack_counts_verified_examples_within_the_norm_of_the_condition() -> None:
    measured = attack_outcome(60)
    truth = measured.labels.tolist()
    for one, found in zip(measured.targets, measured.json()["targets"], strict=True):
        assert one.attack is not None
        distances = [math.inf if math.isnan(value) else value for value in one.attack.distance.tolist()]
        clean = [right(one, CLEAN, index, truth) for index in range(60)]
        attacked = [index for index in range(60) if clean[index]]
        for condition, rates in zip(NORMS, found["conditions"], strict=True):
            assert condition.value is not None
            robust = [clean[index] and distances[index] > condition.value for index in range(60)]
            assert rates["accuracy"] == share(robust)
            assert rates["defense_rate"] == share([robust[index] for index in attacked])
        attack = found["attack"]
        broken = [index for index in attacked if distances[index] <= 1]
        assert attack["epsilon"] == 1
        assert attack["success"] == share([index in broken for index in attacked])
        first = sorted(next(query for query, distance in one.attack.traces[index] if distance <= 1) for index in broken)
        assert attack["median_queries"] == pytest.approx((first[(len(first) - 1) // 2] + first[len(first) // 2]) / 2)
        assert attack["censored"] == sum(bool(one.attack.is_spent[index]) for index in attacked if index not in broken)
        squares = sorted(distances[index] ** 2 / 48 for index in attacked)
        assert attack["n_found"] == sum(square < math.inf for square in squares)
        middle = (squares[(len(squares) - 1) // 2] + squares[len(squares) // 2]) / 2
        assert attack["s_m"]["value"] == (pytest.approx(middle) if middle < math.inf else None)
        assert attack["s_m"]["n"] == len(attacked)
        for queries, part in attack["queries_curve"]:
            assert part == pytest.approx(sum(query <= queries for query in first) / len(attacked))
        assert attack["queries_curve"][-1] == pytest.approx([max(one.attack.counted.tolist()), len(broken) / len(attacked)])
        for norm, accuracy in attack["distance_curve"]:
            assert accuracy == pytest.approx(sum(distances[index] > norm for index in attacked) / 60)
        assert attack["distance_curve"][0] == [0.0, len(attacked) / 60]


def small_attack(distances: list[float], **changes: Any) -> ProbeOutcome:
    """An attack on images that are all classified correctly."""
    n = len(distances)
    labels = random_labels(n)
    distance = np.array(distances)
    values = {
        "is_attacked": np.ones(n, np.bool_),
        "distance": distance,
        "mean_square": distance**2,
        "counted": np.full(n, 9),
        "is_spent": np.ones(n, np.bool_),
        "traces": [[] for _ in distances],
    }
    attack = AttackOutcome(**{**values, **changes.pop("attack", {})})
    one = attacked_target("alpha", labels, predicted={CLEAN: labels, ADVERSARIAL: labels}, entropy={}, attack=attack)
    return attack_outcome(n, targets=(one,), **changes)


def test_an_example_at_exactly_the_norm_counts_in_spite_of_the_rounding_of_float32() -> None:
    image = np.linspace(0, 0.9, 50, dtype=np.float32)
    moved = image + np.float32(8 / 255)
    distance = float(np.abs(moved.astype(np.float64) - image).max())
    assert distance > 8 / 255
    conditions = (Condition("8", 8.0, "1/255"),)
    assert small_attack([distance, 8.01 / 255], conditions=conditions).json()["targets"][0]["conditions"][0]["accuracy"]["successes"] == 1


def test_s_m_is_infinite_where_most_images_have_no_example() -> None:
    attack = small_attack([0.1, np.nan, np.nan]).json()["targets"][0]["attack"]
    assert attack["s_m"] == {"value": None, "low": pytest.approx(0.01), "high": None, "n": 3}
    assert (attack["n_found"], attack["censored"]) == (1, 2)
    assert attack["queries_curve"] == [[0.0, 0.0], [9.0, pytest.approx(1 / 3)]]  # no trace: all queries count


@pytest.mark.parametrize(
    ("budget", "settings", "expected"),
    [(9, {}, 2), (10, {}, 0), (None, {"queries": 9}, 2), (None, {"queries": 10}, 0), (9, {"queries": 10}, 2), (None, {}, 0)],
)
def test_an_attack_that_ends_by_itself_at_its_budget_is_censored(budget: int | None, settings: dict[str, Any], expected: int) -> None:
    """Each image has 9 queries; the first one is broken, and the last one has an example outside the norm 1."""
    attack = {"is_spent": np.zeros(3, np.bool_)}
    measured = small_attack([0.1, np.nan, 1.5], attack=attack, budget=budget, settings=settings)
    assert measured.json()["targets"][0]["attack"]["censored"] == expected


def test_an_attack_without_images_to_attack_has_no_values() -> None:
    labels = random_labels(3)
    nothing = {"is_attacked": np.zeros(3, np.bool_), "distance": np.full(3, np.nan), "mean_square": np.full(3, np.nan)}
    measured = small_attack([1.0, 1.0, 1.0], attack={**nothing, "counted": np.zeros(3, np.int64)})
    wrong = replace(measured.targets[0], predicted={CLEAN: labels + 1, ADVERSARIAL: np.full(3, -1)})
    attack = replace(measured, targets=(wrong,)).json()["targets"][0]["attack"]
    assert attack["success"] == share([])
    assert attack["s_m"] is attack["median_queries"] is None
    assert attack["queries_curve"] == []
    assert attack["distance_curve"] == [[0.0, 0.0]]


def test_a_condition_without_a_norm_counts_every_example() -> None:
    found = small_attack([0.2, 50.0, np.nan], conditions=(Condition("any"),)).json()["targets"][0]
    assert found["conditions"][0]["accuracy"]["successes"] == 1
    assert found["attack"]["epsilon"] is None
    assert found["attack"]["success"]["successes"] == 2


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    distances = np.linspace(0.01, 3, 500)
    traces = [[(number, float(distance))] for number, distance in enumerate(distances, 1)]
    measured = small_attack(distances.tolist(), attack={"traces": traces, "counted": np.arange(1, 501)}, conditions=(Condition("any"),))
    attack = measured.json()["targets"][0]["attack"]
    for curve, end in ((attack["queries_curve"], [500.0, 1.0]), (attack["distance_curve"], [3.0, 0.0])):
        assert 150 < len(curve) <= 202
        assert curve[-1] == end


def test_the_tests_of_pairs_count_images_that_only_one_classifies_correctly() -> None:
    measured = outcome(50)
    a, b = measured.targets
    truth = measured.labels.tolist()
    tests = measured.json()["comparisons"]
    expected = [("alpha", "beta", name) for name in (CLEAN, "sigma 8", "sigma 32")]
    assert [(test["a"], test["b"], test["condition"]) for test in tests] == expected
    for test in tests:
        pairs = [(right(a, test["condition"], index, truth), right(b, test["condition"], index, truth)) for index in range(50)]
        assert (test["only_a"], test["only_b"], test["n"]) == (pairs.count((True, False)), pairs.count((False, True)), 50)
        assert 0 < test["p"] <= 1


def test_many_targets_are_only_compared_with_the_first() -> None:
    labels = random_labels(4)
    targets = [target(f"t{number}", labels, ()) for number in range(MAX_TARGETS_IN_PAIRS + 1)]
    few, many = outcome(4, targets[:-1], conditions=()).json(), outcome(4, targets, conditions=()).json()
    assert len(few["comparisons"]) == 45
    assert {test["a"] for test in many["comparisons"]} == {"t0"}
    assert len(many["comparisons"]) == 10
    assert "all pairs" in few["comparison"]
    assert "first target" in many["comparison"]


def test_uncertainty_is_compared_between_clean_and_each_condition() -> None:
    measured = outcome(30)
    found = measured.json()["targets"][0]["uncertainty"]
    assert list(found) == [CLEAN, "sigma 8", "sigma 32"]
    assert found[CLEAN]["entropy"]["auroc"] is None
    one = measured.targets[0]
    for name in ("sigma 8", "sigma 32"):
        wins = [float(b > a) + 0.5 * float(a == b) for a in one.entropy[CLEAN] for b in one.entropy[name]]
        assert found[name]["entropy"]["auroc"]["value"] == pytest.approx(sum(wins) / 900)
        assert found[name]["mutual_information"]["auroc"]["value"] == pytest.approx(sum(wins) / 900)  # a quarter of the entropy
        accuracy = measured.rates(one)[[condition.name for condition in SIGMAS].index(name)].accuracy
        assert accuracy is not None
        assert found[name]["entropy"]["rejection"][0] == [0.0, pytest.approx(accuracy.value)]


def test_the_uncertainty_of_an_attack_is_that_of_what_the_target_receives() -> None:
    measured = attack_outcome(30)
    one, found = measured.targets[0], measured.json()["targets"][0]
    assert set(found["uncertainty"]) == {CLEAN, ADVERSARIAL}
    assert set(found["uncertainty"][ADVERSARIAL]) == {"entropy"}
    adversarial = found["uncertainty"][ADVERSARIAL]["entropy"]
    assert one.attack is not None
    has_example = [not math.isnan(value) for value in one.attack.distance]
    assert (adversarial["auroc"]["n_clean"], adversarial["auroc"]["n_perturbed"]) == (30, sum(has_example))
    received = [one.entropy[ADVERSARIAL if has_example[index] else CLEAN][index] for index in range(30)]
    robust = [right(one, CLEAN, index, measured.labels.tolist()) and not has_example[index] for index in range(30)]
    certain = [hit for _, hit in sorted(zip(received, robust, strict=True))][:15]
    assert dict(map(tuple, adversarial["rejection"]))[0.5] == pytest.approx(sum(certain) / 15, abs=1 / 15)  # with ties, half an image


def test_provenance_is_at_the_top_and_does_not_replace_results() -> None:
    values = outcome().json()
    assert values["url"] == "http://127.0.0.1:1"
    with pytest.raises(InputError, match="targets"):
        outcome(provenance={"targets": 1}).json()


def test_json_is_plain_and_refuses_nan() -> None:
    values = outcome().json()
    assert values == json.loads(json.dumps(values, allow_nan=False))
    assert values["settings"]["sigmas"] == [8.0, 32.0]
    assert values["name"] == "noise-float32"
    assert outcome(settings={"kind": "uniform"}, input="8bit").name == "noise-uniform-8bit"
    with pytest.raises(ValueError, match="JSON"):
        outcome(details={"x": math.nan}).json()


def test_counts_of_queries_are_kept() -> None:
    one = target("alpha", random_labels(4), (), queries=QueryCounts(21, 6, 5, 4, 3, 3))
    assert outcome(4, (one,)).json()["targets"][0]["queries"] == {
        **{"sent": 21, "counted": 6, "verification": 5},
        **{"sanity": 4, "retried": 3, "repeated": 3},
    }
