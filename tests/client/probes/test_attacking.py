"""Query attacks on targets: books, budgets, verification, and runs that are resumed in the middle of an attack."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError, NotReadyError, WorkerEndedError
from defensemble.probes import Boundary, FunctionTarget, LabelledImages, ProbeOutcome, Progress, RunOptions, Square, measure, merge
from defensemble.probes.attacking import answers_from_response
from defensemble.probes.base import QueryAttack
from defensemble.probes.targets import Response
from tests.support.facts import assert_facts, raises
from tests.support.probing import assert_balanced
from tests.support.query_attacks import Array, Scripted, classes, margins, probabilities, probe_image

COUNT = 8
IMAGES = np.stack([probe_image(number).pixels for number in range(COUNT)])
LABELS = classes(IMAGES)
LABELS[2] = (LABELS[2] + 1) % 4  # wrong when clean: skipped
DATA = LabelledImages(IMAGES, LABELS.astype(np.int64))
ATTACK = Square(epsilon=0.08, queries=40, seed=2)
OPTIONS = RunOptions(workers=1, batch_size=4)


class Dying:
    """The classifier, which fails from a call on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls, self._fails_at = 0, fails_at

    def __call__(self, images: Array) -> Array:
        self.calls += 1
        if self._fails_at is not None and self.calls > self._fails_at:
            raise NotReadyError("the server stopped")
        return probabilities(images).astype(np.float32)


def run(attack: QueryAttack = ATTACK, function: Any = None, options: RunOptions = OPTIONS, **more: Any) -> ProbeOutcome:
    return measure(attack, [FunctionTarget("net", function or Dying())], DATA, options=options, **more)


def test_the_books_of_an_attack_balance_and_it_goes_on_after_a_failure(tmp_path: Path) -> None:
    whole = run()
    target = whole.targets[0]
    found = target.attack
    assert found is not None
    np.testing.assert_array_equal(found.is_attacked, classes(IMAGES) == LABELS)
    assert not found.is_attacked[2]
    assert found.counted[found.is_attacked].min() >= 1
    assert found.counted.max() <= 40
    broken = ~np.isnan(found.distance)
    assert 0 < broken.sum() < found.is_attacked.sum()
    assert found.distance[broken].max() <= 0.08
    assert_balanced(whole)
    assert (target.queries.counted, target.queries.verification) == (COUNT + found.counted.sum(), broken.sum())
    assert target.queries.repeated == 0
    assert (target.predicted["adversarial"][broken] != LABELS[broken]).all()
    assert [entry["row"] for entry in whole.gallery] == np.flatnonzero(broken)[:6].tolist()

    failed = run(function=Dying(20), ledger=tmp_path / "square.ledger")
    assert failed.failures == {"net": "NotReadyError: the server stopped"}
    assert failed.targets[0].attack is None
    assert failed.json()["targets"][0]["conditions"][0]["accuracy"] is None
    resumed = run(ledger=tmp_path / "square.ledger", resume=True)
    again = resumed.targets[0]
    assert again.attack is not None
    assert again.queries.counted == target.queries.counted
    assert_balanced(resumed)
    assert resumed.json()["targets"][0]["per_image"] == whole.json()["targets"][0]["per_image"]


@pytest.mark.parametrize("attack", [ATTACK, Square(norm="l2", epsilon=0.3, queries=40)])
def test_an_attack_is_compared_with_noise_of_equal_norm(attack: Square) -> None:
    seen: list[Array] = []

    def function(images: Array) -> Array:
        seen.extend(images.copy())
        return probabilities(images).astype(np.float32)

    outcome = run(attack, function)
    found = outcome.targets[0].attack
    assert found is not None
    broken = ~np.isnan(found.distance)
    noisy = np.stack(seen[-broken.sum() :])  # the last images that were sent
    for change, distance in zip(noisy - IMAGES[broken], found.distance[broken], strict=True):
        size = np.abs(change).max() if attack.norm == "linf" else np.linalg.norm(change)
        assert 0.8 * distance < size < 1.0001 * distance  # clipping to [0, 1] makes it smaller
    checks = {check.name: check for check in outcome.checks}
    fooled = int((classes(noisy) != LABELS[broken]).sum())
    assert_facts(checks["more than noise of equal norm"].text, f"net | {attack.norm} norm | fools {fooled} of the {broken.sum()} images")
    assert checks["epsilon 0"].status == "PASS"
    assert "extreme perturbation reaches chance" in checks


@pytest.mark.parametrize(("most", "expected"), [(None, ("PASS", "WARN")), (1, ("FAIL", "WARN"))], ids=["clean only", "clean once"])
def test_checks_find_targets_that_are_right_about_clean_images_only(most: int | None, expected: tuple[str, str]) -> None:
    seen = Counter[bytes]()
    clean = {image.tobytes() for image in IMAGES}

    def function(images: Array) -> Array:
        keys = [image.tobytes() for image in images]
        seen.update(keys)
        is_right = [key in clean and (most is None or seen[key] <= most) for key in keys]
        return np.where(is_right, classes(images), (classes(images) + 1) % 4)

    checks = {check.name: check.status for check in run(Scripted(result="original"), function).checks}
    assert (checks["epsilon 0"], checks["more than noise of equal norm"]) == expected


