"""The program of a mask-aware node: its instructions, and the text that the operator reads.

One instruction a line, `name key=value ...`. The first line states the batch lanes; every other one, except `output`, defines the next
tensor, (C,H,W). A tensor has rows for the neurons of its support, and is 0 elsewhere. Numbers of inputs are positions among the inputs of
the node: 0 is the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .expressions import FULL, MaskExpression, Shape

# Batch classes of `lanes`: the largest batch of each; None for all larger ones.
BATCH_CLASSES: tuple[tuple[str, int | None], ...] = (("1", 1), ("2-4", 4), ("5-8", 8), ("9+", None))
# The limits of the operator, as in `defensemble_ops/native`, which refuses a file that exceeds one.
MAX_WEIGHT_ROWS = 65_535  # kernel height * kernel width * input channels: the operator numbers them in 16 bits
MAX_EXTENT = 65_535  # of tensors and windows
MAX_NEURONS = (2**31 - 1) // 64  # of a tensor
MAX_WINDOW_CELLS = 2**27  # of all windows of a pool
MAX_CONV_CELLS = 2**25  # height * width of the output * height * width of the kernel
MAX_CONV_INPUTS = 2**28  # the same for each input channel


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
    is_packed: bool = False

    @property
    def form(self) -> str:
        """`dense` computes all channels of a position, `table` the kept ones; `packed` is `table` with weights of its own for one lane."""
        return "dense" if self.support.is_full else "packed" if self.is_packed else "table"

    def kernel(self, lanes: int) -> str:
        """Return the name of the kernel for some number of lanes."""
        if lanes == 1:
            return "packed" if self.form == "packed" else "rows"
        return "dense" if self.form == "dense" else "table"


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


def _list(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)


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
