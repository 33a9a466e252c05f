"""The program of a mask-aware node: its instructions, and the text that the operator reads.

One instruction a line, `name key=value ...`. The first line states the batch lanes; every other one, except `output`, defines the next
tensor, (C,H,W). A tensor has rows for the neurons of its support, and is 0 elsewhere. Numbers of inputs are positions among the inputs of
the node: 0 is the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...errors import ExportError
from .expressions import FULL, NOTHING, MaskExpression, Shape

# Batch classes of `lanes`: the largest batch of each; None for all larger ones.
BATCH_CLASSES: tuple[tuple[str, int | None], ...] = (("1", 1), ("2-4", 4), ("5-8", 8), ("9+", None))
MAX_WEIGHT_ROWS = 65_535  # kernel height * kernel width * input channels: the operator numbers them in 16 bits


@dataclass(frozen=True)
class Window:
    """The window of a convolution or a pool."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilations: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Step:
    """One step of a `Map`: sub, div, mul or add with one constant, or bn with scale, bias, mean and variance."""

    kind: str
    constants: tuple[str, ...]
    epsilon: float | None = None


@dataclass(frozen=True)
class Images:
    """The images, all of whose neurons are computed."""

    shape: Shape


@dataclass(frozen=True)
class Map:
    """Constants for each channel, then an activation (none, relu or sigmoid), on the rows of `support`; absent rows are read as 0."""

    input: int
    steps: tuple[Step, ...] = ()
    act: str = "none"
    support: MaskExpression = FULL


@dataclass(frozen=True)
class Conv:
    """A convolution on the rows of `support`, plus a residual, then an activation (none or relu)."""

    input: int
    weight: str
    bias: str | None
    window: Window
    support: MaskExpression = FULL
    residual: int | None = None
    act: str = "none"

    @property
    def form(self) -> str:
        """The kernel for 8 and 16 lanes: `dense` computes all channels of a position, `table` the kept ones."""
        return "dense" if self.support.is_full else "table"


@dataclass(frozen=True)
class Combine:
    """The sum (`add`) or product (`mul`) of two tensors, one of which may be (C,1,1), then an activation (none or relu)."""

    kind: str
    inputs: tuple[int, int]
    act: str = "none"


@dataclass(frozen=True)
class Pool:
    """The maximum (`maxpool`) or mean (`avgpool`) of windows; cells without a row are 0."""

    kind: str
    input: int
    window: Window
    ceil: bool = False
    include_pad: bool = False


@dataclass(frozen=True)
class Mean:
    """The mean over height and width: (C,1,1)."""

    input: int


@dataclass(frozen=True)
class Concat:
    """Tensors joined along the channels."""

    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """The next output of the node."""

    input: int


Instruction: TypeAlias = Images | Map | Conv | Combine | Pool | Mean | Concat | Output


@dataclass(frozen=True)
class Program:
    """Instructions, the names of the inputs of the node that they read, and the batch lanes of each class of `BATCH_CLASSES`.

    Example:
        >>> program = Program(("images",), (Images((3, 8, 8)), Output(0)))
        >>> program.text().splitlines()
        ['lanes 1,1,8,16', 'images shape=3,8,8', 'output in=0']
    """

    inputs: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    lanes: tuple[int, ...] = field(default=(1, 1, 8, 16))

    def text(self) -> str:
        """Return the program as the operator reads it."""
        numbers = {name: number for number, name in enumerate(self.inputs)}
        lines = [f"lanes {_list(self.lanes)}", *(_line(instruction, numbers) for instruction in self.instructions)]
        return "".join(f"{line}\n" for line in lines)

    def tensors(self) -> list[Instruction]:
        """Return the instruction of each tensor, by the number of the tensor."""
        return [instruction for instruction in self.instructions if not isinstance(instruction, Output)]


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


def _list(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in text.split(","))


def _line(instruction: Instruction, numbers: dict[str, int]) -> str:
    match instruction:
        case Images(shape):
            return f"images shape={_list(shape)}"
        case Map():
            steps = ",".join(_step_text(step, numbers) for step in instruction.steps)
            return f"map in={instruction.input} steps={steps} act={instruction.act} support={instruction.support.text(numbers)}"
        case Conv():
            bias = "-" if instruction.bias is None else numbers[instruction.bias]
            residual = "-" if instruction.residual is None else instruction.residual
            return (
                f"conv in={instruction.input} weight={numbers[instruction.weight]} bias={bias} {_window_text(instruction.window)} "
                f"dilations={_list(instruction.window.dilations)} support={instruction.support.text(numbers)} residual={residual} "
                f"act={instruction.act} form={instruction.form}"
            )
        case Combine():
            return f"{instruction.kind} in={_list(instruction.inputs)} act={instruction.act}"
        case Pool():
            padding = f" include_pad={int(instruction.include_pad)}" if instruction.kind == "avgpool" else ""
            return f"{instruction.kind} in={instruction.input} {_window_text(instruction.window)} ceil={int(instruction.ceil)}{padding}"
        case Mean():
            return f"mean in={instruction.input}"
        case Concat():
            return f"concat in={_list(instruction.inputs)}"
        case Output():
            return f"output in={instruction.input}"


def _window_text(window: Window) -> str:
    return f"kernel={_list(window.kernel)} strides={_list(window.strides)} pads={_list(window.pads)}"


def _step_text(step: Step, numbers: dict[str, int]) -> str:
    epsilon = [] if step.epsilon is None else [repr(step.epsilon)]
    return ":".join([step.kind, *(str(numbers[name]) for name in step.constants), *epsilon])


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
