"""Networks for property tests: small, of every kind of node and body that the converters meet, with names and axes chosen to mislead.

A `Recipe` describes a network; `graph_from_recipe` writes it as ONNX. The same recipe under another `naming` computes the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
_Type = tuple[int, Sequence[str | int | None]]
SHAPE = (3, 6, 6)
CLASSES = 5
CHANNELS = 4
# Layers of maps [N,4,6,6] and of vectors [N,F] which keep the shape.
MAP_LAYERS = ("conv", "relu", "pool", "norm", "mask", "add", "residual", "identity", "if", "loop", "scan")
VECTOR_LAYERS = ("gemm", "matmul", "relu", "mask", "add", "identity", "if", "loop", "scan")
REDUCTIONS = ("mean", "flatten", "reshape 0 -1", "reshape -1 F", "pool")
# How the batch axis may be written: a name, no value at all, and a number that ONNX Runtime reads as free. Of values inside and outputs it
# takes 0 too, mostly (an If or Loop that allocates what it gives fails), hence converters are to read it as free.
FREE = ("N", "batch", "größe", "", None, -1)

_SUFFIXES = (
    *("_quantized", "_scale", "_zero_point", "_QuantizeLinear", "_QuantizeLinear_Output", "_QuantizeLinear_Input", "_DequantizeLinear"),
    *("_DequantizeLinear_Output", "_float32", "_free", "_inner", "_cast", "_cast_to_fp16", "_", "0", "1", "2"),
)
_ODD = (
    *("1", "2", "11", "12", "120", "121", "normalize.mean", "normalize.std", "normalize.images", "normalize.centred", "logits_0", "a b"),
    *("m0/logits", "m1/images", "average_/weights", "probabilities", "entropy", "member_probabilities", "mutual_information", "层/1"),
    *("graph_input_cast_0", "graph_output_cast_0", "größe", "images_", "images/", "logits_", "logits_inner", "<0>", "x", "x/y", "'x'"),
)


@dataclass(frozen=True)
class Recipe:
    """What a network computes, and how its axes are written."""

    maps: tuple[str, ...] = ()
    reduction: str = "mean"
    vectors: tuple[str, ...] = ()
    seed: int = 0
    axes: tuple[str | int | None, str | int | None, str | int | None] = ("N", "N", "N")  # of the input, the output, and values inside
    constant_nodes: bool = False  # half of the constants are nodes
    constants_as_inputs: bool = False  # initialisers are listed as inputs too
    last: str = ""  # a layer behind the logits


def recipes(maps: Sequence[str] = MAP_LAYERS, vectors: Sequence[str] = VECTOR_LAYERS) -> st.SearchStrategy[Recipe]:
    """Recipes of up to five layers of maps and three of vectors."""
    return st.builds(
        Recipe,
        maps=st.lists(st.sampled_from(maps), max_size=5).map(tuple),
        reduction=st.sampled_from(REDUCTIONS),
        vectors=st.lists(st.sampled_from(vectors), max_size=3).map(tuple),
        seed=st.integers(0, 1000),
        axes=st.tuples(st.sampled_from(FREE), st.sampled_from((*FREE, 0)), st.sampled_from((*FREE, 0))),
        constant_nodes=st.booleans(),
        constants_as_inputs=st.booleans(),
        last=st.sampled_from(("", "", "identity", "if", "add")),
    )


def graph_from_recipe(recipe: Recipe, naming: int | None = None) -> onnx.ModelProto:
    """Return `images` FP32 [N,3,6,6] to `logits` FP32 [N,5], opset 20, IR 10.

    Args:
        recipe: what it computes.
        naming: seed of misleading names; None: names that mean nothing to any converter, none twice, and "N" for each free axis.
    """
    return _Writer(recipe, naming).model()


@dataclass
class _Scope:
    """A graph in the making: the main graph, or a body."""

    outer: _Scope | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)  # names of the bodies inside

    def visible(self) -> set[str]:
        return self.names | (self.outer.visible() if self.outer else set())

    def add(self, name: str) -> None:
        self.names.add(name)
        scope = self.outer
        while scope is not None:
            scope.below.add(name)
            scope = scope.outer


class _Writer:
    def __init__(self, recipe: Recipe, naming: int | None) -> None:
        self.recipe = recipe
        self.choose = random.Random(recipe.seed)
        self.naming = None if naming is None else random.Random(naming)
        self.axes = ("N", "N", "N") if naming is None else recipe.axes
        self.values = np.random.default_rng(recipe.seed)
        self.count = 0
        self.scope = self.main = _Scope(names={"images", "logits"})
        self.shared: dict[tuple[int, ...], list[str]] = {}  # float constants of the main graph, by shape
        self.maps: list[str] = []  # tensors of the same shape as the present one
        self.all_names: list[str] = ["images", "logits"]

    def name(self, scope: _Scope, shadowing: Iterable[str] = ()) -> str:
        """A name for a new tensor of `scope`: none that is visible there, but maybe that of a tensor of a body next to it.

        An initialiser of a body may be called as an outer tensor of `shadowing` is.
        """
        self.count += 1
        if self.naming is None:
            name = f"t{self.count:03}t"
        else:
            taken = (scope.visible() | scope.below) - set(shadowing)
            inner = [*self.all_names, *shadowing] if scope.outer else []
            name = "logits"
            while name in taken:
                name = self.naming.choice([*_ODD, *inner, *(one + suffix for one in self.all_names[-12:] for suffix in _SUFFIXES)])
        scope.add(name)
        self.all_names.append(name)
        return name

    def node_name(self) -> str:
        """Often none; ONNX Runtime refuses a graph, but not a body, that has a name twice."""
        used = {node.name for node in self.scope.nodes}
        return "" if self.naming is None else self.naming.choice(["", "", *sorted({"Conv_0", "x", *self.all_names[-12:]} - used)])

    def node(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or self.name(self.scope)
        self.scope.nodes.append(helper.make_node(op_type, inputs, [output], name=self.node_name(), **attributes))
        return output

    def constant(self, value: Array, *, mask: bool = False, shadowing: Iterable[str] = ()) -> str:
        """An initialiser of the present scope, or a Constant node."""
        as_node = self.recipe.constant_nodes and not mask and self.choose.random() < 0.5
        name = self.name(self.scope, () if as_node else shadowing)
        tensor = numpy_helper.from_array(value, name)
        if as_node:
            return self.node("Constant", [], name, value=tensor)
        self.scope.initializers.append(tensor)
        return name

    def weight(self, *shape: int) -> str:
        """A constant of the main graph, maybe one that another node reads already; in a body, mostly an outer one."""
        known = self.shared.get(shape, [])
        if known and self.choose.random() < 0.5:
            return self.choose.choice(known)
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        name = self.constant((self.values.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))
        if self.scope is self.main:
            self.shared.setdefault(shape, []).append(name)
        return name

    def layer(self, kind: str, value: str, shape: tuple[int, ...]) -> str:
        """`value` [N, *shape] through a layer that keeps its shape."""
        channels = shape[0]
        ones = (1,) * (len(shape) - 1)
        if kind == "conv":
            size = self.choose.choice((1, 3))
            bias = [self.weight(channels)] if self.choose.random() < 0.7 else []
            return self.node("Conv", [value, self.weight(channels, channels, size, size), *bias], pads=[size // 2] * 4)
        if kind == "gemm":
            options = self.choose.choice(({}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "beta": 0.25}))
            bias = [self.weight(channels)] if self.choose.random() < 0.7 else []
            return self.node("Gemm", [value, self.weight(channels, channels), *bias], **options)
        if kind == "matmul":
            return self.node("MatMul", [value, self.weight(channels, channels)])
        if kind == "pool":
            kernel: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4}
            return self.node(self.choose.choice(("MaxPool", "AveragePool")), [value], **kernel)
        if kind == "norm":
            variance = self.constant(self.values.random(channels, np.float32) + np.float32(0.5))
            return self.node("BatchNormalization", [value, *(self.weight(channels) for _ in range(3)), variance])
        if kind == "mask":
            mask = self.constant(self.values.random(shape) < 0.7, mask=True)
            return self.node("Where", [mask, value, self.constant(np.zeros((), np.float32))])
        if kind == "add":
            return self.node("Add", [value, self.weight(channels, *ones)])
        if kind == "residual":
            return self.node("Add", [value, self.choose.choice(self.maps)])
        if kind in ("if", "loop", "scan"):
            write: Callable[[str, tuple[int, ...]], str] = getattr(self, f"_{kind}")
            return write(value, shape)
        return self.node({"relu": "Relu", "identity": "Identity"}[kind], [value])

    def body(
        self, name: str, inputs: Sequence[_Type], outputs: Sequence[_Type | None], write: Callable[[list[str]], list[str]]
    ) -> onnx.GraphProto:
        """A body from `inputs` to `outputs`, whose nodes `write` makes of the names of its inputs, returning those of its outputs."""
        scope = self.scope = _Scope(outer=self.scope)
        entries = [helper.make_tensor_value_info(self.name(scope), *one) for one in inputs]
        names = write([entry.name for entry in entries])
        assert scope.outer is not None
        self.scope = scope.outer
        results = [
            helper.make_empty_tensor_value_info(name) if one is None else helper.make_tensor_value_info(name, *one)
            for name, one in zip(names, outputs, strict=True)
        ]
        return helper.make_graph(scope.nodes, name, entries, results, scope.initializers)

    def inside(self, value: str, shape: tuple[int, ...], depth: int = 0) -> str:
        """What a body does with a value: reads weights and results of the outer graphs, its own constants, and nested bodies."""
        for _ in range(self.choose.randint(1, 3)):
            kind = self.choose.choice(("weight", "outer", "own", "layer", "nested", "identity"))
            if kind == "outer" and self.maps:
                value = self.node("Mul", [value, self.choose.choice(self.maps)])
            elif kind == "own":
                captured = {name for node in self.scope.nodes for name in node.input}
                free = set() if self.naming is None else self.main.names - captured - {"images", "logits", value, *self.maps}
                # What the body reads later from outside must not be hidden: weights that are shared stay visible.
                free -= {name for names in self.shared.values() for name in names}
                value = self.node("Add", [value, self.constant(np.full((1,) * len(shape), 0.25, np.float32), shadowing=sorted(free))])
            elif kind == "layer":
                value = self.layer(
                    self.choose.choice(("conv", "relu", "add") if len(shape) == 3 else ("gemm", "relu", "add")), value, shape
                )
            elif kind == "nested" and depth < 1:
                value = self._if(value, shape, depth + 1)
            elif kind == "weight":
                value = self.node("Mul", [value, self.weight(shape[0], *(1,) * (len(shape) - 1))])
            else:
                value = self.node("Identity", [value])
        return value

    def _if(self, value: str, shape: tuple[int, ...], depth: int = 0) -> str:
        # ONNX Runtime (1.32) replaces an If of a constant condition by its branch, and loses names that nested ones read.
        if not depth and self.choose.random() < 0.5:
            condition = self.constant(np.array(self.choose.random() < 0.5))
        else:  # computed, and always true
            condition = self.node("Less", [self.node("ReduceMax", ["images"], keepdims=0), self.constant(np.array(10, np.float32))])
        kind = self.choose.choice((None, self.batch_of(shape)))
        branches: dict[str, Any] = {
            f"{which}_branch": self.body(which, [], [kind], lambda _: [self.inside(self.node("Abs", [value]), shape, depth)])
            for which in ("then", "else")
        }
        return self.node("If", [condition], **branches)

    def _loop(self, value: str, shape: tuple[int, ...]) -> str:
        going, maps = (TensorProto.BOOL, ()), self.batch_of(shape)
        body = self.body(
            "body",
            [(TensorProto.INT64, ()), going, maps],
            [going, maps],
            lambda names: [self.node("Identity", [names[1]]), self.inside(names[2], shape)],
        )
        return self.node("Loop", [self.constant(np.array(2)), "", value], body=body)

    def _scan(self, value: str, shape: tuple[int, ...]) -> str:
        maps = self.batch_of(shape)
        body = self.body("body", [maps, (TensorProto.FLOAT, ())], [maps], lambda names: [self.inside(self.node("Add", names), shape)])
        rows = self.constant(np.array([0.5, -0.25], np.float32))
        return self.node("Scan", [value, rows], body=body, num_scan_inputs=1)

    def batch_of(self, shape: tuple[int, ...]) -> _Type:
        """The type of tensors [N, *shape] inside."""
        return TensorProto.FLOAT, (self.axes[2], *shape)

    def model(self) -> onnx.ModelProto:
        shape: tuple[int, ...] = (CHANNELS, *SHAPE[1:])
        value = "images"
        if self.choose.random() < 0.5:
            value = self.node("Sub", [value, self.constant(np.full((3, 1, 1), 0.5, np.float32))])
            value = self.node("Div", [value, self.constant(np.full((3, 1, 1), 0.25, np.float32))])
        value = self.node("Conv", [value, self.weight(CHANNELS, 3, 3, 3), self.weight(CHANNELS)], pads=[1] * 4)
        for kind in self.recipe.maps:
            self.maps.append(value)
            value = self.layer(kind, value, shape)
        value, shape = self._reduced(value, shape)
        self.maps = []
        for kind in self.recipe.vectors:
            self.maps.append(value)
            value = self.layer(kind, value, shape)
        last = self.recipe.last
        self.maps = []
        bias = self.weight(CLASSES)
        value = self.node("Gemm", [value, self.weight(CLASSES, shape[0]), bias], "" if last else "logits", transB=1)
        if last:
            value = self.layer(last, value, (CLASSES,))
            self.scope.nodes[-1].output[0] = "logits"
        return self._finished()

    def _reduced(self, value: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        size = int(np.prod(shape))
        kind = self.recipe.reduction
        if kind == "mean":
            return self.node("ReduceMean", [value, self.constant(np.array([2, 3]))], keepdims=0), shape[:1]
        if kind == "pool":
            return self.node("Flatten", [self.node("GlobalAveragePool", [value])]), shape[:1]
        if kind == "flatten":
            return self.node("Flatten", [value]), (size,)
        target = [0, -1] if kind == "reshape 0 -1" else [-1, size]
        return self.node("Reshape", [value, self.constant(np.array(target))]), (size,)

    def _finished(self) -> onnx.ModelProto:
        batch, out, inside = self.axes
        inputs = [_value_info("images", [batch, *SHAPE])]
        if self.recipe.constants_as_inputs:
            inputs += [helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in self.main.initializers]
        infos = [_value_info(node.output[0], [inside, CHANNELS, *SHAPE[1:]]) for node in self.main.nodes if node.op_type == "Conv"]
        graph = helper.make_graph(
            self.main.nodes, "generated", inputs, [_value_info("logits", [out, CLASSES])], self.main.initializers, value_info=infos
        )
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _value_info(name: str, shape: Sequence[str | int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
