"""Parse the text of a mask-aware program back, to compare it with the program that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from defensemble_export import ExportError
from defensemble_export.graphs.mask_aware.expressions import FULL, NOTHING, MaskExpression
from defensemble_export.graphs.mask_aware.program import (
    Combine,
    Concat,
    Conv,
    Images,
    Instruction,
    Map,
    Mean,
    Output,
    Pool,
    Program,
    Step,
    Window,
)


def parse_program(text: str, inputs: Sequence[str]) -> Program:
    """Return the program that `text` describes.

    Args:
        text: As from `Program.text`.
        inputs: The names of the inputs of the node.

    Raises:
        ExportError: A line is not an instruction. The message contains it.
    """
    first, *lines = text.splitlines() or [""]
    instructions: list[Instruction] = []
    try:
        name, values = first.split(" ")
        if name != "lanes":
            raise ValueError("expected 'lanes'")
        lanes = _ints(values)
        for line in lines:
            first = line
            name, *entries = line.split(" ")
            instructions.append(_PARSERS[name](dict(entry.split("=") for entry in entries), inputs))
    except (ValueError, KeyError, IndexError) as error:
        raise ExportError(
            f"the program of a mask-aware node has the line '{first}', which is not an instruction ({error!r}): export it again"
        ) from error
    return Program(tuple(inputs), tuple(instructions), lanes)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in text.split(","))


def _parse_step(text: str, inputs: Sequence[str]) -> Step:
    kind, *values = text.split(":")
    if kind == "bn":
        return Step(kind, tuple(inputs[int(value)] for value in values[:4]), float(values[4]))
    return Step(kind, tuple(inputs[int(value)] for value in values))


def _parse_support(text: str, inputs: Sequence[str]) -> MaskExpression:
    if text == "full":
        return FULL
    expression = NOTHING
    for term in text.split("|"):
        both = FULL
        for number in term.split("&"):
            both &= MaskExpression.of(inputs[int(number)])
        expression |= both
    return expression


def _parse_window(values: dict[str, str]) -> Window:
    kernel, strides, dilations = (_ints(values.get(key, "1,1")) for key in ("kernel", "strides", "dilations"))
    top, left, bottom, right = _ints(values["pads"])
    return Window((kernel[0], kernel[1]), (strides[0], strides[1]), (top, left, bottom, right), (dilations[0], dilations[1]))


def _parse_images(values: dict[str, str], inputs: Sequence[str]) -> Images:
    channels, height, width = _ints(values["shape"])
    return Images((channels, height, width))


def _parse_map(values: dict[str, str], inputs: Sequence[str]) -> Map:
    steps = tuple(_parse_step(step, inputs) for step in values["steps"].split(",") if step)
    return Map(int(values["in"]), steps, values["act"], _parse_support(values["support"], inputs))


def _parse_conv(values: dict[str, str], inputs: Sequence[str]) -> Conv:
    return Conv(
        int(values["in"]),
        inputs[int(values["weight"])],
        None if values["bias"] == "-" else inputs[int(values["bias"])],
        _parse_window(values),
        _parse_support(values["support"], inputs),
        None if values["residual"] == "-" else int(values["residual"]),
        values["act"],
        values["form"] == "packed",
    )


def _parse_combine(kind: str) -> Callable[[dict[str, str], Sequence[str]], Combine]:
    def parse(values: dict[str, str], inputs: Sequence[str]) -> Combine:
        first, second = _ints(values["in"])
        return Combine(kind, (first, second), values["act"])

    return parse


def _parse_pool(kind: str) -> Callable[[dict[str, str], Sequence[str]], Pool]:
    def parse(values: dict[str, str], inputs: Sequence[str]) -> Pool:
        return Pool(kind, int(values["in"]), _parse_window(values), values["ceil"] == "1", values.get("include_pad") == "1")

    return parse


_PARSERS: dict[str, Callable[[dict[str, str], Sequence[str]], Any]] = {
    "images": _parse_images,
    "map": _parse_map,
    "conv": _parse_conv,
    "add": _parse_combine("add"),
    "mul": _parse_combine("mul"),
    "maxpool": _parse_pool("maxpool"),
    "avgpool": _parse_pool("avgpool"),
    "mean": lambda values, inputs: Mean(int(values["in"])),
    "concat": lambda values, inputs: Concat(_ints(values["in"])),
    "output": lambda values, inputs: Output(int(values["in"])),
}
