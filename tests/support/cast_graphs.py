"""Networks for property tests of float16: casts, types in attributes, constants of every form and size, between the layers of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.support.generated_graphs import FREE, MAP_LAYERS, REDUCTIONS, VECTOR_LAYERS, Recipe, _Writer

_FLOAT, _HALF, _DOUBLE, _INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64


class _CastWriter(_Writer):
    """Writes a recipe whose layers may also be the `TYPED` ones."""

    def layer(self, kind: str, value: str, shape: tuple[int, ...]) -> str:
        write = TYPED.get(kind)
        return super().layer(kind, value, shape) if write is None else write(self, value, shape)

    def number(self, value: Any, dtype: Any = np.float32) -> str:
        return self.constant(np.array(value, dtype))

    def sum_of(self, value: str, other: str) -> str:
        """`value` plus a small part of another computed value, of any compatible shape."""
        return self.node("Add", [value, self.node("Mul", [other, self.number(0.01)])])

    def outputs(self, op_type: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        names = [self.name(self.scope) for _ in range(count)]
        self.scope.nodes.append(helper.make_node(op_type, inputs, names, name=self.node_name(), **attributes))
        return names

    def size(self, value: str, axis: int) -> str:
        return self.node("Gather", [self.node("Shape", [value]), self.number(axis, np.int64)])


def _through(to: int, dtype: Any) -> Callable[[_CastWriter, str, tuple[int, ...]], str]:
    def write(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
        inner = writer.node("Cast", [value], to=to)
        inner = writer.node("Mul", [inner, writer.number(0.5, dtype)])
        return writer.node("Cast", [inner], to=_FLOAT)

    return write


def _cast_product(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """A product in float64 or float16 inside of the network."""
    to, dtype = writer.choose.choice(((_DOUBLE, np.float64), (_HALF, np.float16)))
    weight = writer.constant((writer.values.normal(size=(shape[-1],) * 2) / np.sqrt(shape[-1])).astype(dtype))
    return writer.node("Cast", [writer.node("MatMul", [writer.node("Cast", [value], to=to), weight])], to=_FLOAT)


def _cast_integer(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """A thousandth of the integers that features are cut to: one that is cut otherwise changes little."""
    integer = writer.node("Cast", [value], to=writer.choose.choice((_INT, TensorProto.INT32)))
    return writer.node("Add", [value, writer.node("Mul", [writer.node("Cast", [integer], to=_FLOAT), writer.number(0.001)])])


def _cast_images(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """Exact integers and comparisons of images."""
    levels = writer.node("Cast", [writer.node("Cast", [writer.node("Mul", ["images", writer.number(255)])], to=_INT)], to=_FLOAT)
    bright = writer.node("Cast", [writer.node("Greater", ["images", writer.number(0.5)])], to=_FLOAT)
    mean = writer.node("ReduceMean", [writer.node("Mul", [levels, bright])], keepdims=0)
    return writer.sum_of(value, writer.node("Div", [mean, writer.number(255)]))


def _cast_like(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    return writer.node("Mul", [value, writer.node("CastLike", [writer.number(2, np.int64), value])])


def _shape_number(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """A float made of a shape: 65537 times it, divided again."""
    size = writer.node("Mul", [writer.node("Cast", [writer.size(value, 1)], to=_FLOAT), writer.number(65537)])
    size = writer.node("Div", [size, writer.number(65537 * shape[0])])
    return writer.node("Mul", [value, writer.node("Floor", [writer.node("Add", [size, writer.number(0.25)])])])


def _constant_of_shape(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    filled: dict[str, Any] = writer.choose.choice(({}, {"value": numpy_helper.from_array(np.array([0.25], np.float32))}))
    return writer.node("Add", [value, writer.node("ConstantOfShape", [writer.node("Shape", [value])], **filled)])


def _made(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """EyeLike, OneHot, Range, random numbers of no weight: types in attributes, or of no input."""
    dtype: dict[str, Any] = writer.choose.choice(({}, {"dtype": _FLOAT}))
    square = writer.number(np.zeros((shape[-1], shape[-1])))
    kind = writer.choose.choice(("eye", "hot", "range", "random", "random like"))
    if kind == "eye":
        return writer.node("MatMul", [value, writer.node("EyeLike", [square], **dtype)])
    if kind == "hot":
        indices = writer.number(np.arange(shape[-1])[::-1], np.int64)
        hot = writer.node("OneHot", [indices, writer.number(shape[-1], np.int64), writer.number([0.0, 1.0])])
        return writer.node("MatMul", [value, hot])
    if kind == "range":
        steps = writer.node("Range", [writer.number(0.0), writer.number(float(shape[-1])), writer.number(1.0)])
        return writer.node("Add", [value, writer.node("Mul", [steps, writer.number(0.125)])])
    if kind == "random":
        noise = writer.node("RandomNormal", [], shape=[shape[-1]], **dtype)
    else:
        noise = writer.node("RandomUniformLike", [value], **dtype)
    return writer.node("Add", [value, writer.node("Mul", [noise, writer.number(0.0)])])


def _clip(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    least, most = (writer.choose.choice(("", -bound, bound)) for bound in (3.5, 3.4e38))
    bounds = ["" if bound == "" else writer.number(bound) for bound in (least, most)]
    if least != "" and most != "" and float(least) > float(most):
        bounds = [bounds[0]]
    return writer.node("Clip", [value, *bounds])


def _padded(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    axes = len(shape) + 1
    pads = writer.number([0] * axes + [0] * (axes - 1) + [1], np.int64)
    filling = writer.choose.choice(([], [writer.number(0.5)], ["", writer.number([axes - 1], np.int64)]))
    if len(filling) == 2:
        pads = writer.number([0, 1], np.int64)
    padded = writer.node("Pad", [value, pads, *filling])
    ends = [writer.number([number], np.int64) for number in (0, shape[-1], axes - 1)]
    return writer.node("Slice", [padded, *ends])


def _scaled(factor: float) -> Callable[[_CastWriter, str, tuple[int, ...]], str]:
    """A factor that float16 does not hold, and back."""

    def write(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
        scaled = writer.node("Mul", [value, writer.number(factor)])
        return writer.node("Div", [writer.node("Relu", [scaled]), writer.number(factor)])

    return write


def _hidden(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """Scores of which some are masked with the lowest number there is."""
    mask = writer.constant(writer.values.random(shape) < 0.7, mask=True)
    lowest = writer.number(writer.choose.choice((-np.inf, np.finfo(np.float32).min, -1e9)))
    return writer.node("Relu", [writer.node("Where", [mask, value, lowest])])


def _root_mean_square(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    square = writer.node("Pow", [value, writer.number(2, writer.choose.choice((np.float32, np.int64)))])
    mean = writer.node("ReduceMean", [square, writer.number([-1], np.int64)])
    root = writer.node("Sqrt", [writer.node("Add", [mean, writer.number(1e-12)])])
    return writer.node("Div", [value, writer.node("Add", [root, writer.number(0.5)])])


def _log_softmax(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    probabilities = writer.node("Softmax", [value], axis=-1)
    probabilities = writer.node(writer.choose.choice(("Identity", "Abs", "Dropout")), [probabilities])
    return writer.sum_of(value, writer.node("Log", [writer.node("Add", [probabilities, writer.number(1e-9)])]))


def _norm(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    kinds = {"LayerNormalization": shape[-1:], "LpNormalization": ()}
    if len(shape) == 3:
        kinds |= {"InstanceNormalization": shape[:1], "BatchNormalization": shape[:1]}
    kind = writer.choose.choice(sorted(kinds))
    if kind == "LpNormalization":
        return writer.sum_of(value, writer.node(kind, [writer.node("Abs", [value])], axis=1, p=2))
    weights = [writer.weight(*kinds[kind]), writer.weight(*kinds[kind])]
    if kind == "BatchNormalization":  # a dead channel, and large ones
        weights += [writer.weight(shape[0]), writer.number([1e-30, 1.0, 8e4, 1e-6][: shape[0]])]
    normal = writer.node(kind, [value, *weights], epsilon=0.1)
    return writer.sum_of(value, normal)


def _moved(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """Weights that come through nodes, and features that are moved about."""
    size = shape[-1]
    weight = writer.node("Transpose", [writer.weight(size, size)], perm=[1, 0])
    weight = writer.node("Reshape", [writer.node("Identity", [weight]), writer.number([size, -1], np.int64)])
    return writer.node("MatMul", [value, weight])


def _split(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    parts = writer.outputs("Split", [value, writer.number([1, shape[-1] - 1], np.int64)], 2, axis=-1)
    parts[0] = writer.node(writer.choose.choice(("Sqrt", "Exp", "Identity")), [writer.node("Sigmoid", [parts[0]])])
    return writer.node("Concat", parts, axis=-1)


def _sorted(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    values, _ = writer.outputs("TopK", [value, writer.number([shape[-1]], np.int64)], 2)
    return writer.sum_of(value, values)


def _sequence(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    pair = writer.node("SequenceConstruct", [value, writer.node("Sigmoid", [value])])
    both = writer.node("ConcatFromSequence", [pair], axis=1)
    ends = [writer.number([number], np.int64) for number in (0, shape[0], 1)]
    return writer.node("Slice", [both, *ends])


def _dropped(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    kept, mask = writer.outputs("Dropout", [value, writer.number(0.3), writer.number(False, np.bool_)], 2)
    return writer.node("Where", [mask, kept, writer.number(0.0)])


def _active(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    kinds = (
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
    )
    if writer.choose.random() < 0.2:
        return writer.node("PRelu", [value, writer.weight(shape[0], *(1,) * (len(shape) - 1))])
    return writer.node(writer.choose.choice(kinds), [value])


def _constant_node(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """A Constant of numbers, or a sparse one."""
    form: dict[str, Any] = writer.choose.choice(({"value_float": 0.75}, {"value_floats": [0.75]}, {"sparse_value": _sparse(shape[-1])}))
    return writer.node("Add", [value, writer.node("Constant", [], **form)])


def _sparse(size: int) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([0.5], np.float32), "")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1]), ""), [size])


def _resized(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return writer.node("Expand", [value, writer.number([1, 1], np.int64)])
    scales = writer.number([1, 1, 2, 2])
    roi = writer.choose.choice(("", writer.number([])))
    return writer.node("MaxPool", [writer.node("Resize", [value, roi, scales])], kernel_shape=[2, 2], strides=[2, 2])


def _einsum(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    return writer.node("Einsum", [value, writer.weight(shape[-1], shape[-1])], equation="...i,ij->...j")


def _rearranged(writer: _CastWriter, value: str, shape: tuple[int, ...]) -> str:
    """There and back: a reversal, a repetition, an axis more, and for maps blocks and a transposed convolution."""
    backwards = writer.number(np.arange(shape[-1])[::-1], np.int64)
    value = writer.node("Gather", [value, backwards], axis=-1)
    axis = writer.number([1], np.int64)
    value = writer.node("Squeeze", [writer.node("Unsqueeze", [value, axis]), axis])
    value = writer.node("Tile", [value, writer.number([1] * (len(shape) + 1), np.int64)])
    if len(shape) == 1:
        return value
    value = writer.node("DepthToSpace", [writer.node("SpaceToDepth", [value], blocksize=2)], blocksize=2)
    return writer.node("ConvTranspose", [value, writer.weight(shape[0], shape[0], 1, 1)])


TYPED: dict[str, Callable[[_CastWriter, str, tuple[int, ...]], str]] = {
    "cast float": _through(_FLOAT, np.float32),
    "cast double": _through(_DOUBLE, np.float64),
    "cast half": _through(_HALF, np.float16),
    "cast product": _cast_product,
    "cast integer": _cast_integer,
    "cast images": _cast_images,
    "cast like": _cast_like,
    "shape": _shape_number,
    "constant of shape": _constant_of_shape,
    "made": _made,
    "clip": _clip,
    "pad": _padded,
    "large": _scaled(1e6),
    "small": _scaled(1e-8),
    "hidden": _hidden,
    "rms": _root_mean_square,
    "log": _log_softmax,
    "typed norm": _norm,
    "moved": _moved,
    "split": _split,
    "sorted": _sorted,
    "sequence": _sequence,
    "dropout": _dropped,
    "active": _active,
    "constant": _constant_node,
    "resize": _resized,
    "einsum": _einsum,
    "rearranged": _rearranged,
}


def cast_recipes() -> st.SearchStrategy[Recipe]:
    """Recipes of up to four layers of maps and three of vectors, most of them of the `TYPED` ones."""
    typed = tuple(TYPED)
    return st.builds(
        Recipe,
        maps=st.lists(st.sampled_from((*typed, *MAP_LAYERS)), max_size=4).map(tuple),
        reduction=st.sampled_from(REDUCTIONS),
        vectors=st.lists(st.sampled_from((*typed, *VECTOR_LAYERS)), max_size=3).map(tuple),
        seed=st.integers(0, 100_000),
        axes=st.tuples(st.sampled_from(FREE), st.just("N"), st.sampled_from((*FREE, 0))),
        constant_nodes=st.booleans(),
        constants_as_inputs=st.booleans(),
        last=st.sampled_from(("", "identity", "if", "add", *typed)),
    )


def cast_graph(recipe: Recipe, naming: int | None = None) -> onnx.ModelProto:
    """As `graph_from_recipe`, with the `TYPED` layers too."""
    return _CastWriter(recipe, naming).model()
