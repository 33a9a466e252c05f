from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import (
    Client,
    ClientClosedError,
    ConnectionFailedError,
    DeadlineExceededError,
    FakeModel,
    FakeTransport,
    ForbiddenError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    OutputRequest,
    RequestRefusedError,
    RetryPolicy,
    ServerFailedError,
)
from defensemble._client.images import images_from_input
from defensemble._client.model_info import ModelInfo, steps_from_config
from tests.support.facts import raises
from tests.support.fakes import ensemble, ensemble_answer, fused, house, member
from tests.support.tiny import CLASSES, SHAPE, images, logits, softmax

ALL = ("probabilities", "member_probabilities", "entropy", "mutual_information")


def client_of(transport: FakeTransport, model: str | None = None, **options: Any) -> Client:
    return Client("fake", model, transport=transport, **options)


def test_predict_calls_the_only_ensemble_and_requests_only_the_named_outputs() -> None:
    transport = house()
    client = client_of(transport, timeout_s=7)
    batch = images(5)
    prediction = client.predict(batch)
    np.testing.assert_array_equal(prediction.probabilities, ensemble_answer(batch)["probabilities"])
    assert prediction.labels == [CLASSES[index] for index in ensemble_answer(batch)["probabilities"].argmax(axis=1)]
    look_up, call = transport.requests
    assert look_up[:2] == ("ensemble", (OutputRequest("probabilities", 3),))
    assert call[:2] == ("ensemble", (OutputRequest("probabilities"),))
    assert 6 < call[2] <= look_up[2] < 7, "one deadline for both"
    client.predict(batch)
    assert transport.calls == Counter(ensemble=3)
    assert transport.images == Counter(ensemble=11)


def test_all_outputs_have_the_documented_shapes() -> None:
    batch = images(5)
    prediction = client_of(house()).predict(batch, outputs=ALL)
    expected = ensemble_answer(batch)
    assert prediction.probabilities.shape == (5, 3)
    assert prediction.member_probabilities.shape == (5, 2, 3)
    np.testing.assert_array_equal(prediction.entropy, expected["entropy"][:, 0])
    np.testing.assert_array_equal(prediction.mutual_information, expected["mutual_information"][:, 0])


def test_entropy_is_computed_if_it_was_not_requested() -> None:
    client, batch = client_of(house()), images(5)
    np.testing.assert_allclose(client.predict(batch).entropy, client.predict(batch, outputs=("entropy",)).entropy, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_the_client_computes_the_softmax_of_a_single_network(count: int, seed: int) -> None:
    batch = images(count, seed)
    prediction = client_of(house(), "alpha").predict(batch, outputs=("probabilities", "entropy"))
    np.testing.assert_allclose(prediction.probabilities, softmax(logits(1, batch)), atol=1e-6)
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-6)
    assert prediction.entropy.shape == (count,)


def test_predict_rejects_member_outputs_of_a_single_network() -> None:
    with raises(InputError, "'alpha' | member_probabilities | mutual_information"):
        client_of(house()).predict(images(1), outputs=ALL, model="alpha")


@pytest.mark.parametrize(
    ("outputs", "facts"),
    [
        ("entropy", "'entropy' | outputs=('entropy',)"),
        ("alpha", "'alpha' | model='alpha'"),
        ((), "outputs | empty"),
        (("probabilities", "logits"), "logits | probabilities, member_probabilities"),
        (["probability"], "probability | probabilities"),
        ([["a"]], "outputs | probabilities | ['a']"),
        ((3,), "outputs | int 3"),
        (None, "None | outputs=('probabilities',)"),
        (5, "outputs | 5"),
    ],
)
def test_predict_rejects_invalid_outputs(outputs: Any, facts: str) -> None:
    with raises(InputError, facts):
        client_of(house()).predict(images(1), outputs=outputs)


