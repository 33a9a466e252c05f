"""An interpreter of mask-aware programs that shares no code with the compiler or the operator: numpy, float64, all neurons at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def run_program(text: str, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a program, float64 [N,C,H,W]; `inputs` are those of its node, images first."""
    tensors = run_tensors(text, inputs)
    return [tensors[int(line.removeprefix("output in="))] for line in text.splitlines() if line.startswith("output ")]


def run_tensors(text: str, inputs: Sequence[Array]) -> list[Array]:
    """All tensors of a program, float64 [N,C,H,W]."""
    lanes, *lines = text.splitlines()
    assert lanes.startswith("lanes ")
    assert all(value in ("1", "8", "16") for value in lanes.removeprefix("lanes ").split(","))
    tensors: list[Array] = []
    for line in lines:
        name, *entries = line.split(" ")
        values = dict(entry.split("=") for entry in entries)
        read = [tensors[int(number)] for number in values["in"].split(",")] if name != "images" else []
        if name == "output":
            continue
        if name == "conv":
            residual = 0.0 if values["residual"] == "-" else tensors[int(values["residual"])]
            tensors.append(_activated(_conv(values, read, inputs) + residual, values["act"]))
        else:
            tensors.append(_INSTRUCTIONS[name](values, read, inputs))
    return tensors


def _integers(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def _support(text: str, shape: Sequence[int], inputs: Sequence[Array]) -> Array:
    """The neurons (C,H,W) that are computed."""
    if text == "full":
        return np.ones(shape, bool)
    union = np.zeros(shape, bool)
    for term in text.split("|"):
        both = np.ones(shape, bool)
        for number in term.split("&"):
            mask = inputs[int(number)]
            assert mask.dtype == bool
            both = both & mask.reshape(mask.shape[-3:])
        union = union | both
    return union


def _activated(values: Array, act: str) -> Array:
    if act == "sigmoid":
        return 1 / (1 + np.exp(-values))
    return np.maximum(values, 0) if act == "relu" else values


def _images(values: Mapping[str, str], read: list[Array], inputs: Sequence[Array]) -> Array:
    assert list(inputs[0].shape[1:]) == _integers(values["shape"])
    return inputs[0].astype(np.float64)


def _map(values: Mapping[str, str], read: list[Array], inputs: Sequence[Array]) -> Array:
    (x,) = read
    for step in values["steps"].split(",") if values["steps"] else []:
        kind, *numbers = step.split(":")
        constants = [inputs[int(number)].astype(np.float64).reshape(-1, 1, 1) for number in numbers[:4]]
        if kind == "bn":
            scale, bias, mean, variance = constants
            x = (x - mean) / np.sqrt(variance + float(numbers[4])) * scale + bias
        else:
            x = {"sub": np.subtract, "div": np.divide, "mul": np.multiply, "add": np.add}[kind](x, constants[0])
    return np.where(_support(values["support"], x.shape[1:], inputs), _activated(x, values["act"]), 0.0)


def _window_cells(x: Array, values: Mapping[str, str], outside: float, dilations: Sequence[int]) -> Array:
    """The cells of each window, [N,C,H,W,cells of the kernel]; the image is padded with `outside`."""
    (height, width), (down, right) = _integers(values["kernel"]), _integers(values["strides"])
    top, left, bottom, after = _integers(values["pads"])
    reach = (height - 1) * dilations[0] + 1, (width - 1) * dilations[1] + 1
    extra = [0, 0]
    if values.get("ceil") == "1":
        for axis, (before, behind, stride) in enumerate(((top, bottom, down), (left, after, right))):
            total = x.shape[2 + axis] + before + behind - reach[axis]
            extra[axis] = -total % stride
            if (total + extra[axis]) // stride * stride >= x.shape[2 + axis] + before:  # a window that begins in the padding
                extra[axis] -= stride
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom + max(extra[0], 0)), (left, after + max(extra[1], 0))), constant_values=outside)
    rows, columns = range(0, x.shape[2] - reach[0] + 1, down), range(0, x.shape[3] - reach[1] + 1, right)
    rows = rows[: len(rows) - (extra[0] == -down)]
    columns = columns[: len(columns) - (extra[1] == -right)]
    cells = [
        x[:, :, [row + i * dilations[0] for row in rows]][:, :, :, [column + j * dilations[1] for column in columns]]
        for i, j in itertools.product(range(height), range(width))
    ]
    return np.stack(cells, -1)


def _conv(values: Mapping[str, str], read: list[Array], inputs: Sequence[Array]) -> Array:
    weight = inputs[int(values["weight"])].astype(np.float64)
    assert list(weight.shape[2:]) == _integers(values["kernel"])
    cells = _window_cells(read[0], values, 0.0, _integers(values["dilations"]))
    sums = np.einsum("nchwk,ock->nohw", cells, weight.reshape(*weight.shape[:2], -1), optimize=True)
    if values["bias"] != "-":
        sums = sums + inputs[int(values["bias"])].reshape(-1, 1, 1)
    assert values["form"] in ("dense" if values["support"] == "full" else "table", "packed")
    return np.where(_support(values["support"], sums.shape[1:], inputs), sums, 0.0)


def _maxpool(values: Mapping[str, str], read: list[Array], inputs: Sequence[Array]) -> Array:
    highest: Array = _window_cells(read[0], values, -np.inf, (1, 1)).max(-1)
    return highest


def _avgpool(values: Mapping[str, str], read: list[Array], inputs: Sequence[Array]) -> Array:
    cells = _window_cells(read[0], values, 0.0, (1, 1))
    inside = _window_cells(np.ones_like(read[0]), values, float(values["include_pad"]), (1, 1))
    means: Array = cells.sum(-1) / inside.sum(-1)
    return means


_INSTRUCTIONS: dict[str, Any] = {
    "images": _images,
    "map": _map,
    "add": lambda values, read, inputs: _activated(read[0] + read[1], values["act"]),
    "mul": lambda values, read, inputs: _activated(read[0] * read[1], values["act"]),
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "mean": lambda values, read, inputs: read[0].mean((2, 3), keepdims=True),
    "concat": lambda values, read, inputs: np.concatenate(read, 1),
}
