"""ONNX classifiers as other people write them, each with numpy's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
SHAPE = (3, 6, 8)
CLASSES = 5
Shape = Sequence[int | str | None]


def parameters(seed: int = 0) -> dict[str, Array]:
    """Convolution 3x3 (4 channels), BatchNorm and a linear layer."""
    generator = np.random.default_rng(seed)
    shapes = {"conv.w": (4, 3, 3, 3), "conv.b": (4,), "bn.bias": (4,), "bn.mean": (4,), "fc.w": (CLASSES, 4), "fc.b": (CLASSES,)}
    values = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return values | {name: generator.random(4, np.float32) + np.float32(0.5) for name in ("bn.scale", "bn.var")}


def answer(images: Array, seed: int = 0) -> Array:
    """What `classifier(seed=seed)` answers, float64."""
    p = {name: value.astype(np.float64) for name, value in parameters(seed).items()}
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maps = np.einsum("nchwij,ocij->nohw", windows, p["conv.w"]) + p["conv.b"][:, None, None]
    scale = p["bn.scale"] / np.sqrt(p["bn.var"] + 1e-5)
    maps = np.maximum((maps - p["bn.mean"][:, None, None]) * scale[:, None, None] + p["bn.bias"][:, None, None], 0)
    pooled: Array = maps.mean((2, 3)) @ p["fc.w"].T + p["fc.b"]
    return pooled


def classifier(
    *,
    opset: int = 18,
    seed: int = 0,
    shape: Shape = ("N", *SHAPE),
    tail: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[tuple[str, int, Shape]] = (("scores", TensorProto.FLOAT, ("N", CLASSES)),),
    image: str = "x",
    flatten: Sequence[int] | None = None,
    elem_type: int = TensorProto.FLOAT,
    more: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """`image` to `scores`: convolution, BatchNorm, ReLU, max pool of 1, mean, Flatten (or Reshape to `flatten`), Dropout, Gemm, `tail`."""
    values = {**parameters(seed), **({} if flatten is None else {"flat.shape": np.array(flatten, np.int64)})}
    reduction = helper.make_node("Flatten", ["pooled"], ["flat"])
    if flatten is not None:
        reduction = helper.make_node("Reshape", ["pooled", "flat.shape"], ["flat"])
    nodes = [
        helper.make_node("Conv", [image, "conv.w", "conv.b"], ["conv"], pads=[1] * 4, name="conv", doc_string="made by a stranger"),
        helper.make_node("BatchNormalization", ["conv", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["bn"]),
        helper.make_node("Relu", ["bn"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["max"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["max"], ["pooled"]),
        reduction,
        helper.make_node("Dropout", ["flat"], ["kept"]),
        helper.make_node("Gemm", ["kept", "fc.w", "fc.b"], ["scores"], transB=1),
        *tail,
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info(image, elem_type, shape)],
        [helper.make_tensor_value_info(name, kind, sides) for name, kind, sides in outputs],
        [*(numpy_helper.from_array(value, name) for name, value in values.items()), *more],
        doc_string="theirs",
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    model = helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="theirs", doc_string="of theirs")
    helper.set_model_props(model, {"author": "a stranger"})
    if version < 4:  # every initialiser was an input
        graph = model.graph
        graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in graph.initializer)
    return model


def loop(trips: str, value: str, made: str, inner: Sequence[onnx.NodeProto] = ()) -> onnx.NodeProto:
    """A Loop over the tensor `value`, whose body doubles it, or is `inner`, which reads `MADE_in` and makes `MADE_out`."""
    before, after = f"{made}_in", f"{made}_out"
    body = helper.make_graph(
        [helper.make_node("Identity", [f"{made}_cond"], [f"{made}_go"]), *(inner or [helper.make_node("Add", [before, before], [after])])],
        f"{made}_body",
        [
            helper.make_tensor_value_info(f"{made}_i", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{made}_cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info(before, TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info(f"{made}_go", TensorProto.BOOL, []), helper.make_tensor_value_info(after, TensorProto.FLOAT, None)],
    )
    return helper.make_node("Loop", [trips, "", value], [made], body=body)


def doubling(depth: int) -> onnx.ModelProto:
    """A classifier whose tail calls a function that calls another one twice, and so on: 2^depth nodes when it is inlined."""
    tail = [helper.make_node(f"F{depth}", ["scores"], ["logits"], domain="mine")]
    model = classifier(tail=tail, domains=["mine"], outputs=[("logits", TensorProto.FLOAT, ("N", CLASSES))])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    model.functions.append(helper.make_function("mine", "F0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], imports))
    for level in range(1, depth + 1):
        calls = [helper.make_node(f"F{level - 1}", [read], [made], domain="mine") for read, made in (("a", "t"), ("t", "b"))]
        model.functions.append(helper.make_function("mine", f"F{level}", ["a"], ["b"], calls, imports))
    return model


def write(folder: Path, model: onnx.ModelProto | bytes, name: str = "theirs.onnx") -> Path:
    """Save a model as one file."""
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def write_external(folder: Path, **entries: str) -> Path:
    """Save `classifier()` with `fc.w` in `weights.bin`, 16 bytes in; `entries` override what the file records about it."""
    model = classifier()
    tensor = next(one for one in model.graph.initializer if one.name == "fc.w")
    (folder / "weights.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    recorded = {"location": "weights.bin", "offset": "16", "length": str(len(tensor.raw_data))} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in recorded.items():
        tensor.external_data.add(key=key, value=value)
    return write(folder, model)
