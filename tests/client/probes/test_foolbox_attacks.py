"""The decision attacks: each image is asked what Foolbox asks at batch 1 after `numpy.random.seed`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from defensemble import InputError, MissingExtraError
from defensemble.probes.base import QueryAttack
from defensemble.probes.foolbox_attacks import Boundary, HopSkipJump, _foolbox
from defensemble.probes.lanes import AttackSettings
from tests.support.facts import raises
from tests.support.query_attacks import Array, classes, probe_image, run_lanes, task

SMALL: dict[str, Any] = {"initial_gradient_eval_steps": 10}
CASES: list[tuple[QueryAttack, str, dict[str, Any]]] = [
    (Boundary(steps=60), "BoundaryAttack", {"steps": 60}),
    (Boundary(steps=45, update_stats_every_k=1), "BoundaryAttack", {"steps": 45, "update_stats_every_k": 1}),  # adapts its steps at 30
    (HopSkipJump(steps=2, **SMALL), "HopSkipJumpAttack", {"steps": 2, **SMALL}),
    (HopSkipJump("linf", steps=2, **SMALL), "HopSkipJumpAttack", {"steps": 2, "constraint": "linf", **SMALL}),
]


def bare_foolbox(kind: str, settings: dict[str, Any], number: int) -> tuple[list[bytes], Array]:
    """Run Foolbox on one image, and return what it asks and its result."""
    foolbox, _ = _foolbox()
    queries: list[bytes] = []

    def model(images: Array) -> Array:
        pixels = np.asarray(images, np.float32)
        queries.extend(image.tobytes() for image in pixels)
        return np.eye(4, dtype=np.float32)[classes(pixels)]

    one = task(number)
    np.random.seed(one.seed)
    attack: Any = getattr(foolbox.attacks, kind)(**settings)
    example, _, is_adversarial = attack(
        foolbox.NumPyModel(model, bounds=(0, 1)), one.image.pixels[None], np.array([one.image.label]), epsilons=None
    )
    assert is_adversarial.all()
    return queries, np.asarray(example[0], np.float32)


@pytest.mark.parametrize(("attack", "kind", "settings"), CASES)
def test_each_image_equals_foolbox_at_batch_1(attack: QueryAttack, kind: str, settings: dict[str, Any]) -> None:
    state: Any = np.random.get_state()
    logs = run_lanes(AttackSettings(attack, budget=None), [task(number) for number in range(3)])
    np.testing.assert_equal(np.random.get_state(), state)
    for number, log in logs.items():
        queries, example = bare_foolbox(kind, settings, number)
        assert log.queries == queries[:-1]  # Foolbox asks for its result once more
        assert queries[-1] == example.tobytes()
        one = task(number)
        returned = attack.attack(one.image, classes, one.seed)
        assert returned is not None
        np.testing.assert_array_equal(returned, example)
        norm = np.linalg.norm((example - one.image.pixels).ravel(), np.inf if attack.norm == "linf" else 2)
        assert log.found.distance <= norm * (1 + 1e-6)


@pytest.mark.parametrize("known", [1, 50, 1000])
def test_a_replayed_attack_equals_the_whole_one(known: int) -> None:
    settings = AttackSettings(CASES[0][0], budget=70)
    whole = run_lanes(settings, [task(0)])[0]
    resumed = run_lanes(settings, [task(0, np.array(whole.responses[:known], np.int16))])[0]
    assert resumed.queries == whole.queries[known:]
    assert (resumed.found.counted, resumed.found.trace) == (70, whole.found.trace)


@pytest.mark.parametrize("attack", [Boundary(steps=5), HopSkipJump(steps=1)])
def test_without_a_starting_point_nothing_is_found(attack: QueryAttack) -> None:
    label = probe_image(0).label
    found = run_lanes(AttackSettings(attack, budget=None), [task(0)], lambda images: np.full(len(images), label))[0].found
    assert (found.example, found.is_spent, found.trace) == (None, False, [])
    assert found.counted == 1000 + 51 + 1


@pytest.mark.parametrize("attack", [HopSkipJump(steps=2), HopSkipJump("linf", steps=2), Boundary(steps=50)])
def test_a_target_that_contradicts_itself_ends_no_run(attack: QueryAttack) -> None:
    generator = np.random.default_rng(0)
    found = run_lanes(AttackSettings(attack, budget=2000), [task(0)], lambda images: generator.integers(0, 4, len(images)))[0].found
    assert found.example is not None
    assert found.counted <= 2000


def test_most_queries_are_about_those_of_a_run() -> None:
    assert Boundary().most_queries(None) == 5553
    assert Boundary().most_queries(2500) == 2500
    assert HopSkipJump().most_queries(None) == pytest.approx(2528, rel=0.05)


def test_without_foolbox_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with raises(MissingExtraError, "pip install 'defensemble[probes]' | Foolbox"):
        Boundary().attack(probe_image(0), classes, 0)


@pytest.mark.parametrize(
    ("kind", "settings", "facts"),
    [
        (Boundary, {"steps": 0}, "steps | 0"),
        (Boundary, {"epsilons": (0.5, -1.0)}, "epsilons | -1.0"),
        (HopSkipJump, {"gamma": float("nan")}, "gamma | nan"),
        (HopSkipJump, {"norm": "l1"}, "'l1' | l2 | linf"),
        (HopSkipJump, {"stepsize_search": "none"}, "'none' | grid_search"),
    ],
)
def test_invalid_settings_are_rejected(kind: type[QueryAttack], settings: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        kind(**settings)
