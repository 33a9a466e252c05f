"""Responses that no correct server sends: the client rejects all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from defensemble import (
    Client,
    FakeModel,
    FakeTransport,
    InputError,
    ModelMetadata,
    OutputRequest,
    Outputs,
    RequestRefusedError,
    ServerFailedError,
    TensorMetadata,
)
from tests.support.facts import assert_facts, raises
from tests.support.fakes import ensemble, ensemble_answer, member
from tests.support.tiny import SHAPE, images, logits

ALL = ("probabilities", "member_probabilities", "entropy", "mutual_information")


def client_of(transport: FakeTransport, model: str | None = None) -> Client:
    return Client("fake", model, transport=transport)


@pytest.mark.parametrize("rows", [0, 3])
def test_predict_rejects_a_wrong_number_of_rows(rows: int) -> None:
    strange = FakeModel(lambda batch: {"probabilities": np.full((1 if len(batch) == 1 else rows, 3), 1 / 3, np.float32)}, SHAPE)
    with raises(ServerFailedError, f"{rows} rows | 'probabilities' | 2 images"):
        client_of(FakeTransport({"strange": strange}), "strange").predict(images(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", ["logits", "probabilities", "member_probabilities", "entropy", "mutual_information"])
def test_predict_rejects_values_that_are_not_finite(output: str, value: float) -> None:
    def answer(batch: Any) -> Any:
        outputs_by_name = dict(ensemble_answer(batch)) if output != "logits" else {"logits": logits(1, batch).astype(np.float32)}
        outputs_by_name[output].reshape(len(batch), -1)[:2, 0] = value if len(batch) > 1 else 0.5
        return outputs_by_name

    client = client_of(FakeTransport({"broken": FakeModel(answer, SHAPE, max_batch_size=8)}), "broken")
    requested = "probabilities" if output == "logits" else output
    facts = f"fake://server | 'broken' | not finite | 2 of 5 images | '{output}'"
    with pytest.raises(ServerFailedError) as caught:
        client.predict(images(5), outputs=(requested,))
    assert_facts(str(caught.value), facts)
    assert len(client.predict(images(1), outputs=(requested,))) == 1


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        ("probabilities", ()),
        ("probabilities", (3, 1)),
        ("probabilities", (2,)),
        ("member_probabilities", (3,)),
        ("member_probabilities", (2, 2)),
        ("entropy", (2,)),
        ("mutual_information", (1, 1)),
    ],
)
def test_predict_rejects_outputs_of_a_wrong_shape(output: str, shape: tuple[int, ...]) -> None:
    class Other(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *args: Any, **options: Any) -> Any:
            response = super().infer(model, inputs, outputs, *args, **options)
            if not outputs[0].class_count:
                response[output] = np.full((len(inputs["images"]), *shape), 0.5, np.float32)
            return response

    with pytest.raises(ServerFailedError) as caught:
        client_of(Other({"ensemble": ensemble()})).predict(images(4), outputs=ALL)
    assert_facts(str(caught.value), f"float32 | {(4, *shape)} | '{output}'")


def test_predict_rejects_strings_instead_of_numbers() -> None:
    class Texts(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *args: Any, **options: Any) -> Any:
            return super().infer(model, inputs, [OutputRequest(output.name, 3) for output in outputs], *args, **options)

    with raises(ServerFailedError, "object | shape"):
        client_of(Texts({"ensemble": ensemble()})).predict(images(2))


@pytest.mark.parametrize("config", [{"max_batch_size": "many"}, {"max_batch_size": []}, {"ensemble_scheduling": []}])
def test_describe_rejects_an_invalid_configuration(config: dict[str, Any]) -> None:
    class Odd(FakeTransport):
        def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
            return config

    with raises(ServerFailedError, "configuration | 'ensemble'"):
        client_of(Odd({"ensemble": ensemble()})).describe()


@pytest.mark.parametrize("text", [b"", b"1.0", b"1.0:x:a", b"1.0:3:a", b"1.0:-1:a"])
def test_describe_rejects_invalid_class_names(text: bytes) -> None:
    class Odd(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *args: Any, **options: Any) -> Any:
            return Outputs({outputs[0].name: np.array([[text]], dtype=object)})

    with raises(ServerFailedError, "class names | 'ensemble'"):
        client_of(Odd({"ensemble": ensemble()})).describe()


def test_describe_rejects_a_huge_model_before_allocating_memory() -> None:
    class Huge(FakeTransport):
        def model_metadata(self, model: str, timeout_s: float) -> Any:
            shape = (-1, 1, 10**6, 10**6) if model == "alpha" else (-1, *SHAPE)
            classes = 3 if model == "alpha" else 10**12
            outputs = (TensorMetadata("logits", "FP32", (-1, classes)),)
            return ModelMetadata(model, "", (TensorMetadata("images", "FP32", shape),), outputs)

    client = client_of(Huge({"alpha": member(1), "beta": member(2)}))
    for name in ("alpha", "beta"):
        with raises(InputError, f"'{name}' | values | classes"):
            client.describe(name)


@pytest.mark.parametrize("refusal", [None, RequestRefusedError("unknown parameter")])
def test_labels_are_indices_on_a_server_without_the_classification_extension(refusal: RequestRefusedError | None) -> None:
    class Plain(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *args: Any, **options: Any) -> Any:
            if refusal is not None and outputs[0].class_count:
                raise refusal
            return super().infer(model, inputs, [OutputRequest(output.name) for output in outputs], *args, **options)

    transport = Plain({"ensemble": ensemble(), "alpha": member(1)})
    client = client_of(transport)
    assert client.labels() == ("0", "1", "2")
    assert client.describe().missing_features == {"classification"}
    asked = len(transport.requests)
    client.describe("alpha")
    assert len(transport.requests) == asked + 1, "it is not asked for again"
