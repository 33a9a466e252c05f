"""Random networks of every operation that a mask-aware program knows, for property tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
SHAPE = (3, 9, 8)
Shape = tuple[int, int, int]
LAYERS = (
    *("conv", "conv", "masked", "masked", "mask", "mask", "relu", "norm", "scale", "add", "scaled", "concat"),
    "identity",
    *("maxpool", "avgpool", "sigmoid"),
)


@dataclass
class _Graph:
    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    tensors: list[tuple[str, Shape]] = field(default_factory=lambda: [("images", SHAPE)])

    def constant(self, values: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, *shape: int) -> str:
        generator = np.random.default_rng((self.seed, len(self.constants)))
        return self.constant(generator.normal(0, 0.7, shape).astype(np.float32))

    def divisor(self, *shape: int) -> str:
        generator = np.random.default_rng((self.seed, len(self.constants)))
        return self.constant((generator.uniform(0.5, 2, shape) * generator.choice((-1, 1), shape)).astype(np.float32))

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.tensors.append((name, shape))
        return name


def _extents(
    extents: tuple[int, int], kernel: list[int], strides: list[int], pads: list[int], dilations: list[int], ceil: bool = False
) -> list[int]:
    results = []
    for axis in (0, 1):
        free = extents[axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1
        results.append((-(-free // strides[axis]) if ceil else free // strides[axis]) + 1)
    return results


@st.composite
def masked_graphs(draw: st.DrawFn, layers: int = 12, masks: str = "all") -> onnx.ModelProto:
    """Networks from `images` [N,3,9,8] to `logits` [N,2]: masks of each pattern or one, odd windows, tensors with several readers."""
    graph = _Graph(draw(st.integers(0, 1000)))
    zero = graph.constant(np.zeros(draw(st.sampled_from(((), (1,), (1, 1, 1, 1)))), np.float32))
    small = st.integers(1, 3)

    def conv(name: str, shape: Shape) -> None:
        groups = draw(st.sampled_from((1, 1, 1, 1, 1, shape[0])))
        channels = draw(st.integers(1, 4)) * groups
        kernel, strides, dilations = ([draw(small), draw(small)] for _ in range(3))
        pads = [draw(st.integers(0, 2)) for _ in range(4)]
        extents = _extents(shape[1:], kernel, strides, pads, dilations)
        if min(extents) < 1:
            kernel, strides, pads, dilations, extents = [1, 1], [1, 1], [0] * 4, [1, 1], list(shape[1:])
        inputs = [name, graph.normal(channels, shape[0] // groups, *kernel)]
        if draw(st.booleans()):
            inputs.append(graph.normal(channels))
        result: Shape = (channels, extents[0], extents[1])
        graph.add("Conv", inputs, result, strides=strides, pads=pads, dilations=dilations, group=groups)

    def mask(name: str, shape: Shape) -> None:
        channels, height, width = shape
        dims: tuple[int, ...] = (
            (channels, 1, 1) if masks == "channel" else draw(st.sampled_from((shape, shape, (channels, 1, 1), (1, height, width))))
        )
        if draw(st.booleans()):
            dims = (1, *dims)
        keep, is_new = draw(st.sampled_from((0.0, 0.1, 0.3, 0.6, 1.0))), draw(st.booleans())
        values = np.random.default_rng((graph.seed, len(graph.constants))).random(dims) < keep
        fitting = [each.name for each in graph.constants if each.data_type == TensorProto.BOOL and tuple(each.dims) == dims]
        chosen = graph.constant(values) if is_new or not fitting else fitting[-1]
        graph.add("Where", [chosen, name, zero], shape)

    for _ in range(draw(st.integers(3, layers))):
        layer = draw(st.sampled_from(LAYERS))
        name, shape = graph.tensors[-draw(st.integers(1, min(4, len(graph.tensors))))]
        channels, height, width = shape
        if layer in ("conv", "masked"):
            conv(name, shape)
            if layer == "masked":
                mask(*graph.tensors[-1])
                if draw(st.booleans()):
                    graph.add("Relu", [graph.tensors[-1][0]], graph.tensors[-1][1])
        elif layer == "mask":
            mask(name, shape)
        elif layer in ("relu", "sigmoid", "identity"):
            graph.add(layer.title(), [name], shape)
        elif layer == "norm":
            variance = graph.constant(np.random.default_rng(graph.seed).uniform(0.5, 1.5, channels).astype(np.float32))
            graph.add("BatchNormalization", [name, *(graph.normal(channels) for _ in range(3)), variance], shape, epsilon=1e-3)
        elif layer == "scale":
            dims = draw(st.sampled_from(((), (1,), (channels, 1, 1), (1, channels, 1, 1))))
            operator = draw(st.sampled_from(("Sub", "Mul", "Add", "Div")))
            constant = graph.divisor(*dims) if operator == "Div" else graph.normal(*dims)
            swapped = operator in ("Mul", "Add") and draw(st.booleans())
            graph.add(operator, [constant, name] if swapped else [name, constant], shape)
        elif layer == "add":
            others = [other for other, its_shape in graph.tensors if its_shape == shape]
            graph.add("Add", [name, draw(st.sampled_from(others))], shape)
        elif layer == "scaled":
            mean = graph.add("ReduceMean", [name, graph.constant(np.array([2, 3]))], (channels, 1, 1), keepdims=1)
            if draw(st.booleans()):
                mean = graph.add("Sigmoid", [mean], (channels, 1, 1))
            graph.add(draw(st.sampled_from(("Mul", "Add"))), [name, mean] if draw(st.booleans()) else [mean, name], shape)
        elif layer == "concat":
            sources = [each for each in graph.tensors if each[1][1:] == shape[1:]]
            other = draw(st.sampled_from(sources))
            graph.add("Concat", [name, other[0]], (channels + other[1][0], height, width), axis=draw(st.sampled_from((1, -3))))
        else:
            kernel = [draw(small), draw(small)]
            pads = [draw(st.integers(0, size - 1)) for size in (*kernel, *kernel)]
            strides = [draw(small), draw(small)]
            ceil = layer == "maxpool" and draw(st.booleans())
            extents = _extents(shape[1:], kernel, strides, pads, [1, 1], ceil)
            # onnx (1.23) infers a last window even if it begins behind the image; ONNX Runtime does not compute it.
            begins = zip(extents, strides, shape[1:], pads, strict=False)
            if ceil and any((count - 1) * stride >= extent + pad for count, stride, extent, pad in begins):
                continue
            if min(extents) >= 1:
                extra = {"ceil_mode": int(ceil)} if layer == "maxpool" else {"count_include_pad": int(draw(st.booleans()))}
                operator = "MaxPool" if layer == "maxpool" else "AveragePool"
                graph.add(operator, [name], (channels, extents[0], extents[1]), kernel_shape=kernel, strides=strides, pads=pads, **extra)
    # All tensors that nothing reads go into the logits.
    read = {name for node in graph.nodes for name in node.input}
    ends = [(name, shape) for name, shape in graph.tensors if name not in read]
    means = []
    for name, shape in ends:
        mean = graph.add("ReduceMean", [name, graph.constant(np.array([2, 3]))], shape, keepdims=0)
        means.append(graph.add("Gemm", [mean, graph.normal(shape[0], 2)], shape))
    graph.nodes.append(helper.make_node("Sum", means, ["logits"]))
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "generated",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *SHAPE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
