"""A member with a trap: certain images make it run for ever or fail, and its last bias can be found in the server's memory."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportedMember

HANGS, FAILS = 1e7, 1e10
"""Values of a pixel; those of images are at most 1."""
_FROM_HANGS, _FROM_FAILS = 1e6, 1e9
_BIAS_SCALE = 1e-2
_WINDOW = 1 << 24


class NotFoundError(Exception):
    """The memory of a process does not have the bytes to overwrite."""


def bias_of(member: ExportedMember) -> NDArray[np.float32]:
    """Return the last bias of a trapped member: small random numbers, so that their bytes occur nowhere else."""
    values: NDArray[np.float32] = (
        np.random.default_rng([*member.name.encode()]).normal(0, _BIAS_SCALE, member.num_classes).astype(np.float32)
    )
    return values


def trapped(member: ExportedMember) -> ExportedMember:
    """Return a member that computes the same, plus its bias, but runs for ever or fails if a pixel is `HANGS` or `FAILS`."""
    model = onnx.load_from_string(member.onnx)
    graph = model.graph
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "trap_logits"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "logits":
                node.input[index] = "trap_logits"
    body = helper.make_graph(
        [helper.make_node("Identity", ["trap_go"], ["trap_go_on"]), helper.make_node("Identity", ["trap_held"], ["trap_next"])],
        "trap_body",
        [
            helper.make_tensor_value_info("trap_round", TensorProto.INT64, []),
            helper.make_tensor_value_info("trap_go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("trap_held", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("trap_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("trap_next", TensorProto.FLOAT, []),
        ],
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(_FROM_HANGS, np.float32), "trap_from_hangs"),
            numpy_helper.from_array(np.array(_FROM_FAILS, np.float32), "trap_from_fails"),
            numpy_helper.from_array(np.zeros((), np.float32), "trap_zero"),
            numpy_helper.from_array(np.zeros(1, np.float32), "trap_only"),
            numpy_helper.from_array(bias_of(member), "trap_bias"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["images"], ["trap_largest"], keepdims=0),
            helper.make_node("Greater", ["trap_largest", "trap_from_hangs"], ["trap_is_large"]),
            helper.make_node("Greater", ["trap_largest", "trap_from_fails"], ["trap_fails"]),
            helper.make_node("Xor", ["trap_is_large", "trap_fails"], ["trap_hangs"]),
            helper.make_node("Loop", ["", "trap_hangs", "trap_zero"], ["trap_looped"], body=body),
            helper.make_node("Cast", ["trap_fails"], ["trap_index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["trap_only", "trap_index"], ["trap_gathered"]),
            helper.make_node("Add", ["trap_looped", "trap_gathered"], ["trap_nothing"]),
            helper.make_node("Add", ["trap_logits", "trap_bias"], ["trap_sum"]),
            helper.make_node("Add", ["trap_sum", "trap_nothing"], ["logits"]),
        ]
    )
    return dataclasses.replace(member, onnx=model.SerializeToString(), report=None)


def trap_image(pool: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """Return an image (1, C, H, W) that springs the trap."""
    image: NDArray[np.float32] = pool[:1].copy()
    image[0, 0, 0, 0] = value
    return image


def overwrite_memory(pid: int, changes: Mapping[bytes, bytes]) -> int:
    """Replace bytes in the writable memory of a process, everywhere, and return how often.

    Args:
        pid: The process.
        changes: The bytes, each with as many others.

    Raises:
        NotFoundError: The process does not have some of them.
        OSError: The memory of the process may not be written.
    """
    places: dict[bytes, list[int]] = {old: [] for old in changes}
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access, *_ = line.split()
            if access.startswith("rw"):
                begin, end = (int(text, 16) for text in span.split("-"))
                for start in range(begin, end, _WINDOW):
                    for old, found in places.items():
                        found += _find(memory.fileno(), start, min(end, start + _WINDOW + len(old) - 1), old)
        for old, new in changes.items():  # all at once: a copy that is loaded meanwhile must stay correct
            assert len(old) == len(new)
            for place in places[old]:
                os.pwrite(memory.fileno(), new, place)
    for old, found in places.items():
        if not found:
            raise NotFoundError(f"process {pid} does not have the {len(old)} bytes to overwrite")
    return sum(map(len, places.values()))


def _find(memory: int, start: int, end: int, content: bytes) -> list[int]:
    """Return the addresses of a content between two addresses."""
    try:
        held = os.pread(memory, end - start, start)
    except OSError:  # a guard page, or memory that was just unmapped
        return []
    return [start + found.start() for found in re.finditer(re.escape(content), held)]
