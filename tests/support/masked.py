"""Small masked networks in ONNX, written without torch, in the plain and the mask-aware form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from defensemble_export import ExportedMember

Array = np.ndarray[Any, Any]
CLASSES = ("circle", "square", "triangle")
SHAPE = (2, 8, 8)
MASKS = ("first.mask", "second.mask")


def masked_onnx(
    seed: int = 1, *, width: int = 8, keep: float = 0.3, has_masks: bool = True, whole_channels: bool = False
) -> onnx.ModelProto:
    """A classifier with normalisation, two masked convolutions and a dense one: `images` (N,C,H,W) to `logits` (N,K)."""
    generator = np.random.default_rng(seed)
    constants: dict[str, Array] = {
        "mean": np.full((SHAPE[0], 1, 1), 0.5, np.float32),
        "std": np.full((SHAPE[0], 1, 1), 0.25, np.float32),
        "zero": np.zeros((), np.float32),
        "last.weight": generator.normal(size=(3, width)).astype(np.float32),
        "last.bias": generator.normal(size=3).astype(np.float32),
    }
    sizes = {"first": SHAPE[0], "second": width, "third": width}
    for layer, channels in sizes.items():
        constants[f"{layer}.weight"] = (generator.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        constants[f"{layer}.bias"] = generator.normal(size=width).astype(np.float32)
        if has_masks and layer != "third":
            constants[f"{layer}.mask"] = generator.random((1, width, 1, 1) if whole_channels else (1, width, *SHAPE[1:])) < keep
    nodes = [helper.make_node("Sub", ["images", "mean"], ["centred"]), helper.make_node("Div", ["centred", "std"], ["normalised"])]
    value = "normalised"
    for layer in sizes:
        nodes.append(helper.make_node("Conv", [value, f"{layer}.weight", f"{layer}.bias"], [f"{layer}.out"], pads=[1, 1, 1, 1]))
        value = f"{layer}.out"
        if f"{layer}.mask" in constants:
            nodes.append(helper.make_node("Where", [f"{layer}.mask", value, "zero"], [f"{layer}.masked"]))
            value = f"{layer}.masked"
        nodes.append(helper.make_node("Relu", [value], [f"{layer}.relu"]))
        value = f"{layer}.relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["mean_of_features"]),
        helper.make_node("Flatten", ["mean_of_features"], ["features"]),
        helper.make_node("Gemm", ["features", "last.weight", "last.bias"], ["logits"], transB=1),
    ]
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)], producer_name="defensemble")
    helper.set_model_props(model, {"defensemble.class_names": json.dumps(CLASSES)})
    return model


def mask_aware(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network in the mask-aware form, whether that pays or not."""
    from defensemble_export.graphs.mask_aware import mask_aware_from_onnx

    return mask_aware_from_onnx(model, "on").model


def serialised(model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def images(count: int, seed: int = 0) -> Array:
    """Random images (N,C,H,W), float32 in [0, 1)."""
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def logits(content: bytes, sample: Array) -> Array:
    """What ONNX Runtime answers, without a library of operators."""
    from defensemble_export.graphs.loading import cpu_session

    answer: Array = cpu_session(content).run(["logits"], {"images": sample})[0]
    return answer


def member(name: str, seed: int = 1, *, is_aware: bool = True) -> ExportedMember:
    """A masked network as a member of a repository, mask-aware or plain."""
    from defensemble_export import ExportedMember
    from defensemble_ops import OPERATOR

    model = masked_onnx(seed)
    content = serialised(mask_aware(model) if is_aware else model)
    return ExportedMember(name, content, SHAPE, len(CLASSES), CLASSES, f"masks-{seed}", mask_aware=OPERATOR if is_aware else None)


def write_repository(folder: Path, forms: dict[str, bool], *, ensemble: str | None = "ensemble", replace: bool = False) -> Path:
    """A repository of masked members (name to whether it is mask-aware; each has weights of its own) and an ensemble of them."""
    from defensemble_export import planned_files, write_files

    members = [member(name, seed, is_aware=is_aware) for seed, (name, is_aware) in enumerate(forms.items(), 1)]
    write_files(folder, planned_files(folder, members, ensemble=ensemble, max_batch_size=8, replace=replace))
    return folder
