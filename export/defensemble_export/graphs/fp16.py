"""Convert an exported graph to float16, with float32 inputs and outputs."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from defensemble_repository.onnx_metadata import IR_VERSION

from ..errors import ExportError
from .copying import check_converted, make_initializers, named_copy
from .loading import invalid_reason
from .mask_aware import plain_onnx
from .operators import MOVES, QUANTISE_OPERATORS, STANDARD_DOMAINS, is_standard
from .traversal import graphs_of, names_of, nodes_of, replace, subgraphs, unique_name

MAX_FLOAT16 = float(np.finfo(np.float16).max)
MIN_NORMAL_FLOAT16 = float(np.finfo(np.float16).smallest_normal)
# Relative error of rounding to float16, for numbers in its normal range.
_ROUNDING = 2.0**-11
# Operators that turn images into features, or features into logits.
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
_LOCAL = frozenset(  # operators that compute each number from a few others, without steep functions
    (
        *("Abs", "Add", "BatchNormalization", "Clip", "Div", "Elu", "Erf", "Gelu", "GlobalMaxPool", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "MaxPool", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Sub", "Tanh", "Where"),
    )
)
# Sums over many values stay in float32, which costs almost no time. A mean of features is not larger than the features.
_MEANS = frozenset(("AveragePool", "GlobalAveragePool", "ReduceMean"))


def fp16_from_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a float32 graph to float16: the weights of convolutions and matrix products, and the operators after them.

    Inputs and outputs stay float32 under their names, masks stay BOOL initialisers under theirs, and the metadata are kept. `model` is not
    changed. All other operators keep their types: those before the first product, which normalise images (this way the zoo's networks
    agree with float32 on 99.99 % of the images, otherwise on 99.93 %), sums over many values, softmax, casts, and If, Loop and Scan with
    their bodies. A value that one of these reads keeps its name and type, and its float16 copy gets a new name.

    Raises:
        ExportError: The graph is invalid, has local functions, is quantised, has no float32 product outside bodies, or has a weight that
            float16 cannot represent (above 65504, or NaN). The message names it.

    Example:
        >>> onnx.save(fp16_from_onnx(onnx.load("vgg19.onnx")), "vgg19_fp16.onnx")
    """
    copy = named_copy(plain_onnx(model))
    copy.ir_version = IR_VERSION
    if reason := invalid_reason(copy):
        raise ExportError(
            f"the graph is not valid ONNX, in any precision: {reason}; export it again and check it with "
            "onnx.checker.check_model(model, full_check=True)"
        )
    _check_not_quantised(copy.graph)
    make_initializers(copy.graph)
    _Conversion(copy).convert()
    return check_converted(copy, "fp16")


def _check_not_quantised(graph: onnx.GraphProto) -> None:
    for node in nodes_of(graph):
        if node.op_type in QUANTISE_OPERATORS:
            raise ExportError(
                f"the graph is already quantised (node '{node.name}', {node.op_type}), and only float32 graphs can be converted to fp16: "
                "export it as fp32, which keeps the graph as it is, or convert the original float32 network"
            )


