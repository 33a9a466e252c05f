"""The precision of a graph follows from what its operators consume, whatever types its other constants have."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportOptions, OnnxSource
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.int8 import int8_from_onnx
from defensemble_export.graphs.loading import cpu_session
from defensemble_export.graphs.precision import computed_precision, computes_in_float16
from defensemble_export.verification.tolerances import TOLERANCES
from tests.support import foreign_models as foreign

FLOAT = TensorProto.FLOAT
CODES = np.arange(25, dtype=np.uint8).reshape(5, 5)
BITS, ROW = CODES % np.uint8(2), CODES[0] + np.uint8(1)
DENSE = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
IMAGES = np.random.default_rng(0).random((8, *foreign.SHAPE), np.float32)


def network(*nodes: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """Return a float32 classifier whose `nodes` compute the logits (N, 5) from the scores (N, 5), `dense` (5, 5) and the constants."""
    values = {"dense": DENSE, "zero": np.float32(0), "low": np.float32(0), "high": np.float32(4), **constants}
    read = {name for node in nodes for name in node.input}
    more = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in read or name in constants]
    return foreign.classifier(opset=19, tail=nodes, more=more, outputs=[("logits", FLOAT, ("N", 5))])


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def cast(source: str, target: str, to: int = FLOAT) -> onnx.NodeProto:
    return op("Cast", source, target, to=to)


def scanned(matrices: foreign.Array) -> onnx.ModelProto:
    """Return a network with a Scan that multiplies the scores with each of the matrices."""
    kind = helper.np_dtype_to_tensor_dtype(matrices.dtype)
    entries = [helper.make_tensor_value_info(name, elem_type, None) for name, elem_type in (("state", FLOAT), ("part", kind))]
    after: Any = helper.make_tensor_value_info("after", FLOAT, None)
    body = helper.make_graph([cast("part", "matrix"), op("MatMul", "state matrix", "after")], "body", entries, [after])
    return network(op("Scan", "scores held", "logits", body=body, num_scan_inputs=1), held=matrices)


def recurrent(matrix: foreign.Array) -> onnx.ModelProto:
    """Return a network with a Loop whose state begins as a constant, is multiplied with a matrix, and gets the scores added."""
    inner = [cast("held", "w"), op("MatMul", "state_in w", "product"), op("Add", "product scores", "state_out")]
    constants = {"held": matrix, "trips": np.array(2), "start": np.ones((1, 5), np.float32)}
    return network(foreign.loop("trips", "start", "state", inner), op("Identity", "state", "logits"), **constants)


PRODUCT = op("MatMul", "scores w", "logits")
MASKED = [cast("held", "m"), op("Mul", "dense m", "w"), PRODUCT]
CLIPPED = op("Clip", "scores low high", "clipped")
LOOKED_UP = [CLIPPED, cast("clipped", "indices", TensorProto.INT64), op("Gather", "held indices", "found")]
EMBEDDED = [*LOOKED_UP, cast("found", "features"), op("MatMul", "features dense", "logits")]

FLOAT32 = {
    "table of indices": network(cast("held", "i", TensorProto.INT64), op("Gather", "scores i", "logits", axis=1), held=ROW % np.uint8(5)),
    "mask of values": network(cast("held", "m"), op("Mul", "scores m", "logits"), held=BITS[0]),
    "mask as a condition": network(cast("held", "m", TensorProto.BOOL), op("Where", "m scores zero", "logits"), held=BITS[0]),
    "mask of weights": network(*MASKED, held=BITS),
    "mask of columns": network(*MASKED, held=BITS[0]),
    "compared mask": network(op("Equal", "held one", "m"), op("Where", "m dense zero", "w"), PRODUCT, held=BITS, one=np.uint8(1)),
    "embedding": network(*EMBEDDED, held=ROW.astype(np.int8)),
    "float16 embedding": network(*EMBEDDED, held=ROW.astype(np.float16)),
    "images of 8 bits": network(CLIPPED, cast("clipped", "u", TensorProto.UINT8), cast("u", "f"), op("MatMul", "f dense", "logits")),
    "factors and biases": network(cast("held", "f"), op("Mul", "scores f", "s"), op("Gemm", "s dense f", "logits"), held=ROW),
    "float16 factors": network(cast("held", "f"), op("Mul", "scores f", "logits"), held=ROW.astype(np.float16)),
    "positions": network(cast("held", "p"), op("MatMul", "p dense", "q"), op("Add", "scores q", "logits"), held=CODES[:1]),
    "shape of a constant": network(op("Shape", "held", "s"), op("Reshape", "flat_ s", "w"), PRODUCT, held=CODES, flat_=DENSE.reshape(-1)),
    "arithmetic of shapes": network(
        op("Shape", "scores", "s"), op("Mul", "s s_", "t"), op("Reshape", "scores t", "logits"), s_=np.array([1, 1])
    ),
    "Scan": scanned(np.stack([DENSE, DENSE])),
    "Loop": recurrent(DENSE),
}
LOWER = {
    "weight scaled by hand": ("int8", network(cast("held", "c"), op("Mul", "c scales", "w"), PRODUCT, held=CODES, scales=DENSE[:1])),
    "masked weight": ("int8", network(cast("held", "c"), op("Where", "m c zero", "w"), PRODUCT, held=CODES, m=CODES > 3)),
    "codes of a codebook": (
        "int8",
        network(cast("held", "i", TensorProto.INT64), op("Gather", "book i", "w"), PRODUCT, held=CODES % np.uint8(4), book=DENSE[0]),
    ),
    "weights that a Scan slices": ("int8", scanned(np.stack([CODES, CODES]))),
    "weight of a Loop's state": ("int8", recurrent(CODES)),
    "quantised activations": (
        "int8",
        network(op("QuantizeLinear", "scores s z", "q"), op("DequantizeLinear", "q s z", "logits"), s=np.float32(0.1), z=np.uint8(128)),
    ),
    "dynamic quantisation": ("int8", network(op("DynamicQuantizeLinear", "scores", "q s z"), op("DequantizeLinear", "q s z", "logits"))),
    "integer product": (
        "int8",
        network(CLIPPED, cast("clipped", "u", TensorProto.UINT8), op("MatMulInteger", "u held", "i"), cast("i", "logits"), held=CODES),
    ),
    "float16 weight scaled by hand": (
        "fp16",
        network(cast("held", "c"), op("Mul", "c scales", "w"), PRODUCT, held=DENSE.astype(np.float16), scales=DENSE[:1]),
    ),
    "float16 features of a table": (
        "fp16",
        network(
            *LOOKED_UP, op("MatMul", "found half", "h"), cast("h", "logits"), held=ROW.astype(np.float16), half=DENSE.astype(np.float16)
        ),
    ),
}


@pytest.mark.parametrize("name", FLOAT32)
def test_constants_that_no_product_multiplies_leave_a_network_float32(tmp_path: Path, name: str) -> None:
    graph = onnx_from_foreign(foreign.write(tmp_path, FLOAT32[name]))
    assert computed_precision(graph) == "fp32"
    expected = cpu_session(graph.SerializeToString()).run(None, {"images": IMAGES})[0]
    for precision, converted in (("fp16", fp16_from_onnx(graph)), ("int8", int8_from_onnx(graph, IMAGES))):
        assert computed_precision(converted) == precision
        # Optimised int8 kernels saturate on CPUs without VNNI.
        got = cpu_session(converted.SerializeToString(), optimise=False).run(None, {"images": IMAGES})[0]
        # An index or a pixel may be rounded to its neighbour.
        assert np.median(np.abs(got - expected)) <= 0.05 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", LOWER)
def test_weights_and_values_of_few_bits_are_found(name: str) -> None:
    precision, model = LOWER[name]
    onnx.checker.check_model(model, full_check=True)
    assert computed_precision(model) == precision
    assert computes_in_float16(model) == (precision == "fp16")


def test_a_quantised_network_with_float16_parts_is_compared_as_float16(tmp_path: Path) -> None:
    """ONNX Runtime rounds float16 in other places at another opset, whether or not the graph is quantised, too."""
    nodes = [cast("scores", "h", TensorProto.FLOAT16), op("Relu", "h", "r"), cast("r", "f")]
    quantise = [op("QuantizeLinear", "f s z", "q"), op("DequantizeLinear", "q s z", "logits")]
    model = network(*nodes, *quantise, s=np.float32(1e-3), z=np.uint8(0))
    assert (computed_precision(model), computes_in_float16(model)) == ("int8", True)
    OnnxSource(foreign.write(tmp_path, model), "a").write_onnx(tmp_path / "a.onnx", max_batch_size=2)
    report = json.loads((tmp_path / "a.onnx.json").read_bytes())
    assert (report["precision"], report["tolerance"]) == ("int8", asdict(TOLERANCES["fp16"]))


def test_a_float32_file_with_an_integer_table_is_exported_in_int8(tmp_path: Path) -> None:
    source = OnnxSource(foreign.write(tmp_path, FLOAT32["table of indices"]), "a")
    options = ExportOptions("int8", IMAGES)
    written = source.write_onnx(tmp_path / "a.onnx", max_batch_size=2, options=options, images=IMAGES)
    assert {node.op_type for node in onnx.load(written).graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Gather"}
