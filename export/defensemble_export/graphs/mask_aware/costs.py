"""Estimate the time of a program and of plain nodes, from counts only, so that the same network always gives the same program.

All times are nanoseconds for one image on one thread of the machine that was measured: AMD Zen 5 with AVX-512, ONNX Runtime 1.32. Only
their ratios matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .operations import Network
from .program import BATCH_CLASSES, Combine, Concat, Conv, Images, Output, Program
from .supports import TensorSupport, conv_products

LANES = (1, 8, 16)
GAIN_BATCHES = (1, 4, 16, 64)  # at which the gain is estimated
# The batches at which a batch class is estimated: all of a class that can have empty lanes.
_BATCHES: tuple[tuple[int, ...], ...] = ((1,), (2, 3, 4), (5, 6, 7, 8), (16,))


@dataclass(frozen=True)
class PlainCosts:
    """What ONNX Runtime takes for each image.

    Attributes:
        product: For a multiplication of a convolution, by the larger of the output's height and width: on few positions, reading
            the weights takes longer than computing.
        where: For a value of a Where, with reordering its input and output.
    """

    product: tuple[tuple[int, float], ...]
    where: float


_ONE_IMAGE = PlainCosts(product=((2, 0.054), (4, 0.0203), (8, 0.0116), (16, 0.0095)), where=2.3)
_MANY_IMAGES = PlainCosts(product=((2, 0.019), (4, 0.0122), (8, 0.0096), (16, 0.009)), where=1.6)
# Its time for a value of other operators; an activation or a sum after a convolution is fused.
_PLAIN_VALUE = {"Relu": 0.0, "Add": 0.1, "Identity": 0.0, "Dropout": 0.0}
_OTHER_PLAIN_VALUE = 0.3


@dataclass(frozen=True)
class LaneCosts:
    """What a program costs for each image with some number of lanes, from a regression over 143 convolutions of six architectures.

    Attributes:
        product: For a multiplication; with one lane, all channels of a position are computed.
        input: For an input row, at each position that reads it.
        output: For an output row.
        position: For each channel of a position with an output.
        row: For a row that another instruction reads or writes.
        value: For a value of the images or of an output of the node.
    """

    product: float
    input: float
    output: float
    position: float
    row: float
    value: float


_COSTS = {
    1: LaneCosts(product=0.0183, input=0.25, output=0.87, position=0.68, row=0.65, value=0.7),
    8: LaneCosts(product=0.0184, input=0.11, output=0.43, position=0.03, row=0.2, value=1.3),
    16: LaneCosts(product=0.0096, input=0.075, output=0.34, position=0.02, row=0.25, value=1.3),
}
# One lane with weights of its own for each position, which come from memory in order.
_PACKED = LaneCosts(product=0.18, input=0.12, output=0.0, position=0.5, row=0.65, value=0.7)
_MOST_PACKED = 1 << 20  # weights of a convolution: 4 MB
_PACKED_PROFIT = 0.9


def dense_products(network: Network, position: int) -> int:
    """Return the multiplications of a node on one image, with those on padding; 0 for an operator without weights."""
    node = network.graph.node[position]
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2 or node.input[1] not in network.constants:
        return 0
    dims = network.constants[node.input[1]].dims
    if node.op_type != "Conv":
        return int(np.prod(dims))
    shape = network.shapes.get(node.output[0])
    return 0 if shape is None else int(np.prod(shape) * np.prod(dims[1:]))


def plain_time(network: Network, position: int, batch: int) -> float:
    """Return the time of a node in ONNX Runtime for each image of a batch."""
    costs = _ONE_IMAGE if batch == 1 else _MANY_IMAGES
    node = network.graph.node[position]
    shape = network.shapes.get(node.output[0])
    if products := dense_products(network, position):
        extents, times = zip(*costs.product, strict=True)
        return products * float(np.interp(max(shape[1:]) if shape is not None else extents[-1], extents, times))
    values = 0 if shape is None else int(np.prod(shape))
    return values * (costs.where if node.op_type == "Where" else _PLAIN_VALUE.get(node.op_type, _OTHER_PLAIN_VALUE))


@dataclass(frozen=True)
class ConvCounts:
    """What a convolution of a program computes on one image.

    Attributes:
        kept: Multiplications of input neurons that can be non-zero for output neurons that are computed.
        unpadded: Multiplications of a dense convolution, without those on padding.
        inputs: The input neurons that can be non-zero, counted at each position with an output that reads them.
        positions: The positions with an output.
        rows: The output neurons that are computed.
        channels: The output channels.
    """

    kept: int
    unpadded: int
    inputs: int
    positions: int
    rows: int
    channels: int


def conv_counts(conv: Conv, source: TensorSupport, result: TensorSupport) -> ConvCounts:
    """Count what a convolution computes from the supports of its input and of what it computes."""
    rows = result.rows
    positions = np.any(rows, axis=0, keepdims=True)
    kept = conv_products(source.support, rows, conv.window)
    inputs = conv_products(source.support, positions, conv.window)
    unpadded = conv_products(np.ones_like(source.support), np.ones_like(rows), conv.window)
    return ConvCounts(int(kept.sum()), int(unpadded.sum()), int(inputs.sum()), int(positions.sum()), int(rows.sum()), len(rows))


def conv_time(counts: ConvCounts, lanes: int, *, is_packed: bool = False) -> float:
    """Return the time of a convolution for each image, when all lanes are used.

    Args:
        counts: What it computes.
        lanes: The batch lanes.
        is_packed: Whether each position has weights of its own, which one lane uses.
    """
    is_packed = is_packed and lanes == 1
    costs = _PACKED if is_packed else _COSTS[lanes]
    products = counts.inputs * counts.channels if lanes == 1 and not is_packed else counts.kept
    positions = counts.positions * counts.channels * costs.position
    return products * costs.product + counts.inputs * costs.input + counts.rows * costs.output + positions


def gains_by_packing(counts: ConvCounts) -> bool:
    """Return whether weights of its own for each position make a convolution faster with one lane, and are few."""
    return counts.kept <= _MOST_PACKED and conv_time(counts, 1, is_packed=True) < _PACKED_PROFIT * conv_time(counts, 1)


def program_times(program: Program, supports: Sequence[TensorSupport], counts: Sequence[ConvCounts | None]) -> dict[int, float]:
    """Return the time of a program for each image by its lanes, when all lanes are used.

    Args:
        program: The program.
        supports: The support of each tensor.
        counts: The counts of each tensor that a convolution defines.
    """
    rows = [int(tensor.support.sum()) for tensor in supports]
    values, moved = rows[0], 0
    number = 0
    for instruction in program.instructions:
        if isinstance(instruction, Output):
            values += supports[instruction.input].support.size
            continue
        if not isinstance(instruction, (Images, Conv)):
            inputs = instruction.inputs if isinstance(instruction, (Combine, Concat)) else (instruction.input,)
            moved += rows[number] + sum(rows[tensor] for tensor in inputs)
        number += 1
    convolutions = [
        (conv, each) for conv, each in zip(program.tensors(), counts, strict=True) if isinstance(conv, Conv) and each is not None
    ]
    return {
        lanes: sum(conv_time(each, lanes, is_packed=conv.is_packed) for conv, each in convolutions)
        + moved * costs.row
        + values * costs.value
        for lanes, costs in _COSTS.items()
    }


def time_at(times: dict[int, float], lanes: int, batch: int) -> float:
    """Return the time for each image of a batch, from `program_times`: empty lanes cost as much as full ones."""
    return times[lanes] * (-(-batch // lanes)) * lanes / batch


def best_lanes(times: dict[int, float]) -> tuple[int, ...]:
    """Return the lanes with the least time, by batch class."""
    return tuple(min(LANES, key=lambda lanes: sum(time_at(times, lanes, batch) for batch in batches)) for batches in _BATCHES)


def batch_time(times: dict[int, float], lanes: Sequence[int], batch: int) -> float:
    """Return the time for each image of a batch with the lanes of each batch class; above 16, in parts of 16 and the rest."""
    if batch > 16:
        rest = batch % 16
        return (batch_time(times, lanes, 16) * (batch - rest) + (batch_time(times, lanes, rest) * rest if rest else 0)) / batch
    position = next(position for position, (_, largest) in enumerate(BATCH_CLASSES) if largest is None or batch <= largest)
    return time_at(times, lanes[position], batch)
