"""Estimate the time of a program and of plain nodes, from counts only, so that the same network always gives the same program.

All times are nanoseconds for one image on one thread of the machine that was measured (AMD Zen 4, AVX-512). Only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .operations import Network
from .program import BATCH_CLASSES, Conv, Images, Instruction, Output, Program
from .supports import TensorSupport, conv_products

LANES = (1, 8, 16)
# The batches at which a batch class is estimated: all of a class that can have empty lanes.
_BATCHES: tuple[tuple[int, ...], ...] = ((1,), (2, 3, 4), (5, 6, 7, 8), (16,))


@dataclass(frozen=True)
class CostTable:
    """What operations cost.

    Attributes:
        product: ONNX Runtime's time for a multiplication of a large convolution: 100 to 105 GFLOP/s were measured.
        small_images: Its relative speed where the output is 8x8 or smaller: 55 to 75 GFLOP/s.
        small_extent: The largest height and width of such an output.
        plain_values: Its time for each value of an operator; others 0.3. A Where of 65,536 values takes 70 to 160 us. An activation or a
            sum behind a convolution is fused.
        table: Relative speeds of the table form by kept outputs for each position: each output is one chain of additions, and few chains
            leave the units idle (50 GFLOP/s at 6.4 outputs, 75 to 85 at 12.8).
        dense: Relative speed of the dense form: 83 GFLOP/s behind a sparse input.
        rows: Relative speed with one lane where masks limit the outputs, counted on all output channels, which it computes.
        dense_rows: Relative speed with one lane of a convolution that computes all its outputs.
        eight_lanes: Relative speed of 8 lanes, which fill half of a register.
        row: Time for each value of a row of other instructions.
        output: Time for each value of an output, in tiles: 46 us for 65,536.
    """

    product: float = 0.02
    small_images: float = 0.75
    small_extent: int = 8
    plain_values: tuple[tuple[str, float], ...] = (("Where", 1.7), ("Relu", 0.0), ("Add", 0.1), ("Identity", 0.0), ("Dropout", 0.0))
    table: tuple[tuple[float, float], ...] = ((4, 0.45), (8, 0.6), (12, 0.75))
    dense: float = 0.85
    rows: float = 0.55
    dense_rows: float = 0.55
    eight_lanes: float = 0.8
    row: float = 0.25
    output: float = 0.7


COSTS = CostTable()
_OTHER_VALUES = 0.3


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


def plain_time(network: Network, position: int, costs: CostTable = COSTS) -> float:
    """Return the time of a node in ONNX Runtime, at any batch."""
    node = network.graph.node[position]
    shape = network.shapes.get(node.output[0])
    if products := dense_products(network, position):
        is_small = shape is not None and max(shape[1:]) <= costs.small_extent
        return products * costs.product / (costs.small_images if is_small else 1.0)
    values = 0 if shape is None else int(np.prod(shape))
    return values * dict(costs.plain_values).get(node.op_type, _OTHER_VALUES)


@dataclass(frozen=True)
class ConvCounts:
    """The multiplications of a convolution of a program on one image.

    Attributes:
        kept: Those of input neurons that can be non-zero for output neurons that are computed.
        unpadded: Those of a dense convolution, without those on padding.
        all_channels: Those of `kept` if each position with an output computes all channels.
        positions: The positions with an output.
        rows: The output neurons that are computed.
    """

    kept: int
    unpadded: int
    all_channels: int
    positions: int
    rows: int


def conv_counts(conv: Conv, source: TensorSupport, result: TensorSupport) -> ConvCounts:
    """Count the multiplications of a convolution from the supports of its input and of what it computes."""
    rows = result.rows
    products = conv_products(source.support, rows, conv.window)
    positions = rows.any(0)
    inputs = conv_products(source.support, np.broadcast_to(positions, rows.shape), conv.window)
    unpadded = conv_products(np.ones_like(source.support), np.ones_like(rows), conv.window)
    return ConvCounts(int(products.sum()), int(unpadded.sum()), int(inputs.sum()), int(positions.sum()), int(rows.sum()))


def conv_time(conv: Conv, counts: ConvCounts, lanes: int, costs: CostTable = COSTS) -> float:
    """Return the time of a convolution for each image, when all lanes are used."""
    if lanes == 1:
        return counts.all_channels * costs.product / (costs.dense_rows if conv.form == "dense" else costs.rows)
    if conv.form == "dense":
        speed = costs.dense
    else:
        outputs, speeds = zip(*costs.table, strict=True)
        speed = float(np.interp(counts.rows / max(counts.positions, 1), outputs, speeds))
    return counts.kept * costs.product / (speed * (costs.eight_lanes if lanes == 8 else 1.0))


def instruction_time(
    instruction: Instruction,
    counts: ConvCounts | None,
    supports: Sequence[TensorSupport],
    number: int,
    lanes: int,
    costs: CostTable = COSTS,
) -> float:
    """Return the time of an instruction for each image, when all lanes are used.

    Args:
        instruction: The instruction.
        counts: The counts of a convolution.
        supports: The supports of all tensors.
        number: The tensor that the instruction defines.
        lanes: The batch lanes.
        costs: What operations cost.
    """
    if isinstance(instruction, Output):
        return supports[instruction.input].support.size * costs.output
    if isinstance(instruction, Conv):
        assert counts is not None
        return conv_time(instruction, counts, lanes, costs) + counts.rows * costs.row
    values = int(supports[number].support.sum())
    return values * (costs.output if isinstance(instruction, Images) else costs.row)


def program_times(
    program: Program, supports: Sequence[TensorSupport], counts: Sequence[ConvCounts | None], costs: CostTable = COSTS
) -> dict[int, float]:
    """Return the time of a program for each image by its lanes, when all lanes are used.

    Args:
        program: The program.
        supports: The support of each tensor.
        counts: The counts of each tensor that a convolution defines.
        costs: What operations cost.
    """
    times = dict.fromkeys(LANES, 0.0)
    number = 0
    for instruction in program.instructions:
        is_output = isinstance(instruction, Output)
        for lanes in LANES:
            times[lanes] += instruction_time(instruction, None if is_output else counts[number], supports, number, lanes, costs)
        number += not is_output
    return times


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