@pytest.mark.parametrize("in_parallel", [1, 2])
def test_after_a_failure_nothing_more_is_sent(in_parallel: int) -> None:
    function = Dying(12)
    target = FunctionTarget("net", function, max_batch=1)  # each image has a query that waits
    target.in_parallel = in_parallel
    outcome = measure(ATTACK, [target], DATA, options=RunOptions(workers=1))
    assert outcome.failures == {"net": "NotReadyError: the server stopped"}
    assert 12 < outcome.targets[0].queries.sent == function.calls <= 12 + in_parallel


@pytest.mark.slow
@pytest.mark.parametrize("attack", [ATTACK, Square(norm="l2", epsilon=0.3, queries=40), Boundary(steps=30)])
def test_shards_of_an_attack_equal_the_whole(attack: QueryAttack) -> None:
    whole, shards = run(attack, options=RunOptions(workers=2, budget=60)), []
    for number, chosen in enumerate((slice(2, 3), slice(3, 8), slice(0, 2)), 1):  # of the first one, nothing is attacked
        data, rows = LabelledImages(IMAGES[chosen], DATA.labels[chosen]), np.arange(COUNT)[chosen]
        options = RunOptions(workers=1, budget=60, batch_size=1, shard=(number, 3))
        shards.append(measure(attack, [FunctionTarget("net", Dying())], data, rows=rows, options=options))
    merged = merge(shards)
    for key in ("per_image", "attack", "conditions", "uncertainty"):
        assert merged.json()["targets"][0][key] == whole.json()["targets"][0][key]
    assert_balanced(merged)


@pytest.mark.slow
def test_at_epsilon_0_no_image_is_broken() -> None:
    outcome = run(Square(epsilon=0.0))
    rates = outcome.json()["targets"][0]
    assert (rates["attack"]["success"]["successes"], rates["conditions"][0]["defense_rate"]["value"]) == (0, 1)
    assert rates["queries"]["counted"] == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("input_type", ["float32", "8bit"])
def test_every_query_is_in_range_and_encoded(input_type: Any) -> None:
    seen: list[Array] = []

    def function(images: Array) -> Array:
        seen.append(images.copy())
        return probabilities(images).astype(np.float32)

    outcome = run(function=function, options=RunOptions(input=input_type, workers=2))
    values = np.concatenate(seen)
    assert 0 <= values.min() <= values.max() <= 1
    if input_type == "8bit":
        np.testing.assert_allclose(values * 255, np.rint(values * 255), atol=1e-4)
    assert {check.status for check in outcome.checks if check.name in ("no query outside [0, 1]", "examples are sent once more")} == {
        "PASS"
    }
    assert outcome.name == f"square-{input_type}"


@pytest.mark.slow
def test_an_example_that_is_not_misclassified_again_does_not_count() -> None:
    """A target that changes its mind: it is right about each image that it sees for the second time."""
    known: set[bytes] = set()

    def function(images: Array) -> Array:
        values = probabilities(images).astype(np.float32)
        for index, image in enumerate(images):
            original = np.abs(IMAGES - image).max(axis=(1, 2, 3)).argmin()
            if image.tobytes() in known:
                values[index] = np.eye(4, dtype=np.float32)[LABELS[original]]
            known.add(image.tobytes())
        return values

    outcome = run(function=function)
    attack = outcome.targets[0].attack
    assert attack is not None
    assert outcome.targets[0].queries.verification > 0
    assert np.isnan(attack.distance).all()
    [check] = [check for check in outcome.checks if check.name == "examples are sent once more"]
    assert (check.status, check.text.split()[1]) == ("WARN", "0")


@pytest.mark.slow
def test_a_budget_ends_an_attack_with_the_best_so_far() -> None:
    few, many = (run(options=RunOptions(budget=budget, workers=1)) for budget in (3, 40))
    first, second = few.targets[0].attack, many.targets[0].attack
    assert first is not None
    assert second is not None
    assert first.counted.max() == 3
    assert first.is_spent.any()
    early = [bool(trace) and trace[0][0] <= 3 for trace in second.traces]
    np.testing.assert_array_equal(~np.isnan(first.distance), early)


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    class Killing(Progress):
        def on_images(self, target: str, done: int, total: int) -> None:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in children if done > COUNT else []:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    with raises(WorkerEndedError, "SIGKILL"):
        run(ledger=tmp_path / "a.ledger", progress=Killing())
    resumed, whole = run(ledger=tmp_path / "a.ledger", resume=True), run()
    assert resumed.json()["targets"][0]["per_image"] == whole.json()["targets"][0]["per_image"]


def test_margins_are_those_of_numpy() -> None:
    expected = margins(IMAGES, LABELS)
    response = Response(classes(IMAGES), probabilities(IMAGES).astype(np.float32))
    np.testing.assert_allclose(answers_from_response(ATTACK, response, LABELS), expected, atol=1e-6)


def test_an_attack_by_margins_needs_probabilities() -> None:
    target = FunctionTarget("net", classes)
    with raises(InputError, "square | probabilities | net"):
        measure(ATTACK, [target], DATA)
