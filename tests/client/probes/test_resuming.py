"""A probe that is stopped anywhere and resumed has the result and the counted queries of one that was not."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import InputError, NotReadyError, ServerFailedError
from defensemble.probes import (
    FunctionTarget,
    LabelledImages,
    Noise,
    RunOptions,
    measure,
    served_targets,
)
from tests.support.facts import raises
from tests.support.fakes import house
from tests.support.probing import (
    DATA,
    FEW,
    FEWER_EXAMPLES,
    LABELS,
    InterruptedByTestError,
    Interrupting,
    Linear,
    assert_balanced,
    linear,
    result,
)
from tests.support.tiny import Array, images

PROBE = Noise((8, 64), seed=3)


def targets(max_batch: int = 16) -> list[FunctionTarget]:
    return [linear("a", 1, max_batch=max_batch), linear("b", 2, max_batch=max_batch, returns_probabilities=True)]


UNINTERRUPTED = result(measure(PROBE, targets(), DATA))
FEW_UNINTERRUPTED = result(measure(PROBE, targets(5), FEW))


@FEWER_EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=4), st.integers(1, 5))
def test_a_run_that_is_stopped_anywhere_and_resumed_has_the_same_result(stops: list[tuple[int, int]], batch_size: int) -> None:
    received = {"a": 0, "b": 0}
    with tempfile.TemporaryDirectory() as folder:
        ledger, is_resumed = Path(folder) / "ledger", False
        for at, size in [*stops, (None, batch_size)]:
            asked = targets(5)
            try:
                outcome = measure(
                    PROBE,
                    asked,
                    FEW,
                    options=RunOptions(batch_size=size),
                    ledger=ledger,
                    resume=is_resumed,
                    progress=Interrupting(at),
                )
            except InterruptedByTestError:
                pass
            finally:
                for target in asked:
                    function: Any = target._function
                    received[target.name] += function.count
            is_resumed = True
    got = result(outcome)
    for check, other in zip(got["checks"], FEW_UNINTERRUPTED["checks"], strict=True):
        assert (check["name"], check["status"]) == (other["name"], other["status"])
    assert {**got, "checks": None} == {**FEW_UNINTERRUPTED, "checks": None}  # their texts have the sizes of batches
    assert_balanced(outcome)
    for measured in outcome.targets:
        assert measured.queries.sent == received[measured.name]
        assert measured.queries.counted == 3 * 12


@FEWER_EXAMPLES
@given(st.integers(0, 16))
def test_a_target_that_dies_keeps_the_others_and_can_be_resumed(dies_at: int) -> None:
    dying = linear("a", 1, max_batch=5, fails_at=dies_at, error=NotReadyError("server stopped"))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        first = measure(PROBE, [dying, targets(5)[1]], FEW, ledger=ledger)
        assert_balanced(first)
        assert first.failures == ({} if dies_at >= 1 + 5 + 3 * 3 + 1 else {"a": "NotReadyError: server stopped"})
        dead: Any = dying._function
        assert first.targets[0].queries.sent == dead.count
        assert first.targets[0].queries.counted == sum(map(len, dead.batches[6 : min(dies_at, 15)]))
        good = result(first)["targets"][1]
        assert (good["per_image"], good["queries"]) == (FEW_UNINTERRUPTED["targets"][1]["per_image"], 36)
        again = targets(5)
        outcome = measure(PROBE, again, FEW, ledger=ledger, resume=True)
    assert result(outcome) == FEW_UNINTERRUPTED
    assert_balanced(outcome)
    asked: Any = again[1]._function
    assert asked.count == 5 + 5 + 5, "only the sanity checks"


@FEWER_EXAMPLES
@given(st.integers(0, 20))
def test_responses_that_were_under_way_when_another_request_failed_are_kept(fails_at: int) -> None:
    transport = house()
    calls, received = itertools.count(), transport.infer
    succeeded = []

    def infer(model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        if next(calls) == 1 + 9 + fails_at:  # after the look-up and the check of determinism
            raise ServerFailedError("out of memory")
        response = received(model, inputs, outputs, *rest, **options)
        succeeded.append(len(inputs["images"]))
        return response

    transport.infer = infer  # type: ignore[method-assign]
    (target,) = served_targets("fake", ["alpha"], transport=transport)
    outcome = measure(PROBE, [target], DATA)
    queries = outcome.targets[0].queries
    assert_balanced(outcome)
    assert (outcome.failures == {}) == (fails_at >= 3 * 5 + 1)
    assert (queries.sent, queries.retried) == (next(calls) and sum(succeeded) + 8 * bool(outcome.failures), 0)
    if fails_at < 3 * 5:
        assert queries.counted == sum(succeeded) - (1 + 8 + 8)
        assert queries.repeated == 8


def test_preview_and_progress_start_where_the_interrupted_run_ended(tmp_path: Path) -> None:
    first, second, third = Interrupting(5), Interrupting(), Interrupting()
    with pytest.raises(InterruptedByTestError):
        measure(PROBE, targets(), DATA, ledger=tmp_path / "l", progress=first)
    measure(PROBE, targets(), DATA, ledger=tmp_path / "l", resume=True, progress=second)
    measure(PROBE, targets(), DATA, ledger=tmp_path / "l", resume=True, progress=third)
    assert first.previews[0].queries == {"a": 120, "b": 120}
    assert second.previews[0].queries == {"a": 120 - 72, "b": 120}
    assert third.previews[0].queries == {"a": 0, "b": 0}
    assert first.images[-1] == second.images[0] == ("a", 72, 120)
    assert second.images[-1] == ("b", 120, 120)
    assert third.images == [("a", 120, 120), ("b", 120, 120)]
    assert all(speed > 0 for speed in first.previews[0].images_per_s.values())
    assert first.previews[0].seconds == pytest.approx(sum(120 / speed for speed in first.previews[0].images_per_s.values()))


def test_the_duration_is_that_of_all_sessions(tmp_path: Path) -> None:
    answers = Linear(1)

    def waiting(batch: Array) -> Array:
        time.sleep(0.01)
        return answers(batch)

    lengths = []
    for number, at in enumerate((4, 4, None)):
        started = time.monotonic()
        target = FunctionTarget("waiting", waiting, max_batch=16)
        try:
            outcome = measure(PROBE, [target], DATA, ledger=tmp_path / "l", resume=number > 0, progress=Interrupting(at))
        except InterruptedByTestError:
            pass
        lengths.append(time.monotonic() - started)
        time.sleep(0.05)  # does not count
    assert 0.01 * (3 * 9 + 9 + 1) <= outcome.duration_s <= sum(lengths)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"probe": Noise((8, 64), seed=4)}, "settings: seed: 3, now 4."),
        ({"probe": Noise((8, 32), seed=3)}, "settings | 64 | 32"),
        ({"probe": Noise((8, 64), "uniform", seed=3)}, "settings | gaussian | uniform"),
        ({"options": RunOptions(input="8bit")}, "input | float32 | 8bit"),
        ({"options": RunOptions(budget=5)}, "budget | none | 5"),
        ({"options": RunOptions(shard=(1, 2))}, "shard | none | 1/2"),
        ({"data": LabelledImages(images(40), (LABELS + 1) % 3)}, "images | --limit"),
        ({"data": LabelledImages(images(40, 1), LABELS)}, "images | --limit"),
        ({"rows": np.arange(1, 41)}, "images | --limit"),
        ({"targets": [linear("a", 1)]}, "targets | b"),
        ({"targets": [linear("b", 1), linear("a", 1)]}, "targets"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path, change: dict[str, Any], facts: str) -> None:
    arguments: dict[str, Any] = {"probe": PROBE, "targets": targets(), "data": DATA, "ledger": tmp_path / "l"}
    with pytest.raises(InterruptedByTestError):
        measure(**arguments, progress=Interrupting(2))
    before = (tmp_path / "l/records.jsonl").read_bytes()
    with raises(InputError, f"{tmp_path / 'l'} | {facts}"):
        measure(**{**arguments, **change}, resume=True)
    assert (tmp_path / "l/records.jsonl").read_bytes() == before
    with raises(InputError, f"{tmp_path / 'l'} | --resume"):
        measure(**arguments)
    assert result(measure(**arguments, resume=True)) == UNINTERRUPTED


def test_a_run_that_is_refused_before_its_first_response_leaves_no_ledger(tmp_path: Path) -> None:
    class Refusing(Noise):
        def prepare(self, data: LabelledImages, rows: Array, on_progress: Any) -> Any:
            raise InputError("no such surrogate")

    with raises(InputError, "no such surrogate"):
        measure(Refusing((8,)), [linear("a", 1)], DATA, ledger=tmp_path / "noise.ledger")
    assert list(tmp_path.iterdir()) == []
    measure(PROBE, [linear("a", 1)], DATA, ledger=tmp_path / "noise.ledger")
