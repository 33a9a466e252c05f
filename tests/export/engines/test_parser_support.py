"""The list of what TensorRT's parser supports: exported graphs are supported, and unsupported nodes are found.

The graphs of every architecture and pattern in fp32 are compared with the list where they are exported anyway: `graphs/test_tracing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import average_onnx, fused_onnx, onnx_from_checkpoint
from defensemble_export.engines.parser_support import parser_list, problems_of_graph
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.int8 import int8_from_onnx
from defensemble_export.graphs.mask_aware import plain_onnx
from defensemble_export.graphs.traversal import nodes_of
from defensemble_export.verification.tolerances import PRECISIONS
from defensemble_repository.ensemble import Ensemble, Member
from tests.export.graphs.test_tracing import SPECS, spec_of, untrained
from tests.support import tiny
from tests.support.facts import assert_facts


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, tiny.Array] | None = None,
    *,
    opset: int = 20,
    element: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", element, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def test_the_list_names_its_source_and_contains_the_operators_of_classifiers() -> None:
    documented = parser_list()
    assert "onnx-tensorrt" in documented.source
    assert documented.opsets[0] <= 20 <= documented.opsets[1], "the opset of what we export"
    assert len(documented.operators) == 158
    assert {"Conv", "Gemm", "Relu", "Where", "GlobalAveragePool", "QuantizeLinear", "DequantizeLinear", "Softmax"} <= set(
        documented.operators
    )
    assert not {"BitwiseAnd", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear", "Unique"} & set(documented.operators)
    assert documented.operators["Where"] >= {"BOOL", "FP32", "FP16"}
    assert documented.operators["DequantizeLinear"] == {"INT8", "FP8", "FP4", "INT4"}


@pytest.mark.parametrize("arch", [arch if arch == "vgg19" else pytest.param(arch, marks=pytest.mark.slow) for arch in SPECS])
def test_every_architecture_is_supported_in_every_precision(tmp_path: Path, arch: str) -> None:
    spec = spec_of(arch, "neuron")
    images = np.random.default_rng(0).random((8, *spec.input_shape), np.float32)
    model = onnx.load(onnx_from_checkpoint(untrained(tmp_path / "net.safetensors", spec), tmp_path / "net.onnx", verify=False))
    graphs = {"fp32": plain_onnx(model), "fp16": fp16_from_onnx(model), "int8": int8_from_onnx(model, images)}
    assert set(graphs) == set(PRECISIONS)
    assert {precision: problems_of_graph(graph) for precision, graph in graphs.items()} == {precision: [] for precision in PRECISIONS}
    assert {node.op_type for node in nodes_of(graphs["int8"].graph)} >= {"QuantizeLinear", "DequantizeLinear", "Where"}
    fused = fused_onnx([graph.SerializeToString() for graph in graphs.values()], Ensemble("e", tuple(Member(name) for name in graphs)))
    assert problems_of_graph(onnx.load_model_from_string(fused)) == []


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("members", [1, 3])
def test_averaging_and_fused_graphs_are_supported(average: str, members: int) -> None:
    ensemble = Ensemble("e", tuple(Member(f"m{index}", 1, 1.0 + index) for index in range(members)), average)
    graphs = [average_onnx(ensemble, 3), fused_onnx([tiny.linear_onnx(m) for m in range(members)], ensemble)]
    for content in graphs:
        model = onnx.load_model_from_string(content)
        assert {node.op_type for node in nodes_of(model.graph)} >= {"Softmax"}
        assert problems_of_graph(model) == []


def test_symmetric_quantisation_is_supported() -> None:
    zero, scale = np.array(0, np.int8), np.array(0.1, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
    ]
    assert problems_of_graph(graph_of(nodes, {"zero": zero, "scale": scale})) == []


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (
            graph_of([helper.make_node("Det", ["images"], ["logits"], name="det")]),
            "'det' (Det) | TensorRT 10.15",
        ),
        (
            graph_of([helper.make_node("Mine", ["images"], ["logits"], domain="acme")], domains=["acme"]),
            "'0' (Mine) | 'acme' | plugin",
        ),
        (
            graph_of([helper.make_node("DequantizeLinear", ["bias", "scale"], ["logits"], name="bias")], {
                "bias": np.zeros(4, np.int32), "scale": np.array(0.1, np.float32)
            }),
            "'bias' (DequantizeLinear) | 'bias' is INT32 | FP4, FP8, INT4, INT8",
        ),
        (
            graph_of([helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["logits"])], {
                "zero": np.array(3, np.int8), "scale": np.array(0.1, np.float32)
            }),
            "zero point 'zero' | constant 0",
        ),
        (
            graph_of([
                helper.make_node("Shape", ["images"], ["axes"]),
                helper.make_node("ReduceSum", ["images", "axes"], ["logits"], name="sum"),
            ]),
            "'sum' (ReduceSum) | 'axes' | initialiser",
        ),
        (
            graph_of([helper.make_node("MaxPool", ["images"], ["logits", "where"], kernel_shape=[2, 2])]),
            "'0' (MaxPool) | indices",
        ),
        (
            graph_of([helper.make_node("Relu", ["images"], ["logits"])], element=TensorProto.INT8),
            "'0' (Relu) | 'images' is INT8 | BF16, FP16, FP32, INT32, INT64",
        ),
        (graph_of([helper.make_node("Relu", ["images"], ["logits"])], opset=8), "opset 8 | 9 to 24"),
        (graph_of([helper.make_node("Relu", ["images"], ["logits"])], opset=25), "opset 25 | 9 to 24"),
    ],
)  # fmt: skip
def test_unsupported_operators_are_found_with_their_nodes(model: onnx.ModelProto, facts: str) -> None:
    (problem,) = problems_of_graph(model)
    assert_facts(problem, facts)


def test_operators_in_branches_are_checked() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["images"], [f"{name}_out"], name=name)], name, [], [output])

    node = helper.make_node("If", ["yes"], ["logits"], then_branch=branch("then", "Relu"), else_branch=branch("else", "Det"))
    model = graph_of([node], {"yes": np.array(True)})
    assert {node.op_type for node in nodes_of(model.graph)} == {"If", "Relu", "Det"}
    (problem,) = problems_of_graph(model)
    assert "node 'else' (Det)" in problem
