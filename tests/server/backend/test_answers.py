"""Right answers: against ONNX Runtime in this process, and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import tritonclient.http as httpclient
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton, infer_inputs, infer_outputs

FEW = settings(max_examples=25)


@pytest.fixture(scope="module")
def affine(triton: Triton) -> str:
    return triton.load(graphs.AFFINE_CONFIG, graphs.affine())


def oracle(model: onnx.ModelProto, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@FEW
@given(batch=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_equals_onnxruntime_in_process(triton: Triton, affine: str, batch: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, 4)).astype(np.float32)
    answers = triton.infer(affine, {"x": x})
    expected = oracle(graphs.affine(), {"x": x})
    assert answers.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(answers[name], array)


def test_http_and_grpc_agree(triton: Triton, affine: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    with httpclient.InferenceServerClient(f"127.0.0.1:{triton.http_port}") as client:
        tensor = httpclient.InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(x)
        by_http = client.infer(affine, [tensor])
        np.testing.assert_array_equal(by_http.as_numpy("y"), triton.infer(affine, {"x": x})["y"])
        np.testing.assert_array_equal(by_http.as_numpy("y"), 2 * x + 1)


def test_large_http_input_arrives_in_several_pieces(triton: Triton) -> None:
    name = triton.load(
        graphs.config([("x", TensorProto.FLOAT, [-1])], [("y", TensorProto.FLOAT, [-1])]),
        graphs.identity(TensorProto.FLOAT, ["batch", "n"]),
    )
    x = np.random.default_rng(0).normal(size=(2, 500_000)).astype(np.float32)
    with httpclient.InferenceServerClient(f"127.0.0.1:{triton.http_port}") as client:
        tensor = httpclient.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        for _ in range(3):
            np.testing.assert_array_equal(client.infer(name, [tensor]).as_numpy("y"), x)


@pytest.mark.parametrize("element", sorted(graphs.TRITON_TYPES))
def test_every_element_type_arrives_bit_for_bit(triton: Triton, element: int) -> None:
    name = triton.load(graphs.config([("x", element, [3])], [("y", element, [3])]), graphs.identity(element, ["batch", 3]))
    dtype = helper.tensor_dtype_to_np_dtype(element)
    x = (np.random.default_rng(element).normal(size=(2, 3)) * 50).astype(dtype)
    for _ in range(2):  # the second run writes to Triton's own buffer
        y = triton.infer(name, {"x": x})["y"]
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, x)


@pytest.fixture(scope="module")
def two_inputs(triton: Triton) -> tuple[str, onnx.ModelProto]:
    model = graphs.model(
        [
            helper.make_node("Concat", ["a", "b"], ["joined"], axis=1),
            helper.make_node("Greater", ["a", "b"], ["greater"]),
            helper.make_node("Cast", ["b"], ["whole"], to=TensorProto.INT32),
            helper.make_node("ReduceMax", ["a", "axes"], ["largest"], keepdims=0),
        ],
        [graphs.value("a", TensorProto.FLOAT, ["batch", "n", 2]), graphs.value("b", TensorProto.FLOAT, ["batch", "n", 2])],
        [
            graphs.value("joined", TensorProto.FLOAT, ["batch", "twice", 2]),
            graphs.value("greater", TensorProto.BOOL, ["batch", "n", 2]),
            graphs.value("whole", TensorProto.INT32, ["batch", "n", 2]),
            graphs.value("largest", TensorProto.FLOAT, ["batch"]),
        ],
        [graphs.tensor("axes", np.array([1, 2], np.int64))],
    )
    config = graphs.config(
        [("a", TensorProto.FLOAT, [-1, 2]), ("b", TensorProto.FLOAT, [-1, 2])],
        [
            ("joined", TensorProto.FLOAT, [-1, 2]),
            ("greater", TensorProto.BOOL, [-1, 2]),
            ("whole", TensorProto.INT32, [-1, 2]),
        ],
    )
    # One number a row: Triton's configs cannot have empty dims; a reshape expresses it.
    config["output"].append({"name": "largest", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}})
    return triton.load(config, model), model


@FEW
@given(batch=st.integers(1, 8), length=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_several_inputs_outputs_and_shapes(
    triton: Triton, two_inputs: tuple[str, onnx.ModelProto], batch: int, length: int, seed: int
) -> None:
    name, model = two_inputs
    generator = np.random.default_rng(seed)
    inputs = {key: (generator.normal(size=(batch, length, 2)) * 9).astype(np.float32) for key in "ab"}
    answers = triton.infer(name, inputs)
    expected = oracle(model, inputs)
    expected["largest"] = expected["largest"].reshape(batch, 1)
    assert answers.keys() == expected.keys()
    for key, array in expected.items():
        assert answers[key].dtype == array.dtype
        np.testing.assert_array_equal(answers[key], array)


@FEW
@given(wanted=st.lists(st.sampled_from(["joined", "greater", "whole", "largest"]), min_size=1, unique=True))
def test_returns_only_the_requested_outputs(triton: Triton, two_inputs: tuple[str, onnx.ModelProto], wanted: list[str]) -> None:
    name, model = two_inputs
    inputs = {key: np.full((2, 3, 2), 1.5, np.float32) for key in "ab"}
    answers = triton.infer(name, inputs, wanted)
    assert sorted(answers) == sorted(wanted)
    for key in set(wanted) - {"largest"}:
        np.testing.assert_array_equal(answers[key], oracle(model, inputs)[key])


def test_without_batching(triton: Triton) -> None:
    config = graphs.config([("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])], max_batch_size=0)
    name = triton.load(config, graphs.identity(TensorProto.FLOAT, [2, 3]))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(2):
        np.testing.assert_array_equal(triton.infer(name, {"x": x})["y"], x)


def test_a_graph_that_states_no_output_shape(triton: Triton) -> None:
    model = graphs.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [graphs.value("x", TensorProto.FLOAT, ["n"]), graphs.value("shape", TensorProto.INT64, ["rank"])],
        [graphs.value("y", TensorProto.FLOAT, None)],
    )
    config = graphs.config(
        [("x", TensorProto.FLOAT, [-1]), ("shape", TensorProto.INT64, [-1])], [("y", TensorProto.FLOAT, [-1, -1])], max_batch_size=0
    )
    name = triton.load(config, model)
    x = np.arange(12, dtype=np.float32)
    for shape in ([3, 4], [2, 6], [12, 1]):
        answer = triton.infer(name, {"x": x, "shape": np.array(shape, np.int64)})
        np.testing.assert_array_equal(answer["y"], x.reshape(shape))


@pytest.fixture
def compress(triton: Triton) -> str:
    """`keep` decides the output's shape at run time; the graph claims 3."""
    model = graphs.model(
        [helper.make_node("Compress", ["x", "keep"], ["y"], axis=0)],
        [graphs.value("x", TensorProto.FLOAT, [4]), graphs.value("keep", TensorProto.BOOL, [4])],
        [graphs.value("y", TensorProto.FLOAT, [3])],
    )
    inputs = [("x", TensorProto.FLOAT, [4]), ("keep", TensorProto.BOOL, [4])]
    return triton.load(graphs.config(inputs, [("y", TensorProto.FLOAT, [-1])], max_batch_size=0), model)


