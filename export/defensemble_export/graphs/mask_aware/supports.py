"""Which neurons of a tensor can differ from 0, from which ones of its inputs can: rules on BOOL arrays (C,H,W), and counts from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .expressions import BoolArray, Shape
from .program import Combine, Concat, Conv, Images, Map, Mean, Pool, Program, Window

Counts = npt.NDArray[np.int64]


def output_extents(extents: tuple[int, int], window: Window, ceil: bool = False) -> tuple[int, int]:
    """Return the height and width of what a window computes from an input of `extents`.

    Args:
        extents: Height and width of the input.
        window: The window.
        ceil: Also count a last window that is partly outside, if it begins inside the image or its first padding, as ONNX does.
    """
    results = []
    for axis in (0, 1):
        free = extents[axis] + window.pads[axis] + window.pads[axis + 2] - window.dilations[axis] * (window.kernel[axis] - 1) - 1
        count = (-(-free // window.strides[axis]) if ceil else free // window.strides[axis]) + 1
        if ceil and (count - 1) * window.strides[axis] >= extents[axis] + window.pads[axis]:
            count -= 1
        results.append(count)
    return results[0], results[1]


def window_sums(values: npt.NDArray[Any], window: Window, extents: tuple[int, int]) -> Counts:
    """Return the sums of `values` (...,H,W) over the windows at `extents` output positions; cells outside count as 0."""
    height, width = values.shape[-2:]
    (top, left), (rows, columns) = window.pads[:2], extents
    reach = [(extents[axis] - 1) * window.strides[axis] + window.dilations[axis] * (window.kernel[axis] - 1) + 1 for axis in (0, 1)]
    padded = np.zeros((*values.shape[:-2], max(reach[0], top + height), max(reach[1], left + width)), np.int64)
    padded[..., top : top + height, left : left + width] = values
    sums = np.zeros((*values.shape[:-2], rows, columns), np.int64)
    for y in range(window.kernel[0]):
        for x in range(window.kernel[1]):
            start = y * window.dilations[0], x * window.dilations[1]
            stop = start[0] + (rows - 1) * window.strides[0] + 1, start[1] + (columns - 1) * window.strides[1] + 1
            sums += padded[..., start[0] : stop[0] : window.strides[0], start[1] : stop[1] : window.strides[1]]
    return sums


def pool_support(support: BoolArray, window: Window, ceil: bool) -> BoolArray:
    """Return where a pool can be non-zero: where any cell of its window can."""
    extents = output_extents((support.shape[1], support.shape[2]), window, ceil)
    return np.asarray(window_sums(support, window, extents) > 0)


def mean_support(support: BoolArray) -> BoolArray:
    """Return where the mean over height and width can be non-zero, (C,1,1)."""
    return np.asarray(support.any((1, 2), keepdims=True))


def conv_products(support: BoolArray, rows: BoolArray, window: Window) -> Counts:
    """Return the multiplications of a convolution at each output position, (H,W): those of input neurons in `support` for `rows` outputs.

    Args:
        support: The input neurons that can be non-zero, (C,H,W).
        rows: The output neurons that are computed, (C,H,W).
        window: The window.
    """
    inputs = window_sums(support.sum(0), window, (rows.shape[1], rows.shape[2]))
    products: Counts = inputs * rows.sum(0)
    return products


@dataclass(frozen=True)
class TensorSupport:
    """The support of one tensor of a program, and what its instruction computes by itself.

    Attributes:
        support: The neurons that have a row, (C,H,W).
        rows: The neurons that the instruction computes: without those that only a residual has.
    """

    support: BoolArray
    rows: BoolArray


def program_supports(program: Program, masks: Mapping[str, npt.NDArray[Any]], channels: Mapping[str, int]) -> list[TensorSupport]:
    """Return the support of each tensor of a program, by its number.

    Args:
        program: The program.
        masks: The masks that it names.
        channels: The output channels of each weight.
    """
    results: list[TensorSupport] = []

    def supports(numbers: Sequence[int]) -> list[BoolArray]:
        return [results[number].support for number in numbers]

    for instruction in program.tensors():
        rows = None
        match instruction:
            case Images(shape):
                support = np.ones(shape, bool)
            case Map():
                support = instruction.support.evaluate(masks, _shape(results[instruction.input].support))
            case Conv():
                source = results[instruction.input].support
                extents = output_extents((source.shape[1], source.shape[2]), instruction.window)
                rows = instruction.support.evaluate(masks, (channels[instruction.weight], *extents))
                support = rows if instruction.residual is None else rows | results[instruction.residual].support
            case Combine("add"):
                support = np.logical_or(*supports(instruction.inputs))
            case Combine():
                support = np.logical_and(*supports(instruction.inputs))
            case Pool():
                support = pool_support(results[instruction.input].support, instruction.window, instruction.ceil)
            case Mean():
                support = mean_support(results[instruction.input].support)
            case Concat():
                support = np.concatenate(supports(instruction.inputs))
        results.append(TensorSupport(support, support if rows is None else rows))
    return results


def _shape(array: BoolArray) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]
