"""`measure`: the same result however it is interrupted, batched and split; books that balance; bad targets, probes and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from defensemble import InputError, NotReadyError
from defensemble.probes import (
    Condition,
    FunctionTarget,
    LabelledImages,
    Noise,
    PerturbationProbe,
    ProbeImage,
    ProbeOutcome,
    RunOptions,
    measure,
    served_targets,
)
from tests.support.facts import assert_facts, raises
from tests.support.fakes import house
from tests.support.probing import (
    DATA,
    FEW,
    LABELS,
    InterruptedByTestError,
    Interrupting,
    Linear,
    linear,
)
from tests.support.tiny import Array, images, logits

PROBE = Noise((8, 64), seed=3)
COUNTED = 3 * 40


def targets(max_batch: int = 16) -> list[FunctionTarget]:
    return [linear("a", 1, max_batch=max_batch), linear("b", 2, max_batch=max_batch, returns_probabilities=True)]


def checks(outcome: ProbeOutcome) -> dict[str, str]:
    return {f"{check.text.partition(':')[0]}/{check.name}": check.status for check in outcome.checks}


def test_a_failed_target_has_null_rates_from_then_on() -> None:
    bad = FunctionTarget("bad", Linear(1, fails_at=1 + 8 + 2, error=NotReadyError("server stopped")), max_batch=40)
    outcome = measure(Noise((8, 16, 32)), [linear("good", 1), bad], DATA)
    good, failed = outcome.json()["targets"]
    assert (good["failure"], failed["failure"]) == (None, "NotReadyError: server stopped")
    assert all(rates["accuracy_on_common"] is not None for rates in good["conditions"])
    assert failed["conditions"][0]["accuracy"] is not None
    assert [rates["accuracy"] for rates in failed["conditions"][1:]] == [None, None]
    assert failed["queries"]["counted"] == 80
    assert checks(outcome)["bad/target responds"] == "FAIL"


def test_a_target_that_never_responded_leaves_no_common_images() -> None:
    bad = linear("bad", 1, fails_at=0, error=NotReadyError("server stopped"))
    output = measure(Noise((8,)), [linear("good", 1), bad], DATA).json()
    assert output["data"]["n_common"] is None
    assert output["targets"][1]["clean"] is None
    assert output["targets"][0]["conditions"][0]["accuracy"] is not None
    assert output["targets"][0]["conditions"][0]["accuracy_on_common"] is None


def test_the_batch_size_does_not_matter() -> None:
    expected = measure(PROBE, targets(5), FEW).json()["targets"]
    for size in (1, 7, 12):
        outcome = measure(PROBE, targets(12), FEW, options=RunOptions(batch_size=size))
        assert [target["per_image"] for target in outcome.json()["targets"]] == [target["per_image"] for target in expected]
        assert outcome.targets[0].queries.counted == 3 * 12


@pytest.mark.parametrize("count", [1, 3, 12])
def test_shards_equal_the_whole_image_by_image(count: int) -> None:
    whole = measure(PROBE, [linear("a", 1)], FEW).targets[0].predicted
    for number in range(count):
        rows = np.arange(12)[number::count]
        shard = measure(
            PROBE,
            [linear("a", 1)],
            LabelledImages(FEW.images[rows], FEW.labels[rows]),
            rows=rows,
            options=RunOptions(shard=(number + 1, count)),
        )
        assert shard.shard == (number + 1, count)
        for name, classes in shard.targets[0].predicted.items():
            np.testing.assert_array_equal(classes, whole[name][rows])


def test_every_target_gets_the_same_images_within_the_range() -> None:
    both = [linear("a", 1), linear("b", 1)]
    progress = Interrupting()
    measure(Noise((4, 32)), both, DATA, progress=progress)
    seen: list[list[Array]] = [target._function.batches for target in both]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.concatenate(seen[0]), np.concatenate(seen[1]))
    assert [len(batch) for batch in seen[0]] == [*[1] * 8, 16, *[16, 16, 8] * 3, 16]
    assert all(0 <= batch.min() <= batch.max() <= 1 for batch in seen[0])
    steps = [0, 16, 32, 40, 56, 72, 80, 96, 112, 120]
    assert progress.images == [(name, done, 120) for name in ("a", "b") for done in steps]


def test_8bit_images_are_all_that_is_sent() -> None:
    target = linear("a", 1)
    outcome = measure(PROBE, [target], DATA, options=RunOptions(input="8bit"))
    function: Any = target._function
    for batch in function.batches:
        levels = batch.astype(np.float64) * 255
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert outcome.json()["name"] == "noise-gaussian-8bit"


def test_a_function_that_changes_its_argument_changes_no_image() -> None:
    def inverting(batch: Array) -> Array:
        classes: Array = logits(1, batch).argmax(axis=1)
        np.subtract(1, batch, out=batch)
        return classes

    data = LabelledImages(images(40), LABELS)
    measure(PROBE, [FunctionTarget("inverting", inverting)], data)
    np.testing.assert_array_equal(data.images, images(40))


def test_a_target_can_be_measured_again_with_books_of_its_own() -> None:
    (target,) = served_targets("fake", ["alpha"], transport=house())
    first, second = (measure(PROBE, [target], DATA).targets[0].queries for _ in range(2))
    assert (first.sent, first.sanity) == (1 + 8 + 8 + COUNTED + 8, 1 + 8 + 8 + 8)  # with the look-up
    assert (second.sent, second.sanity) == (8 + 8 + COUNTED + 8, 8 + 8 + 8)


@dataclass(frozen=True)
class Bad(PerturbationProbe):
    """Returns what a function makes of an image."""

    function: Callable[[Array], Array] = lambda pixels: pixels
    name: ClassVar[str] = "bad"
    title: ClassVar[str] = "Bad"
    threat_model: ClassVar[str] = "None"

    def settings(self) -> dict[str, Any]:
        return {}

    def conditions(self) -> Sequence[Condition]:
        return [Condition("changed")]

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> Array:
        return self.function(image.pixels)


@pytest.mark.parametrize(
    ("function", "facts"),
    [
        (lambda pixels: pixels + 1, "bad | [0, 1]"),
        (lambda pixels: pixels - 0.5, "bad | [0, 1]"),
        (lambda pixels: pixels * np.nan, "bad | nan | [0, 1]"),
        (lambda pixels: pixels[0], "bad | (4, 4) | (1, 4, 4)"),
        (lambda pixels: pixels[:, :2], "bad | (1, 2, 4) | (1, 4, 4)"),
    ],
)
def test_images_that_a_probe_must_not_make_are_not_sent(function: Callable[[Array], Array], facts: str) -> None:
    target = linear("a", 1)
    with raises(InputError, facts):
        measure(Bad(function), [target], DATA)
    received: Any = target._function
    assert all(0 <= batch.min() <= batch.max() <= 1 for batch in received.batches)
    assert received.count == 16 + 8 + 40  # clean ones


def test_a_random_target_fails_the_check_of_determinism() -> None:
    rng = np.random.default_rng(0)
    outcome = measure(PROBE, [FunctionTarget("random", lambda batch: rng.integers(0, 3, len(batch)))], DATA)
    assert checks(outcome)["random/same image, same response"] == "FAIL"
    noise = FunctionTarget("noise", lambda batch: np.array([[0.6, 0.4]], np.float32) + rng.uniform(0, 0.05, (len(batch), 1)) * [[1, -1]])
    assert checks(measure(PROBE, [noise], DATA))["noise/same image, same response"] == "WARN"
    assert checks(measure(PROBE, [linear("a", 1)], DATA))["a/same image, same response"] == "PASS"


def test_a_target_that_changes_between_queries_fails_a_check(tmp_path: Path) -> None:
    class Edited(FunctionTarget):
        version = 1

        def identity(self) -> dict[str, Any]:
            return {"config_sha256": f"{self.version:064}"}

    answers = Linear(1)

    def edits(batch: Array) -> Array:
        Edited.version = 2
        return answers(batch)

    outcome = measure(PROBE, [Edited("edited", edits, max_batch=40)], DATA)
    assert checks(outcome)["edited/target did not change"] == "PASS", "the first identity is that after the first response"
    Edited.version = 1
    with pytest.raises(InterruptedByTestError):
        measure(PROBE, [Edited("edited", Linear(1))], DATA, ledger=tmp_path / "l", progress=Interrupting(2))
    Edited.version = 7
    outcome = measure(PROBE, [Edited("edited", Linear(1))], DATA, ledger=tmp_path / "l", resume=True)
    assert checks(outcome)["edited/target did not change"] == "FAIL"
    (text,) = [check.text for check in outcome.checks if check.status == "FAIL"]
    assert_facts(text, "edited | 1 | config_sha256")


@pytest.mark.parametrize(("change", "status"), [("none", "PASS"), ("permuted", "WARN"), ("shifted", "FAIL")])
def test_the_accuracy_on_clean_images_is_compared_with_chance(change: str, status: str) -> None:
    batch = images(400)
    true = logits(1, batch).argmax(axis=1)
    rows = np.concatenate([np.flatnonzero(true == label)[:9] for label in range(3)])  # as many of each class
    right = true[rows]
    labels = {"none": right, "permuted": np.random.default_rng(0).permutation(right), "shifted": (right + 1) % 3}[change]
    target = FunctionTarget("a", Linear(1, returns_probabilities=True))
    outcome = measure(PROBE, [target], LabelledImages(batch[rows], labels))
    assert checks(outcome)["a/clean accuracy above chance"] == status
    rates = outcome.json()["targets"][0]
    assert rates["skipped"] == len(rows) - rates["clean"]["successes"]
    if status == "FAIL":
        assert (rates["clean"]["value"], rates["conditions"][0]["defense_rate"]["n"]) == (0, 0)
        assert rates["conditions"][0]["defense_rate"]["value"] is None


def test_images_of_one_class_are_measured() -> None:
    labels = np.zeros(40, np.int64)
    outcome = measure(PROBE, [FunctionTarget("a", Linear(1, returns_probabilities=True))], LabelledImages(images(40), labels))
    assert outcome.json()["targets"][0]["clean"]["successes"] == (LABELS == 0).sum()


def test_the_answers_of_the_result_are_those_that_functions_returned() -> None:
    assert measure(PROBE, [linear("a", 1)], DATA).answers == "labels"
    assert measure(PROBE, [linear("a", 1, returns_probabilities=True)], DATA).answers == "probabilities"
    assert measure(PROBE, targets(), DATA).answers == "labels, probabilities"


def test_the_digest_covers_images_labels_and_their_order() -> None:
    def digest(batch: Array, labels: Array) -> str:
        text: str = measure(Noise((8,)), [linear("a", 1)], LabelledImages(batch, labels)).json()["data"]["sha256"]
        return text

    same = digest(images(40), LABELS)
    assert digest(images(40), LABELS.astype(np.int32)) == same
    assert len({same, digest(images(40)[::-1], LABELS), digest(images(40), LABELS[::-1]), digest(images(39), LABELS[:39])}) == 4


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"images": images(40).astype(np.float64)}, "images | float32"),
        ({"images": images(40)[0]}, "images | shape"),
        ({"images": images(40) * 2}, "images | [0, 1]"),
        ({"images": images(40) * np.float32(np.nan)}, "images | [0, 1]"),
        ({"labels": LABELS[:3]}, "labels | 40 integers"),
        ({"labels": LABELS.astype(float)}, "labels | 40 integers"),
        ({"labels": LABELS.tolist()}, "labels | numpy.asarray"),
        ({"images": images(40)[:, :, :0]}, "images | one pixel"),
        ({"labels": LABELS - 1}, "labels | 0 | -1"),
        ({"images": images(0), "labels": LABELS[:0]}, "at least one"),
    ],
)
def test_invalid_images_are_rejected(change: dict[str, Any], facts: str) -> None:
    arguments = {"images": images(40), "labels": LABELS, **change}
    with raises(InputError, facts):
        LabelledImages(**arguments)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"targets": []}, "no targets"),
        ({"targets": [linear("a", 1), linear("a", 2)]}, "different names | a, a"),
        ({"probe": Noise((8,), seed=-1)}, "seed | 0 or more | -1"),
        ({"probe": Noise((8,), seed=1.5)}, "seed | integer | 1.5"),  # type: ignore[arg-type]
        ({"probe": Noise((8, 8.0000001))}, "different names | sigma 8, sigma 8"),
        ({"targets": {"a": linear("a", 1)}}, "list of targets"),
        ({"rows": np.arange(3)}, "rows | 40 | (3,)"),
        ({"rows": np.arange(40) - 1}, "rows | from 0"),
        ({"rows": np.arange(40) / 2}, "rows | float64"),
        ({"class_names": ["cat"]}, "labels | below 1"),
        ({"ledger": Path("/proc/nowhere"), "resume": True}, "/proc/nowhere | no unfinished run"),
    ],
)
def test_measure_rejects_invalid_arguments(change: dict[str, Any], facts: str) -> None:
    arguments: dict[str, Any] = {"probe": PROBE, "targets": [linear("a", 1)], "data": DATA, **change}
    with raises(InputError, facts):
        measure(**arguments)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"input": "16bit"}, "input | float32, 8bit | '16bit'"),
        ({"batch_size": 0}, "batch_size | at least 1 | 0"),
        ({"budget": 0}, "budget | at least 1 | 0"),
        ({"budget": 1.5}, "budget | integer | 1.5"),
        ({"lanes": None}, "lanes | integer | None"),
        ({"shard": (0, 3)}, "shard | (0, 3)"),
        ({"shard": (4, 3)}, "shard | (4, 3)"),
    ],
)
def test_run_options_reject_invalid_values(options: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        RunOptions(**options)


def test_numbers_of_numpy_are_settings_like_those_of_python() -> None:
    probe = Noise((np.float32(8),), seed=np.int64(3))
    outcome = measure(probe, targets()[:1], FEW, source={"count": np.int64(12)}, options=RunOptions(budget=np.int64(2)))
    report = outcome.json()
    assert (report["seed"], report["settings"]["sigmas"], report["data"]["count"], report["budget"]) == (3, [8.0], 12, 2)