def compressed(triton: Triton, name: str, keep: list[int]) -> None:
    x, mask = np.arange(4, dtype=np.float32), np.array(keep, bool)
    np.testing.assert_array_equal(triton.infer(name, {"x": x, "keep": mask})["y"], x[mask])


def test_shapes_that_the_graph_states_wrongly_are_answered_as_they_are(triton: Triton, compress: str) -> None:
    for keep in ([1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]):
        compressed(triton, compress, keep)


def test_a_graph_that_later_belies_its_shapes_fails_once(triton: Triton, compress: str) -> None:
    """By then a buffer of the stated shape was asked of Triton, which does not take it back."""
    for keep in ([1, 1, 1, 0], [0, 1, 1, 1]):
        compressed(triton, compress, keep)
    with pytest.raises(InferenceServerException, match="shape"):
        compressed(triton, compress, [1, 0, 0, 1])
    for keep in ([1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]):
        compressed(triton, compress, keep)


def test_warmup_runs_go_through_the_backend(triton: Triton) -> None:
    warmup = {"name": "zeros", "batch_size": 1, "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [4], "zero_data": True}}}
    name = triton.load({**graphs.AFFINE_CONFIG, "model_warmup": [warmup]}, graphs.affine())
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(triton.infer(name, {"x": x}, ["y"])["y"], 2 * x + 1)


def test_classification_names_the_best(triton: Triton, affine: str) -> None:
    request = infer_outputs(["y"])
    assert request is not None
    request[0]._output.parameters["classification"].int64_param = 1
    answer = triton.client.infer(affine, infer_inputs({"x": np.array([[0, 9, 1, 2]], np.float32)}), outputs=request).as_numpy("y")
    assert answer is not None
    assert answer[0, 0].decode().split(":")[1] == "1"