def test_predict_rejects_outputs_that_the_ensemble_lacks() -> None:
    plain = FakeModel(lambda batch: {"probabilities": ensemble_answer(batch)["probabilities"]}, SHAPE, platform="ensemble")
    client = client_of(FakeTransport({"plain": plain}))
    with raises(InputError, "'plain' | mutual_information | probabilities"):
        client.predict(images(1), outputs=("mutual_information",))
    assert client.predict(images(2), outputs=("entropy",)).entropy.shape == (2,)


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "a list of numbers": ([[0.0]], "images[0] | list"),
    "uint8": (np.zeros((1, *SHAPE), np.uint8), 'uint8 | dtype="uint8"'),
    "float64": (np.zeros((1, *SHAPE)), "float64 | images.astype(numpy.float32)"),
    "big endian": (np.zeros((1, *SHAPE), ">f4"), ">f4"),
    "three dimensions": (
        np.zeros(SHAPE, np.float32),
        "(N, 1, 4, 4) | 'ensemble' | (1, 4, 4) | images[numpy.newaxis]",
    ),
    "another size": (np.zeros((2, 1, 5, 4), np.float32), "(N, 1, 4, 4) | 'ensemble' | (2, 1, 5, 4)"),
    "channels last": (np.zeros((2, 4, 4, 1), np.float32), '(N, 1, 4, 4) | layout="NHWC"'),
    "nothing": (np.zeros((0, *SHAPE), np.float32), "empty"),
    "NaN": (np.full((1, *SHAPE), np.nan, np.float32), "finite | 16"),
    "infinity": (np.full((1, *SHAPE), np.inf, np.float32), "finite"),
    "grey levels": (np.full((1, *SHAPE), 200, np.float32), "[0, 1] | 200 to 200 | 255"),
    "normalised": (np.full((1, *SHAPE), -0.5, np.float32), "-0.5 to -0.5"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_predict_rejects_invalid_images_before_sending(case: str) -> None:
    batch, facts = BAD_IMAGES[case]
    transport = house()
    client = client_of(transport)
    client.describe()
    with raises(InputError, facts):
        client.predict(batch)
    lookups = [outputs for _, outputs, _ in transport.requests if outputs[0].class_count]
    assert len(transport.requests) == len(lookups) == transport.images["ensemble"], "only look-ups were sent"
    assert len(lookups) == (2 if case in ("another size", "channels last") else 1)


@given(st.integers(0, 15), st.sampled_from([np.nan, np.inf, -np.inf, 1.0001, -0.0001]))
def test_predict_rejects_one_invalid_pixel(position: int, value: float) -> None:
    batch = images(3)
    batch.reshape(3, -1)[1, position] = value
    with pytest.raises(InputError):
        client_of(house()).predict(batch)


def test_predict_accepts_the_ends_of_the_range_and_views() -> None:
    batch = np.concatenate([np.zeros((4, *SHAPE), np.float32), np.ones((4, *SHAPE), np.float32)])
    client = client_of(house())
    np.testing.assert_array_equal(client.predict(batch[::2]).probabilities, client.predict(batch).probabilities[::2])


def test_predict_lists_several_ensembles_and_chooses_none() -> None:
    client = client_of(FakeTransport({"one": ensemble(), "two": ensemble(), "alpha": member(1)}))
    with raises(InputError, "2 ensembles | one, two"):
        client.predict(images(1))
    assert client.predict(images(1), model="two").model == "two"


def test_a_fused_graph_is_an_ensemble_even_if_its_configuration_is_restricted() -> None:
    client = client_of(FakeTransport({"graph": fused(config_is_open=False), "alpha": member(1)}))
    assert client.predict(images(2)).model == "graph"
    assert client.describe().is_ensemble
    assert client.describe().steps == ()
    assert not client.describe("alpha").is_ensemble
    client = client_of(FakeTransport({"graph": fused(), "ensemble": ensemble()}))
    with raises(InputError, "2 ensembles | ensemble, graph"):
        client.predict(images(1))


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"ensemble_scheduling": {"step": [{"model_name": "a"}, {"model_name": "average_0"}]}}, ("a", "average_0")),
        ({"parameters": {"members": {"string_value": '["a@1", "b@2"]'}}}, ("a", "b")),
        ({"parameters": {"members": {"string_value": "not ours"}}}, ()),
        ({"parameters": {"members": {"string_value": "[" * 200_000}}}, ()),
        ({"parameters": {"members": {"string_value": "[1]"}}}, ()),
        ({"parameters": {"members": {"string_value": "7"}}}, ()),
        ({}, ()),
    ],
)
def test_steps_are_read_from_the_configuration(config: dict[str, object], steps: tuple[str, ...]) -> None:
    assert steps_from_config(config) == steps


@pytest.mark.parametrize(("models", "facts"), [({"alpha": member(1)}, "alpha"), ({}, "no model")])
def test_predict_names_the_models_if_there_is_no_ensemble(models: dict[str, FakeModel], facts: str) -> None:
    with raises(ModelNotFoundError, f"no ensemble | {facts}"):
        client_of(FakeTransport(models)).predict(images(1))


def test_an_unknown_model_error_lists_the_served_models() -> None:
    with raises(ModelNotFoundError, "'gamma' | alpha, beta, ensemble, standard"):
        client_of(house()).predict(images(1), model="gamma")


