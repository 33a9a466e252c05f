"""Errors of the backend for configs and graphs that it cannot serve; the server keeps running."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton
from tests.support.facts import assert_facts, missing_facts, raises

FLOAT = TensorProto.FLOAT


def changed(**more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(graphs.AFFINE_CONFIG), **more}


def inputs(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], **entry} for entry in entries]


def outputs(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "y", "data_type": "TYPE_FP32", "dims": [4], **entry}]


CONFIGS = {
    "input of another name": (
        changed(input=inputs({"name": "pixels"})),
        "config.pbtxt | 'pixels' | 'x'",
    ),
    "output of another name": (
        changed(output=outputs({"name": "z"})),
        "config.pbtxt | 'z' | 'y', 'total'",
    ),
    "input of another type": (
        changed(input=inputs({"data_type": "TYPE_FP16"})),
        "'x' | TYPE_FP32 | TYPE_FP16 | config.pbtxt",
    ),
    "output of another type": (
        changed(output=outputs({"data_type": "TYPE_INT64"})),
        "'y' | TYPE_FP32 | TYPE_INT64 | config.pbtxt",
    ),
    "input of another shape": (
        changed(input=inputs({"dims": [5]})),
        "'x' | [-1,4] | [-1,5] | config.pbtxt | max_batch_size",
    ),
    "output of another rank": (
        changed(output=outputs({"dims": [2, 2]})),
        "'y' | [-1,4] | [-1,2,2] | config.pbtxt",
    ),
    "no batch": (
        changed(max_batch_size=0),
        "'x' | [-1,4] | [4] | config.pbtxt | max_batch_size is 0",
    ),
    "reshape to another shape": (
        changed(input=inputs({"dims": [4], "reshape": {"shape": [2, 2]}})),
        "'x' | [-1,4] | [-1,2,2] | config.pbtxt",
    ),
    "no inputs": (changed(input=[]), "config.pbtxt | 0 inputs | 1: 'x'"),
    "no outputs": (changed(output=[]), "config.pbtxt | no outputs | 'y', 'total'"),
    "an input that may be missing": (
        changed(input=inputs({"optional": True})),
        "optional | 'x'",
    ),
    "ragged batching": (changed(input=inputs({"allow_ragged_batch": True})), "ragged batching | 'x'"),
    "batch input": (
        changed(batch_input=[{"kind": "BATCH_ELEMENT_COUNT", "target_name": ["n"], "data_type": "TYPE_FP32", "source_input": ["x"]}]),
        "config.pbtxt | batch_input",
    ),
    "sequences": (changed(sequence_batching={"max_sequence_idle_microseconds": 1}), "sequence_batching"),
    "decoupled": (changed(model_transaction_policy={"decoupled": True}), "decoupled"),
    "a library of operators": (changed(model_operations={"op_library_filename": ["/opt/operators.so"]}), "model_operations"),
    "an accelerator": (
        changed(optimization={"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}),
        "asks for cpu_execution_accelerator 'openvino' (it runs only on CPUs)",
    ),
    "another file": (changed(default_model_filename="weights.onnx"), "weights.onnx"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(triton: Triton, case: str) -> None:
    config, expected = CONFIGS[case]
    text = triton.load_error(config, graphs.affine())
    assert_facts(text, expected)
    assert " version 1: " in text
    assert triton.alive()


def test_the_model_is_named(triton: Triton) -> None:
    name = triton.write(changed(input=inputs({"name": "pixels"})), graphs.affine())
    with raises(Exception, f"'{name}' | version 1 | 'pixels'"):
        triton.client.load_model(name)


def test_a_config_with_an_input_twice_is_refused(triton: Triton) -> None:
    config = changed(input=inputs({}, {}))
    text = triton.load_error(config, graphs.affine())
    assert not missing_facts(text, "2 inputs | 1") or not missing_facts(text, "'x' | more than once")


@pytest.mark.parametrize(("which", "position"), [("input", 0), ("output", 1)])
def test_a_fixed_batch_is_refused(triton: Triton, which: str, position: int) -> None:
    dims: list[list[int | str | None]] = [["batch", 4], ["batch", 4]]
    dims[position][0] = 1
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = graphs.model(nodes, [graphs.value("x", FLOAT, dims[0])], [graphs.value("y", FLOAT, dims[1])])
    text = triton.load_error(graphs.config([("x", FLOAT, [4])], [("y", FLOAT, [4])]), model)
    assert_facts(text, f"max_batch_size is 8 | {which}")
    assert_facts(text, "1 | max_batch_size to 0")


def test_an_input_too_many_in_the_graph_is_refused(triton: Triton) -> None:
    model = graphs.model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [graphs.value("x", FLOAT, ["batch", 4]), graphs.value("bias", FLOAT, ["batch", 4])],
        [graphs.value("y", FLOAT, ["batch", 4])],
    )
    text = triton.load_error(graphs.config([("x", FLOAT, [4])], [("y", FLOAT, [4])]), model)
    assert_facts(text, "1 inputs | 2: 'x', 'bias'")


def test_strings_are_refused(triton: Triton) -> None:
    config = {"max_batch_size": 8, "input": inputs({"data_type": "TYPE_STRING"}), "output": outputs({"data_type": "TYPE_STRING"})}
    text = triton.load_error(config, graphs.identity(TensorProto.STRING, ["batch", 4]))
    assert_facts(text, "'x' | element type 8")


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
    assert_facts(triton.load_error(*many_outputs(65)), "65 outputs | 64")


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
    with raises(Exception, "1/model.onnx | File doesn't exist"):
        triton.client.load_model(name)


def with_digest(digest: str) -> dict[str, Any]:
    return changed(**graphs.parameters(sha256__1=digest))


DIGEST = hashlib.sha256(graphs.affine().SerializeToString()).hexdigest()


def test_a_file_with_the_digest_of_its_config_is_loaded(triton: Triton) -> None:
    triton.load(with_digest(DIGEST), graphs.affine())


@pytest.mark.parametrize("digest", ["", DIGEST.upper(), DIGEST[:63], DIGEST + "0", f"g{DIGEST[1:]}", f" {DIGEST}"])
def test_a_malformed_digest_is_refused(triton: Triton, digest: str) -> None:
    text = triton.load_error(with_digest(digest), graphs.affine())
    assert_facts(text, f"sha256.1 | 64 lower-case hexadecimal digits | '{digest}' | sha256sum")


def test_a_file_with_another_digest_is_refused(triton: Triton) -> None:
    text = triton.load_error(with_digest("0" * 64), graphs.affine())
    assert_facts(text, f"{DIGEST[:16]}... | sha256.1 | 0000000000000000...")


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
