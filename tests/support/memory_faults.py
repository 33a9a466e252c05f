"""Faults in the memory of a running Triton: the bias of a member is overwritten, as by a defective memory chip."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportedMember, planned_files, write_files
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config
from tests.support import backend_graphs as graphs, tiny

# A pixel that makes `looping_member` run for thousands of years.
FOREVER = 1e18


def bias(seed: int) -> tiny.Array:
    """Return the bias of `biased_member(seed)`: 16 numbers that occur nowhere else."""
    return np.random.default_rng(1000 + seed).normal(size=16).astype(np.float32)


def logits(seed: int, images: tiny.Array) -> tiny.Array:
    """Return the logits of `biased_member(seed)`, by numpy in float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.asarray(flat @ tiny.weights(seed, images.shape[1:], 16).astype(np.float64) + bias(seed))


def biased_member(name: str, seed: int) -> ExportedMember:
    """Return a linear member of 16 classes whose last step adds a bias (Gemm), which ONNX Runtime reads from its own memory each time."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"])],
        "biased",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *tiny.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(tiny.weights(seed, classes=16), "weights"), numpy_helper.from_array(bias(seed), "bias")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    classes = tuple(f"class{number}" for number in range(16))
    return ExportedMember(name, model.SerializeToString(), tiny.SHAPE, 16, classes, f"masks-{seed}")


def write_repository(folder: Path, *, ensemble: str | None = "ensemble", loops: bool = False, max_batch_size: int = 8) -> Path:
    """Write the members `alpha` (seed 1) and `beta` (seed 2), which can loop, and an ensemble of them."""
    members = [biased_member("alpha", 1), looping_member("beta", 2) if loops else biased_member("beta", 2)]
    write_files(folder, planned_files(folder, members, ensemble=ensemble, max_batch_size=max_batch_size))
    return folder


def replace_file(folder: Path, seed: int) -> None:
    """Replace the file of alpha@1 by that of another seed, and its SHA-256 in the configuration."""
    content, config = biased_member("alpha", seed).onnx, config_from_file(folder / "alpha/config.pbtxt")
    (folder / "alpha/1/model.onnx").write_bytes(content)
    config.parameters["sha256.1"].string_value = hashlib.sha256(content).hexdigest()
    (folder / "alpha/config.pbtxt").write_bytes(pbtxt_from_config(config))


def looping_member(name: str, seed: int) -> ExportedMember:
    """Return `biased_member(name, seed)` with a loop that runs as often as the largest pixel: an image with `FOREVER` never ends."""
    member = biased_member(name, seed)
    model = onnx.load_model_from_string(member.onnx)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go"]), helper.make_node("Add", ["count_in", "step"], ["count"])],
        "body",
        [
            graphs.value("i", TensorProto.INT64, []),
            graphs.value("go_in", TensorProto.BOOL, []),
            graphs.value("count_in", TensorProto.FLOAT, [1]),
        ],
        [graphs.value("go", TensorProto.BOOL, []), graphs.value("count", TensorProto.FLOAT, [1])],
        [graphs.tensor("step", np.array([1], np.float32))],
    )
    graph = model.graph
    graph.node[-1].output[0] = "linear"
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["images"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["trips"], to=TensorProto.INT64),
            helper.make_node("Loop", ["trips", "true", "zero"], ["counted"], body=body),
            helper.make_node("Mul", ["counted", "zero"], ["nothing"]),
            helper.make_node("Add", ["linear", "nothing"], ["logits"]),
        ]
    )
    graph.initializer.extend([graphs.tensor("true", np.array(True)), graphs.tensor("zero", np.array([0], np.float32))])
    return replace(member, onnx=model.SerializeToString())