def test_predict_rejects_a_model_that_does_not_classify_images() -> None:
    average = FakeModel(lambda batch: {"mean": batch.mean(axis=(1, 2, 3))[:, None]}, SHAPE)
    client = client_of(FakeTransport({"average": average, "ensemble": ensemble()}))
    with raises(InputError, "'average' | mean FP32 [-1, 1]"):
        client.predict(images(1), model="average")
    assert [info.name for info in client.classifiers()] == ["ensemble"]


def test_more_images_than_a_batch_are_sent_in_chunks() -> None:
    transport = house()
    client = client_of(transport)
    batch = images(21)
    prediction = client.predict(batch, outputs=ALL)
    expected = ensemble_answer(batch)
    for output in ("probabilities", "member_probabilities"):
        np.testing.assert_array_equal(prediction.to_numpy()[output], expected[output])
    assert transport.images["ensemble"] == 1 + 21
    assert transport.calls["ensemble"] == 1 + 3


def test_the_largest_batch_is_learned_if_the_configuration_is_restricted() -> None:
    transport = FakeTransport({"ensemble": ensemble(config_is_open=False)})
    client = client_of(transport)
    assert client.describe().max_batch_size is None
    batch = images(64)
    np.testing.assert_array_equal(client.predict(batch).probabilities, ensemble_answer(batch)["probabilities"])
    calls = transport.calls["ensemble"]
    np.testing.assert_array_equal(client.predict(batch).probabilities, ensemble_answer(batch)["probabilities"])
    assert transport.calls["ensemble"] - calls == 8, "it is remembered"


def test_a_refusal_is_reported_if_no_batch_size_helps() -> None:
    def refuse(batch: np.ndarray[Any, Any]) -> Any:
        if len(batch) == 1 and not batch.any():
            return ensemble_answer(batch)  # the look-up
        raise RequestRefusedError(f"refused {len(batch)}") from KeyError("reason")

    model = FakeModel(refuse, SHAPE, platform="ensemble", class_names=CLASSES, config_is_open=False)
    with raises(RequestRefusedError, "refused 6") as caught:
        client_of(FakeTransport({"ensemble": model})).predict(images(6))
    assert isinstance(caught.value.__cause__, KeyError)


def test_all_requests_of_a_call_share_its_deadline() -> None:
    timeouts = []

    class Timed(FakeTransport):
        def model_metadata(self, model: str, timeout_s: float) -> Any:
            timeouts.append(timeout_s)
            return super().model_metadata(model, timeout_s)

    client_of(Timed(house()._models)).classifiers()
    assert len(set(timeouts)) == 4
    assert timeouts == sorted(timeouts, reverse=True)


def test_labels_are_indices_without_names_and_may_contain_colons() -> None:
    nameless = client_of(FakeTransport({"ensemble": ensemble(class_names=())}))
    assert nameless.describe().class_names == ("0", "1", "2")
    odd = client_of(FakeTransport({"ensemble": ensemble(class_names=("a:b", "é"))}))
    assert odd.describe().class_names == ("a:b", "é", "2")


def test_predictions_outlive_the_client_and_a_closed_client_raises() -> None:
    with client_of(house()) as client:
        prediction = client.predict(images(2))
    assert len(prediction.labels) == 2
    client.close()
    for call in (lambda: client.predict(images(1)), client.models, client.wait_ready, client.describe, client.server_metadata):
        with pytest.raises(ClientClosedError, match="closed"):
            call()


def test_a_replaced_model_is_looked_up_again() -> None:
    transport = FakeTransport({"ensemble": ensemble()})
    client = client_of(transport)
    client.predict(images(1))
    transport._models["ensemble"] = FakeModel(
        lambda batch: {"probabilities": np.full((len(batch), 2), 0.5, np.float32)}, SHAPE, class_names=("x", "y"), platform="ensemble"
    )
    assert [client.predict(images(1)).labels for _ in range(2)] == [["x"], ["x"]]
    transport._models["renamed"] = transport._models.pop("ensemble")
    with pytest.raises(ModelNotFoundError):
        client.predict(images(1))
    assert client.predict(images(1)).model == "renamed"


def test_a_model_is_looked_up_again_before_images_are_rejected() -> None:
    transport = FakeTransport({"ensemble": ensemble(), "alpha": member(1)})
    client = client_of(transport)
    client.describe()
    client.describe("alpha")
    transport._models["alpha"] = FakeModel(lambda batch: {"logits": batch.reshape(len(batch), -1)[:, :3]}, (1, 5, 5))
    assert client.predict(np.zeros((2, 1, 5, 5), np.float32), model="alpha").labels == ["0", "0"]


@pytest.mark.parametrize("model", [5, ["ensemble"], b"ensemble", ""])
def test_a_model_name_must_be_a_string(model: Any) -> None:
    calls = (
        lambda: client_of(house(), model),
        lambda: client_of(house()).predict(images(1), model=model),
        lambda: client_of(house()).wait_ready(1, model),
    )
    for call in calls:
        with raises(InputError, f"name of a model | {type(model).__name__}"):
            call()


