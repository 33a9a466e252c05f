"""Untrained networks with masks, as the exporter writes them, for tests of mask-aware graphs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

Array = np.ndarray[Any, Any]
SHAPE = (3, 32, 32)
ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {  # the width in the tests, and the blocks with masks
    "resnet18": (8, (0, 1, 2)),
    "senet18": (16, (1, 2)),
    "vgg19": (8, (0, 1)),
    "wrn32_4": (4, (0, 1)),
    "resnet50": (4, (0, 1, 2)),
    "densenet121": (8, (1, 2)),
}


@cache
def _traced(architecture: str, width: int) -> bytes:
    import torch

    from defensemble_export.graphs.tracing import graph_from_module
    from defensemble_training import ModelSpec, defect_masks
    from defensemble_training.models.build import build

    torch.manual_seed(0)
    module = build(ModelSpec(arch=architecture, keep=0.5, blocks=ARCHITECTURES[architecture][1], width=width))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)
    module.eval()
    return graph_from_module(module, SHAPE, defect_masks(module)).SerializeToString()


def masked_network(
    architecture: str, keep: float = 0.1, pattern: str = "neuron", *, width: int | None = None, seed: int = 0
) -> onnx.ModelProto:
    """A network of one architecture, whose masks are replaced by random ones; `keep` of 0 and 1 give masks of all zeros and all ones."""
    model = onnx.load_model_from_string(_traced(architecture, width or ARCHITECTURES[architecture][0]))
    generator = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BOOL:
            channels, height, width = tensor.dims
            shape = {"neuron": (channels, height, width), "shared": (1, height, width), "channel": (channels, 1, 1)}[pattern]
            tensor.CopyFrom(numpy_helper.from_array(generator.random(shape) < keep, tensor.name))
    return model


def images(count: int = 3, shape: Sequence[int] = SHAPE, seed: int = 0) -> Array:
    """Smooth images with some noise, in [0, 1]."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    y, x = np.mgrid[:height, :width] / 8
    phases = generator.uniform(0, 6, (count, channels, 1, 1))
    smooth = np.sin(y + phases) * np.cos(x - phases) / 3 + 0.5
    noisy: Array = np.clip(smooth + generator.normal(0, 0.05, smooth.shape), 0, 1).astype(np.float32)
    return noisy


def answers(model: onnx.ModelProto, batch: Array, outputs: list[str] | None = None, *, optimised: bool = True) -> list[Array]:
    """The outputs of a graph in plain ONNX Runtime; None stands for all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(outputs, {"images": batch})]