class _Conversion:
    """The conversion of a graph to float16."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.graph = model.graph
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 0)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats |= {name for name, tensor in self.constants.items() if tensor.data_type == TensorProto.FLOAT}
        self.sources = {name: [tensor] for name, tensor in self.constants.items()}  # the constants of which a value is a copy
        self.features: set[str] = set()
        self.taken = names_of(self.graph) | {node.name for node in self.graph.node}

    def convert(self) -> None:
        """Convert the graph in place."""
        chosen = {node.name: ports for node in self.graph.node if (ports := self._float16_ports(node))}
        if not any(node.op_type in _PRODUCTS for node in self.graph.node if node.name in chosen):
            raise ExportError(
                f"the graph has nothing to convert to fp16: no {', '.join(sorted(_PRODUCTS))} of the ONNX standard computes in float32 "
                "outside the bodies of If, Loop and Scan; export it as fp32, which keeps the graph as it is"
            )
        self._rewrite(chosen)

    def _float16_ports(self, node: onnx.NodeProto) -> tuple[list[int], list[int]] | None:
        """Return the positions of the inputs and outputs of `node` that become float16; None if the node does not change."""
        if not is_standard(node):
            return None
        inputs = [name for name in node.input if name in self.floats]
        if node.op_type in MOVES and all(name in self.sources for name in inputs):
            self.sources |= {name: [tensor for source in inputs for tensor in self.sources[source]] for name in node.output}
        follows = any(name in self.features for name in inputs)
        if node.op_type in _MEANS and follows:
            self.features.update(node.output)
        if not (node.op_type in _PRODUCTS or (follows and node.op_type in MOVES | _LOCAL)):
            return None
        if node.op_type == "Div" and node.input[1] not in self.sources:
            return None  # the divisor may become 0 in float16
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        ports = _ports(schema.inputs, node.input), _ports(schema.outputs, node.output)
        if not all(node.input[port] in self.floats for port in ports[0]) or not all(node.output[port] in self.floats for port in ports[1]):
            return None
        if not all(_fits_float16(node, port, tensor) for port in ports[0] for tensor in self.sources.get(node.input[port], ())):
            return None
        self.features.update(node.output[port] for port in ports[1])
        return ports

    def _rewrite(self, chosen: dict[str, tuple[list[int], list[int]]]) -> None:
        """Compute the `chosen` nodes in float16, with casts between them and the others."""
        float32_names = {output.name for output in self.graph.output}
        for node in self.graph.node:
            inputs, _ = chosen.get(node.name, ([], []))
            float32_names.update(name for port, name in enumerate(node.input) if port not in inputs)
            bodies = [inner for body in subgraphs(node) for inner in graphs_of(body)]
            float32_names.update(name for body in bodies for inner in body.node for name in inner.input)
            float32_names.update(output.name for body in bodies for output in body.output)
        rounded = float32_names | (self.floats - set(self.constants))  # values computed in float32 keep their names, too
        halves: dict[str, str] = {}  # value to its float16 copy
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            inputs, outputs = chosen.get(node.name, ([], []))
            node = onnx.NodeProto.FromString(node.SerializeToString())
            for port in inputs:
                name = node.input[port]
                if name not in halves:
                    halves[name] = self._half_name(name, rounded)
                    if name in self.constants:
                        self._add_half(self.constants[name], halves[name])
                    else:
                        nodes.append(self._cast(name, halves[name], TensorProto.FLOAT16))
                node.input[port] = halves[name]
            nodes.append(node)
            for port in outputs:
                name = node.output[port]
                node.output[port] = halves[name] = self._half_name(name, float32_names)
                if name in float32_names:
                    nodes.append(self._cast(halves[name], name, TensorProto.FLOAT))
        replace(self.graph, "node", nodes)

    def _half_name(self, name: str, float32_names: Container[str]) -> str:
        if name not in float32_names:
            return name
        half = unique_name(f"{name}_float16", self.taken)
        self.taken.add(half)
        return half

    def _add_half(self, tensor: onnx.TensorProto, name: str) -> None:
        """Convert an initialiser, or add a converted copy if the name differs."""
        target = tensor if tensor.name == name else self.graph.initializer.add()
        target.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))

    def _cast(self, source: str, target: str, to: int) -> onnx.NodeProto:
        name = unique_name(f"{target}_cast", self.taken)
        self.taken.add(name)
        return helper.make_node("Cast", [source], [target], name=name, to=to)


def _ports(formal: Sequence[onnx.defs.OpSchema.FormalParameter], names: Sequence[str]) -> list[int]:
    """Return the positions of `names` that the schema's `formal` parameters allow to be float16; the last parameter may be variadic."""
    return [port for port, name in enumerate(names) if name and "tensor(float16)" in formal[min(port, len(formal) - 1)].types]


def _fits_float16(node: onnx.NodeProto, port: int, tensor: onnx.TensorProto) -> bool:
    """Return whether float16 represents a constant as exactly as `node` needs; raise an ExportError if it is a weight of a product."""
    values = numpy_helper.to_array(tensor)
    size = np.abs(values)
    largest = float(size.max(initial=0.0))
    if node.op_type in _PRODUCTS:
        if not largest <= MAX_FLOAT16:  # true for NaN, too
            value = "NaN" if np.isnan(largest) else f"{largest:g}"
            raise ExportError(f"'{tensor.name}' contains {value}; float16 has finite numbers up to {MAX_FLOAT16:g} only: export it as fp32")
        if port < 2 and 0 < largest < MIN_NORMAL_FLOAT16:
            raise ExportError(
                f"the largest value of '{tensor.name}' is {largest:g}, and float16 rounds coarsely below {MIN_NORMAL_FLOAT16:g}: "
                "export it as fp32"
            )
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(values.astype(np.float16) - values)
        # The statistics of a dead channel may be rounded to 0: only their size relative to the other channels matters.
        return bool((error <= _ROUNDING * (largest if node.op_type == "BatchNormalization" else size)).all())