def test_threads_share_a_client_from_its_first_call() -> None:
    transport = house()
    client = client_of(transport)
    barrier = threading.Barrier(8)

    def call(_: int) -> list[str]:
        barrier.wait(5)
        return client.predict(images(1)).labels

    with ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(call, range(8)))
    assert labels == [client.predict(images(1)).labels] * 8
    assert 9 < transport.calls["ensemble"] <= 17, "each thread looks the model up at most once"
    assert set(transport.calls) == {"ensemble"}


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "a", None, [1], True])
def test_a_timeout_must_be_positive(timeout_s: Any) -> None:
    with pytest.raises(InputError, match="timeout_s"):
        Client("http://localhost", timeout_s=timeout_s)
    if timeout_s != 0:  # a deadline that has passed
        with pytest.raises(InputError, match="deadline_s"):
            client_of(house()).wait_ready(timeout_s)


def test_a_client_has_a_repr_and_server_information() -> None:
    client = client_of(house(), "alpha", timeout_s=3)
    assert repr(client) == "Client('fake://server', model='alpha', timeout_s=3)"
    both = Client("fake", "alpha", transport=[FakeTransport({}, url="fake://a"), FakeTransport({}, url="fake://b")])
    assert repr(both) == "Client(['fake://a', 'fake://b'], model='alpha', timeout_s=60)"
    assert client.url == "fake://server"
    assert client.models() == ["alpha", "beta", "ensemble", "standard"]
    assert client.server_metadata().name == "fake"
    assert [info.name for info in client.classifiers()] == ["ensemble", "alpha", "beta", "standard"]


class Starting(FakeTransport):
    """Raises the next error at each call, then serves."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__({"ensemble": ensemble()})
        self._failures = list(failures)

    def models(self, timeout_s: float) -> list[str]:
        if self._failures:
            raise self._failures.pop(0)
        return super().models(timeout_s)


def test_wait_ready_waits_until_a_model_responds() -> None:
    transport = Starting(ConnectionFailedError("down"), NotReadyError("loading"), ServerFailedError("broken"), ModelNotFoundError("gone"))
    client = client_of(transport)
    client.wait_ready(5)
    assert transport.calls["ensemble"] == 1
    client.predict(images(1))
    assert transport.calls["ensemble"] == 2


def test_wait_ready_ends_at_the_deadline_with_the_last_error() -> None:
    started = time.monotonic()
    with raises(DeadlineExceededError, "fake://server | 0.1 s | still loading") as caught:
        client_of(Starting(*[NotReadyError("still loading")] * 1000)).wait_ready(0.1)
    assert time.monotonic() - started < 1
    assert isinstance(caught.value.__cause__, NotReadyError)
    with raises(DeadlineExceededError, "no ensemble | alpha"):
        client_of(FakeTransport({"alpha": member(1)})).wait_ready(0.05)
    with pytest.raises(DeadlineExceededError, match="0 s"):
        client_of(house()).wait_ready(0)


@pytest.mark.parametrize("failure", [ForbiddenError("no"), RequestRefusedError("wrong"), InputError("two ensembles")])
def test_wait_ready_raises_errors_that_waiting_cannot_fix(failure: Exception) -> None:
    with pytest.raises(type(failure), match=str(failure)):
        client_of(Starting(failure)).wait_ready(5)


def test_masked_arrays_are_rejected_and_subclasses_are_converted() -> None:
    class Named(np.ndarray):
        pass

    plain = np.full((1, 1, 4, 4), 0.5, np.float32)
    info = ModelInfo("m", "ensemble", "images", (1, 4, 4), ("probabilities",), 8, ("a", "b"), ())
    with pytest.raises(InputError, match="masked"):
        images_from_input(np.ma.masked_array(plain, mask=plain > 0.1), info)
    assert type(images_from_input(plain.view(Named), info)) is np.ndarray


@pytest.mark.parametrize("retry", [None, RetryPolicy(max_retries=0), RetryPolicy(max_retries=1, initial_backoff_s=0)])
def test_a_model_that_is_unloaded_while_the_ensemble_is_sought_is_passed_over(retry: RetryPolicy | None) -> None:
    class Unloading(FakeTransport):
        def model_metadata(self, model: str, timeout_s: float) -> Any:
            if model == "alpha":
                raise NotReadyError("no version is available")
            return super().model_metadata(model, timeout_s)

    client = Client("fake", retry=retry, transport=Unloading({"ensemble": ensemble(), "alpha": member(1)}))
    assert client.predict(images(1)).model == "ensemble"
