"""Targets of probes: what they return, and how the images that they get are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import (
    ClientClosedError,
    ConnectionFailedError,
    FakeModel,
    FakeTransport,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    RetryPolicy,
)
from defensemble._exceptions import ForbiddenError, ServiceError
from defensemble.probes import FunctionTarget, Noise, RunOptions, ServedTarget, Square, measure, served_targets
from defensemble.probes.targets import Response
from tests.support.facts import raises
from tests.support.fakes import ensemble_answer, house, member
from tests.support.probing import FEW, FEWER_EXAMPLES, Linear, assert_balanced
from tests.support.tiny import CLASSES, SHAPE, Array, images, logits, softmax

NO_WAITS = RetryPolicy(max_retries=3, initial_backoff_s=0, max_backoff_s=0, reserve=1000)
Fate = str  # of a request: "ok", "refused" before it left, "lost" after it was sent, "limited" by a rate (429), "broken" for good


class Scripted(FakeTransport):
    """Meets each inference with the next fate, except look-ups, and counts the images that arrive, those that are lost included."""

    def __init__(self, fates: Sequence[Fate], **models: FakeModel) -> None:
        super().__init__(models or {"alpha": member(1)})
        self._fates: Iterator[Fate] = iter(fates)
        self.arrived = 0
        self.answered = 0

    def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        count = len(inputs["images"])
        fate = "ok" if options["request_id"] == "look-up" else next(self._fates, "ok")
        if fate == "refused":
            error = ConnectionFailedError("refused")
            error.was_sent = False
            error.is_retryable = True
            raise error
        self.arrived += count
        if fate == "lost":
            lost = ConnectionFailedError("cut")
            lost.is_retryable = True
            raise lost
        if fate == "limited":
            limited = NotReadyError("too many requests")
            limited.is_retryable, limited.retry_after_s = True, 0.001
            raise limited
        if fate == "broken":
            raise NotReadyError("broken")
        self.answered += count
        return super().infer(model, inputs, outputs, *rest, **options)


def served(transport: FakeTransport, *names: str, retry: RetryPolicy = NO_WAITS, **options: Any) -> list[ServedTarget]:
    return served_targets("fake", names, transport=transport, retry=retry, **options)


@FEWER_EXAMPLES
@given(st.lists(st.sampled_from(["ok", "refused", "lost", "limited", "broken"]), max_size=30), st.sampled_from(["probabilities", "top-1"]))
def test_the_books_balance_whatever_becomes_of_requests(fates: list[Fate], answers: Any) -> None:
    transport = Scripted(fates)
    (target,) = served(transport, answers=answers)
    asked, sanity, responses = 1, 1, 0
    for number in range(12):
        purpose = "sanity" if number % 3 == 0 else None
        arrived = transport.arrived
        try:
            if number % 6 == 0:
                target.member_probabilities(images(4))
            else:
                target.ask(images(4), purpose)
        except ServiceError:
            pass
        else:
            responses += 4
        if transport.arrived > arrived:  # it left, at least once
            asked += 4
            sanity += 4 if purpose else 0
    sent, counted_as_asked, checked, verified = target.counts.values.tolist()
    assert sent == transport.arrived
    assert (counted_as_asked, checked, verified) == (asked, sanity, 0)
    assert responses == transport.answered - 1


@FEWER_EXAMPLES
@given(st.lists(st.sampled_from(["ok", "ok", "ok", "refused", "lost", "limited", "broken"]), max_size=40), st.integers(1, 8))
def test_a_probe_of_a_flaky_server_has_books_that_balance(fates: list[Fate], batch_size: int) -> None:
    transport = Scripted(fates)
    outcome = measure(Noise((64,)), served(transport), FEW)
    assert_balanced(outcome)
    (target,) = outcome.targets
    assert target.queries.sent == transport.arrived
    if target.failure is None:
        assert target.queries.counted == 24
        assert target.queries.repeated == 0
        assert target.queries.retried == transport.arrived - transport.answered


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["lost", "limited", "refused"])
def test_an_attack_on_a_flaky_or_rate_limited_server_keeps_its_budget(fate: Fate) -> None:
    attack, options = Square(epsilon=0.1, queries=40), RunOptions(budget=15, workers=1, batch_size=4)
    retry = replace(NO_WAITS, max_retries=30)  # requests run in parallel: one may meet its fate several times in a row
    steady, flaky = (
        measure(attack, served(Scripted(fates), retry=retry), FEW, options=options) for fates in ([], ["ok", "ok", fate] * 500)
    )
    expected, found = steady.targets[0], flaky.targets[0]
    assert flaky.failures == {}
    assert found.attack is not None
    assert found.attack.counted.max() == 15
    assert flaky.json()["targets"][0]["per_image"] == steady.json()["targets"][0]["per_image"]
    assert_balanced(flaky)
    assert found.queries.counted == expected.queries.counted
    assert (found.queries.retried > 0) == (fate != "refused")


def test_parts_of_a_request_are_counted_as_one() -> None:
    transport = Scripted(["lost", "ok", "refused", "ok"])
    (target,) = served(transport)
    with target._counting.counted(10, ("asked", "sanity")) as request_id:
        for start, count in ((0, 4), (0, 4), (4, 6), (4, 6), (4, 6)):
            inputs = {"images": images(count)}
            try:
                target._counting.infer("alpha", inputs, [], 1.0, request_id=f"{request_id}/{start}")
            except ServiceError:
                continue
    # The look-up; 4 were lost and sent again, 6 were refused and sent twice.
    assert target.counts.values.tolist() == [1 + 4 + 4 + 6 + 6, 1 + 10, 1 + 10, 0]
    target._counting.infer("alpha", {"images": images(2)}, [], 1.0, request_id="another")
    assert target.counts.values.tolist() == [1 + 20 + 2, 11, 11, 0]


@pytest.mark.parametrize("answers", ["probabilities", "labels", "top-1"])
@pytest.mark.parametrize("name", ["ensemble", "alpha"])
def test_a_served_model_returns_what_the_attacker_sees(answers: Any, name: str) -> None:
    transport, batch = house(), images(8, 5)
    (target,) = served(transport, name, answers=answers)
    response = target.ask(batch)
    probabilities = ensemble_answer(batch)["probabilities"] if name == "ensemble" else softmax(logits(1, batch))
    assert response.classes.tolist() == probabilities.argmax(axis=1).tolist()
    assert response.classes.dtype == np.int64
    if answers == "probabilities":
        assert response.probabilities is not None
        np.testing.assert_allclose(response.probabilities, probabilities, atol=1e-6)
        assert response.entropy is not None
        np.testing.assert_allclose(response.entropy, -(probabilities * np.log(probabilities)).sum(axis=1), atol=1e-6)
        assert (response.mutual_information is not None) == (name == "ensemble")
    else:
        assert (response.probabilities, response.entropy, response.mutual_information) == (None, None, None)
    _, requested, _ = transport.requests[-1]
    assert [output.class_count for output in requested] == [1 if answers == "top-1" else 0] * len(requested)
    assert (target.answers, target.num_classes) == (answers, 3)


def test_targets_are_ensembles_their_members_and_others() -> None:
    found = served(house())
    assert [(target.name, target.role) for target in found] == [
        ("ensemble", "ensemble"),
        ("alpha", "member"),
        ("beta", "member"),
        ("standard", "other"),
    ]
    assert found[0].members == ("alpha", "beta")
    assert [target.name for target in served(house(), "standard", "alpha")] == ["standard", "alpha"]


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (8, 8), (256, 64), (0, 64)])
def test_a_request_has_as_many_images_as_the_model_takes_and_at_most_64(limit: int, expected: int) -> None:
    (target,) = served(FakeTransport({"alpha": member(1, max_batch_size=limit)}))
    assert target.max_batch == expected
    assert len(target.ask(images(expected)).classes) == expected


def test_the_identity_changes_with_the_configuration() -> None:
    first, second, third = (
        served(FakeTransport({"alpha": model}))[0].identity() for model in (member(1), member(2), member(1, max_batch_size=4))
    )
    assert first == second
    assert first["config_sha256"] != third["config_sha256"]
    assert len(first["config_sha256"]) == 64


def test_a_restricted_configuration_is_a_warning() -> None:
    closed = FakeModel(lambda batch: {"logits": logits(1, batch)}, SHAPE, class_names=CLASSES, config_is_open=False)
    outcome = measure(Noise((8,)), served(FakeTransport({"alpha": closed})), FEW)
    (check,) = [check for check in outcome.checks if check.name == "target did not change"]
    assert check.status == "WARN"
    assert outcome.targets[0].identity["config_sha256"] is None


@pytest.mark.parametrize(
    ("arguments", "kind", "facts"),
    [
        ({"names": ["alpha", "alpha"]}, InputError, "alpha | twice"),
        ({"names": ["gamma"]}, ModelNotFoundError, "'gamma' | alpha"),
        ({"answers": "logits"}, InputError, "answers | probabilities, labels, top-1 | 'logits'"),
        ({"transport": FakeTransport({})}, ModelNotFoundError, "classifier | none"),
    ],
)
def test_targets_that_are_not_served_are_rejected(arguments: dict[str, Any], kind: type[Exception], facts: str) -> None:
    with raises(kind, facts):
        served_targets("fake", **{"transport": house(), **arguments})


def test_a_role_does_not_depend_on_the_selection() -> None:
    transport = house()
    assert [served(transport, name)[0].role for name in ("ensemble", "alpha", "standard")] == ["ensemble", "member", "other"]
    assert transport.images == {"ensemble": 1, "alpha": 1, "standard": 1}, "look-ups of the targets only"


def test_a_server_that_does_not_list_its_models_has_members_of_the_targets_only() -> None:
    class Restricted(FakeTransport):
        def models(self, *rest: Any) -> Any:
            raise ForbiddenError("listing is restricted")

    transport = Restricted(house()._models)
    assert [one.role for one in served(transport, "alpha")] == ["other"]
    assert [one.role for one in served(transport, "ensemble", "alpha")] == ["ensemble", "member"]


def test_closing_one_target_closes_the_client_of_all() -> None:
    transport = house()
    found = served(transport)
    found[1].close()
    found[1].close()
    with pytest.raises(ClientClosedError):
        found[0].ask(images(1))


@pytest.mark.parametrize(
    ("function", "facts"),
    [
        (lambda batch: logits(1, batch)[:, 0], "'a' | 12 | float64 | (12,)"),
        (lambda batch: logits(1, batch), "'a' | sum 1"),
        (lambda batch: np.float32(softmax(logits(1, batch)) * 2), "'a' | sum 1 | 2"),
        (lambda batch: np.full((len(batch), 3), np.nan), "'a' | sum 1 | nan"),
        (lambda batch: softmax(logits(1, batch))[:-1], "'a' | (12, K) | (11, 3)"),
        (lambda batch: np.ones((len(batch), 0)), "'a' | (12, 0)"),
        (lambda batch: np.zeros((len(batch), 1), int), "'a' | int64 | (12, 1)"),
        (lambda batch: np.full(len(batch), -1), "'a' | from 0 | from -1 on"),
        (lambda batch: ["x"] * len(batch), "'a' | <U1"),
        (lambda batch: None, "'a' | object | ()"),
        (lambda batch: len(batch), "'a' | int64 | ()"),
    ],
)
def test_a_function_that_returns_something_else_is_an_error(function: Any, facts: str) -> None:
    with raises(InputError, facts):
        FunctionTarget("a", function).ask(FEW.images)


@pytest.mark.parametrize("first", ["classes", "probabilities", "two"])
@pytest.mark.parametrize("second", ["classes", "probabilities", "two"])
def test_a_function_returns_the_same_at_each_call(first: str, second: str) -> None:
    def answer(kind: str, batch: Array) -> Any:
        three = softmax(logits(1, batch))
        two = three[:, :2] / three[:, :2].sum(axis=1, keepdims=True)
        return {"classes": three.argmax(axis=1), "probabilities": three, "two": two}[kind]

    kinds = iter([first, second])
    target = FunctionTarget("a", lambda batch: answer(next(kinds), batch))
    target.ask(images(3))
    if first == second:
        assert target.ask(images(3)).classes.shape == (3,)
    else:
        with raises(InputError, "'a' | always"):
            target.ask(images(3))


def test_a_function_is_called_in_the_thread_of_the_caller_and_in_order() -> None:
    import threading

    threads = set()

    class Watched(Linear):
        def __call__(self, batch: Array) -> Array:
            threads.add(threading.current_thread())
            return super().__call__(batch)

    measure(Noise((8,)), [FunctionTarget("a", Watched(1), max_batch=2)], FEW)
    assert threads == {threading.current_thread()}


def test_a_function_has_a_name_and_a_largest_batch() -> None:
    with raises(InputError, "max_batch | 0"):
        FunctionTarget("a", Linear(1), max_batch=0)
    for name in ("", "a" * 256):
        with raises(InputError, f"name | 255 | {len(name)}"):
            FunctionTarget(name, Linear(1))


def test_confident_responses_keep_their_order() -> None:
    wrong = np.geomspace(1e-6, 0.4, 200, dtype=np.float32)
    response = Response(np.zeros(200, np.int64), np.stack([1 - wrong, wrong], axis=1))
    assert response.entropy is not None
    measured = response.measured()["entropy"]
    assert len(np.unique(measured)) == 200
    np.testing.assert_allclose(measured, response.entropy, rtol=2**-11, atol=2**-25)
