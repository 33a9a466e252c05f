"""What the backend says, when a model is loaded, of configs and graphs that it cannot serve; the server stays up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton

FLOAT = TensorProto.FLOAT
NO_SUCH = "which the graph does not have"
NOT_OFFERED = "which this backend does not offer"


def changed(**more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(graphs.AFFINE_CONFIG), **more}


def inputs(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], **entry} for entry in entries]


def outputs(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "y", "data_type": "TYPE_FP32", "dims": [4], **entry}]


CONFIGS = {
    "input of another name": (
        changed(input=inputs({"name": "pixels"})),
        f"config.pbtxt names an input 'pixels', {NO_SUCH}; its inputs are 'x'",
    ),
    "output of another name": (
        changed(output=outputs({"name": "z"})),
        f"config.pbtxt names an output 'z', {NO_SUCH}; its outputs are 'y', 'total'",
    ),
    "input of another type": (
        changed(input=inputs({"data_type": "TYPE_FP16"})),
        "input 'x' is TYPE_FP32 in the graph, but TYPE_FP16 in config.pbtxt",
    ),
    "output of another type": (
        changed(output=outputs({"data_type": "TYPE_INT64"})),
        "output 'y' is TYPE_FP32 in the graph, but TYPE_INT64 in config.pbtxt",
    ),
    "input of another shape": (
        changed(input=inputs({"dims": [5]})),
        "input 'x' has shape [-1,4] in the graph, but [-1,5] in config.pbtxt, the batch in front (max_batch_size is not 0)",
    ),
    "output of another rank": (
        changed(output=outputs({"dims": [2, 2]})),
        "output 'y' has shape [-1,4] in the graph, but [-1,2,2] in config.pbtxt",
    ),
    "no batch": (
        changed(max_batch_size=0),
        "input 'x' has shape [-1,4] in the graph, but [4] in config.pbtxt (max_batch_size is 0: no batch in front)",
    ),
    "reshape to another shape": (
        changed(input=inputs({"dims": [4], "reshape": {"shape": [2, 2]}})),
        "input 'x' has shape [-1,4] in the graph, but [-1,2,2] in config.pbtxt",
    ),
    "no inputs": (changed(input=[]), "config.pbtxt names 0 inputs, the graph has 1: 'x'; name each of them once"),
    "no outputs": (changed(output=[]), "config.pbtxt names no outputs; the graph has 'y', 'total'"),
    "an input that may be missing": (
        changed(input=inputs({"optional": True})),
        "an optional input ('x'), which this backend does not offer",
    ),
    "ragged batching": (changed(input=inputs({"allow_ragged_batch": True})), f"ragged batching ('x'), {NOT_OFFERED}"),
    "batch input": (
        changed(batch_input=[{"kind": "BATCH_ELEMENT_COUNT", "target_name": ["n"], "data_type": "TYPE_FP32", "source_input": ["x"]}]),
        f"config.pbtxt asks for batch_input, {NOT_OFFERED}: remove it",
    ),
    "sequences": (changed(sequence_batching={"max_sequence_idle_microseconds": 1}), "asks for sequence_batching"),
    "decoupled": (changed(model_transaction_policy={"decoupled": True}), "asks for a decoupled transaction policy"),
    "an accelerator": (
        changed(optimization={"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}),
        "asks for cpu_execution_accelerator 'openvino' (it runs only on CPUs)",
    ),
    "another file": (changed(default_model_filename="weights.onnx"), "weights.onnx failed"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(triton: Triton, case: str) -> None:
    config, expected = CONFIGS[case]
    text = triton.load_error(config, graphs.affine())
    assert expected in text
    assert " version 1: " in text
    assert triton.alive()


def test_the_model_is_named(triton: Triton) -> None:
    name = triton.write(changed(input=inputs({"name": "pixels"})), graphs.affine())
    with pytest.raises(Exception, match=f"model '{name}' version 1: config.pbtxt names an input 'pixels'"):
        triton.client.load_model(name)


def test_a_config_with_an_input_twice_is_refused(triton: Triton) -> None:
    config = changed(input=inputs({}, {}))
    text = triton.load_error(config, graphs.affine())
    assert "config.pbtxt names 2 inputs, the graph has 1" in text or "'x' more than once" in text


@pytest.mark.parametrize(("which", "position"), [("input", 0), ("output", 1)])
def test_a_fixed_batch_is_refused(triton: Triton, which: str, position: int) -> None:
    dims: list[list[int | str | None]] = [["batch", 4], ["batch", 4]]
    dims[position][0] = 1
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = graphs.model(nodes, [graphs.value("x", FLOAT, dims[0])], [graphs.value("y", FLOAT, dims[1])])
    text = triton.load_error(graphs.config([("x", FLOAT, [4])], [("y", FLOAT, [4])]), model)
    assert f"max_batch_size is 8, but the first dimension of {which} " in text
    assert "is fixed at 1 in the graph; export it with a dynamic batch, or set max_batch_size to 0" in text


def test_an_input_too_many_in_the_graph_is_refused(triton: Triton) -> None:
    model = graphs.model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [graphs.value("x", FLOAT, ["batch", 4]), graphs.value("bias", FLOAT, ["batch", 4])],
        [graphs.value("y", FLOAT, ["batch", 4])],
    )
    text = triton.load_error(graphs.config([("x", FLOAT, [4])], [("y", FLOAT, [4])]), model)
    assert "config.pbtxt names 1 inputs, the graph has 2: 'x', 'bias'" in text


def test_strings_are_refused(triton: Triton) -> None:
    config = {"max_batch_size": 8, "input": inputs({"data_type": "TYPE_STRING"}), "output": outputs({"data_type": "TYPE_STRING"})}
    text = triton.load_error(config, graphs.identity(TensorProto.STRING, ["batch", 4]))
    assert "the graph's input 'x' is of ONNX element type 8; this backend serves booleans, integers and floating-point numbers" in text


def test_what_is_no_tensor_is_refused(triton: Triton) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, ["batch", 4])
    model = graphs.model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [graphs.value("x", FLOAT, ["batch", 4])], [sequence])
    text = triton.load_error(graphs.config([("x", FLOAT, [4])], [("y", FLOAT, [4])]), model)
    assert "the graph's output 'y' is not a tensor" in text


def many_outputs(count: int) -> tuple[dict[str, Any], onnx.ModelProto]:
    names = [f"y{i}" for i in range(count)]
    model = graphs.model(
        [helper.make_node("Identity", ["x"], [name]) for name in names],
        [graphs.value("x", FLOAT, ["batch", 1])],
        [graphs.value(name, FLOAT, ["batch", 1]) for name in names],
    )
    return graphs.config([("x", FLOAT, [1])], [(name, FLOAT, [1]) for name in names]), model


def test_as_many_outputs_as_there_may_be(triton: Triton) -> None:
    answers = triton.infer(triton.load(*many_outputs(64)), {"x": np.array([[7]], np.float32)})
    assert sorted(answers) == sorted(f"y{i}" for i in range(64))
    assert all(array == [[7]] for array in answers.values())
    assert "the graph has 65 outputs, this backend serves at most 64" in triton.load_error(*many_outputs(65))


@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="without a GPU Triton itself refuses the model, before the backend is asked")
def test_a_gpu_is_refused(triton: Triton) -> None:
    text = triton.load_error(changed(instance_group=[{"kind": "KIND_GPU", "gpus": [0]}]), graphs.affine())
    assert "instance_group asks for a GPU, write kind: KIND_CPU" in text


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", graphs.affine().SerializeToString()[:90]], ids=["empty", "text", "cut off"])
def test_a_corrupt_file_is_refused_and_the_others_serve(triton: Triton, content: bytes) -> None:
    other = triton.load(graphs.AFFINE_CONFIG, graphs.affine())
    assert "cannot load '" in triton.load_error(graphs.AFFINE_CONFIG, content)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(triton.infer(other, {"x": x})["y"], 2 * x + 1)


def test_a_missing_file_is_refused(triton: Triton) -> None:
    name = triton.write(graphs.AFFINE_CONFIG, graphs.affine())
    (triton.repository / name / "1" / "model.onnx").unlink()
    with pytest.raises(Exception, match=r"cannot load '.*/1/model.onnx': .*File doesn't exist"):
        triton.client.load_model(name)


def test_names_with_unusual_characters(triton: Triton) -> None:
    """They go through Triton's JSON and the backend's reader of it."""
    text = triton.load_error(changed(input=inputs({"name": 'p"<\\é\U0001f600\n'})), graphs.affine())
    assert "names an input 'p\"<\\é\U0001f600\n'" in text


def test_edits_leave_nothing_behind(triton: Triton) -> None:
    """Loaded and unloaded again and again: the server's memory stays."""
    name = triton.write(graphs.AFFINE_CONFIG, graphs.affine())

    def resident_kb() -> int:
        with open(f"/proc/{triton.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    for round_number in range(150):
        triton.client.load_model(name)
        triton.infer(name, {"x": np.ones((1, 4), np.float32)})
        triton.client.unload_model(name)
        if round_number == 50:
            before = resident_kb()
    assert resident_kb() < before + 20_000
