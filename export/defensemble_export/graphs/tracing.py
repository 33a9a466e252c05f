"""Trace a torch module to a float32 ONNX graph whose masks are BOOL initialisers under their own names."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from defensemble_repository.onnx_metadata import IR_VERSION, OPSET

from ..errors import VerificationError
from .copying import strip_metadata

if TYPE_CHECKING:
    import torch


def graph_from_module(
    module: torch.nn.Module, input_shape: tuple[int, int, int], masks: Mapping[str, np.ndarray[Any, Any]]
) -> onnx.ModelProto:
    """Trace a module to a graph from `images` FP32 [N,C,H,W] to `logits` FP32 [N,K], any N: IR 10, opset 20, BatchNorm folded.

    The graph contains no metadata about this machine.

    Args:
        module: The network, in eval mode.
        input_shape: (C, H, W).
        masks: The masks of the network, by name.

    Raises:
        VerificationError: A mask is missing in the graph, or differs.
    """
    import torch

    # Two images: torch would specialise an example batch of one.
    example = (torch.zeros(2, *input_shape),)
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    _name_masks(model, masks)
    strip_metadata(model)
    check_masks(model, masks)
    return model


def _name_masks(model: onnx.ModelProto, masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give each `Where` its own mask again: torch's optimiser merges equal initialisers, and small masks can be equal by chance."""
    present = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Where":
            continue
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "[]"))
        for name in (f"{scope}.mask" for scope in reversed(scopes)):
            if name in masks:
                node.input[0] = name
                if name not in present:
                    model.graph.initializer.append(numpy_helper.from_array(masks[name], name))
                    present.add(name)
                break


def check_masks(model: onnx.ModelProto, masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Check that every mask is a BOOL initialiser under its name, bit for bit.

    Raises:
        VerificationError: A mask is missing or differs.
    """
    bools = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL}
    for name, mask in masks.items():
        if name not in bools:
            raise VerificationError(f"mask '{name}' is not a BOOL initialiser of the exported graph; these are {sorted(bools) or 'none'}")
        if not np.array_equal(bools[name], mask):
            raise VerificationError(f"mask '{name}' in the exported graph differs from that of the checkpoint")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of torch's exporter about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
