"""The attacks of many images in one process: counting, budgets, replays, encoding, the best query so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from defensemble.probes.base import QueryAttack
from defensemble.probes.lanes import AttackSettings, Finished
from defensemble.probes.square import Square
from tests.support.facts import raises
from tests.support.query_attacks import Scripted, image_of, probe_image, run_lanes, task

ATTACKS = (Scripted(sizes=(1, 3, 5, 1, 7, 2)), Square(norm="l2", epsilon=0.3, queries=40), Square(epsilon=0.05, queries=40))


def assert_same(found: Finished, expected: Finished) -> None:
    for name in ("position", "counted", "is_spent", "trace", "excess"):
        assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_array_equal([found.distance, found.mean_square], [expected.distance, expected.mean_square])
    assert (found.example is None) == (expected.example is None)
    if found.example is not None and expected.example is not None:
        np.testing.assert_array_equal(found.example, expected.example)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_image_does_not_depend_on_the_others(attack: QueryAttack) -> None:
    settings = AttackSettings(attack, budget=30, max_batch=4)
    together = run_lanes(settings, [task(number) for number in range(8)])
    for number, log in together.items():
        single = run_lanes(settings, [task(number)])[number]
        assert log.queries == single.queries
        assert_same(log.found, single.found)


@given(st.data())
@hypothesis_settings(max_examples=40, deadline=None)
def test_a_replayed_attack_asks_only_the_rest_and_finds_the_same(data: st.DataObject) -> None:
    settings = AttackSettings(data.draw(st.sampled_from(ATTACKS)), data.draw(st.integers(1, 45)), max_batch=data.draw(st.integers(1, 8)))
    whole = run_lanes(settings, [task(0)])[0]
    known = data.draw(st.integers(0, len(whole.responses)))
    resumed = run_lanes(settings, [task(0, np.array(whole.responses[:known], np.float64))])[0]
    assert resumed.queries == whole.queries[known:]
    assert_same(resumed.found, whole.found)


@pytest.mark.parametrize("budget", [1, 3, 4, 5, 18, 19, 20, None])
def test_the_budget_is_exact_and_the_best_so_far_stands(budget: int | None) -> None:
    log = run_lanes(AttackSettings(ATTACKS[0], budget, max_batch=4), [task(1)])[1]
    expected = min(19, budget or 19)
    assert log.found.counted == len(log.queries) == expected
    assert log.found.is_spent == (expected < 19)
    image = probe_image(1)
    distances = [np.linalg.norm(image_of(query).astype(np.float64) - image.pixels) for query in log.queries]
    wrong = [(distance, number) for number, distance in enumerate(distances, 1) if log.responses[number - 1] != image.label]
    if wrong:
        distance, number = min(wrong)
        assert log.found.distance == pytest.approx(distance)
        assert log.found.mean_square == pytest.approx(distance**2 / 36)
        assert log.found.trace[-1] == (number, log.found.distance)
        np.testing.assert_array_equal(log.found.example, image_of(log.queries[number - 1]))
    else:
        assert (log.found.example, log.found.trace) == (None, [])
        assert np.isnan([log.found.distance, log.found.mean_square]).all()


def test_the_attacks_own_result_counts_only_if_it_is_misclassified_when_it_is_asked() -> None:
    for number in range(12):
        log = run_lanes(AttackSettings(Scripted(sizes=(), result="unasked"), budget=5), [task(number)])[number]
        assert log.found.counted == len(log.queries) == 1
        assert (log.found.example is not None) == (log.responses[0] != probe_image(number).label)
    assert run_lanes(AttackSettings(Scripted(sizes=(), result="original"), budget=5), [task(0)])[0].found.example is None
    spent = run_lanes(AttackSettings(Scripted(sizes=(2,), result="original"), budget=2), [task(0)])[0].found
    assert (spent.counted, spent.is_spent) == (2, True)


@pytest.mark.parametrize("input_type", ["float32", "8bit"])
def test_queries_are_clipped_and_rounded_before_they_are_asked(input_type: str) -> None:
    settings = AttackSettings(Scripted(sizes=(6,), scale=1.5), budget=9, input="8bit" if input_type == "8bit" else "float32")
    log = run_lanes(settings, [task(2)])[2]
    images = np.stack([image_of(query) for query in log.queries])
    assert images.min() == 0
    assert images.max() == 1
    assert 0.2 < log.found.excess <= 0.25
    levels = np.rint(images * np.float32(255)) / np.float32(255)
    assert np.array_equal(images, levels) == (input_type == "8bit")


@pytest.mark.parametrize(("problem", "facts"), [("shape", "(1, 6, 6) | scripted"), ("nan", "NaN | scripted")])
def test_an_invalid_query_is_an_error(problem: Any, facts: str) -> None:
    with raises(ValueError, facts):
        run_lanes(AttackSettings(Scripted(problem=problem), budget=5), [task(0)])


def test_an_attack_that_raises_is_not_taken_for_one_that_found_nothing() -> None:
    with raises(KeyError, "a fault of this attack"):
        run_lanes(AttackSettings(Scripted(problem="raise"), budget=5), [task(0), task(1)])
