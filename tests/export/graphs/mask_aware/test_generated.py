"""Random networks: a support never misses a neuron that is needed and can be non-zero, and programs compute what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import event, given, settings
from onnx import numpy_helper

from defensemble_export.graphs.mask_aware import plain_onnx
from defensemble_export.graphs.mask_aware.function import Region, with_programs
from defensemble_export.graphs.mask_aware.lowering import needed
from defensemble_export.graphs.mask_aware.operations import read_network, supported_nodes
from defensemble_export.graphs.mask_aware.region import best_candidate, candidate
from tests.conftest import UNTIMED
from tests.support.generated_masked_graphs import SHAPE, masked_graphs
from tests.support.parsed_programs import parse_program
from tests.support.program_interpreter import run_program, run_tensors

Array = np.ndarray[Any, Any]
IMAGES = np.random.default_rng(0).normal(0, 1, (2, *SHAPE)).astype(np.float32)


def answers(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, (np.asarray(each) for each in session.run(names, {"images": IMAGES})), strict=True))


def assert_close(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(want).max(initial=0))))


@settings(UNTIMED)
@given(masked_graphs())
def test_supports_contain_what_is_needed_and_not_zero(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    network = read_network(model)
    operations = list(supported_nodes(network, "images"))
    if not operations:
        return
    found = candidate(network, operations, "images")
    program = found.lowered.program
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = run_tensors(program.text(), [IMAGES, *(constants[name] for name in program.inputs[1:])])
    demands = needed(operations, found.outputs, network)
    values = answers(model, [operation.output for operation in operations])
    for tensor, support, origins in zip(tensors, found.supports, found.lowered.operations, strict=True):
        assert not tensor[:, ~support.support].any(), "the program computes nothing outside the support"
        if origins:
            name = origins[-1].output
            is_needed = demands[name].evaluate(network.masks(), network.shapes[name])
            assert not values[name][:, is_needed & ~support.support].any(), f"{name}: a needed neuron that is not 0 has no row"
            assert_close(tensor[:, is_needed], values[name][:, is_needed])
    assert parse_program(program.text(), program.inputs) == program


@settings(UNTIMED)
@given(masked_graphs())
def test_node_and_program_compute_what_the_graph_computes(model: onnx.ModelProto) -> None:
    network = read_network(model)
    found = best_candidate(network, "images")
    event("compiled" if found is not None else "nothing to compile")
    if found is None:
        return
    program = found.lowered.program
    shapes = tuple(network.shapes[name] for name in found.outputs)
    region = Region(tuple(operation.node for operation in found.operations), found.outputs, shapes, program)
    compiled = with_programs(model, [region])
    onnx.checker.check_model(compiled, full_check=True)
    want = answers(model, ["logits", *found.outputs])
    np.testing.assert_array_equal(answers(compiled, ["logits"])["logits"], want["logits"])
    np.testing.assert_array_equal(answers(plain_onnx(compiled), ["logits"])["logits"], want["logits"])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    outputs = run_program(program.text(), [IMAGES, *(constants[name] for name in program.inputs[1:])])
    for name, output in zip(found.outputs, outputs, strict=True):
        assert_close(output, want[name])
    assert sum(counts.kept for counts in found.counts if counts is not None) <= sum(
        counts.unpadded for counts in found.counts if counts is not None
    )
