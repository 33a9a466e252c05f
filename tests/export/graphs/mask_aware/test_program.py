"""The text of programs: what the operator reads, parsed back."""

from __future__ import annotations

import re

import pytest

from defensemble_export import ExportError
from defensemble_export.graphs.mask_aware import program
from defensemble_export.graphs.mask_aware.expressions import FULL, MaskExpression
from defensemble_export.graphs.mask_aware.program import (
    Combine,
    Concat,
    Conv,
    Images,
    Map,
    Mean,
    Output,
    Pool,
    Program,
    Step,
    Window,
)
from defensemble_ops.library import NATIVE
from tests.support.parsed_programs import parse_program

INPUTS = ("images", "mean", "std", "scale", "bias", "average", "variance", "weight", "m0", "m1")
MASKS = MaskExpression.of("m0") & MaskExpression.of("m1")
WINDOW = Window((3, 2), (1, 2), (1, 0, 2, 1), (1, 3))
PROGRAM = Program(
    INPUTS,
    (
        Images((3, 32, 16)),
        Map(0, (Step("sub", ("mean",)), Step("div", ("std",)))),
        Conv(1, "weight", None, WINDOW, MASKS | MaskExpression.of("m1")),
        Conv(2, "weight", "bias", Window((1, 1)), MASKS, 2, "relu"),
        Map(3, (Step("bn", ("scale", "bias", "average", "variance"), 1e-05),), "sigmoid", MaskExpression.of("m0")),
        Combine("add", (3, 4), "relu"),
        Combine("mul", (4, 5)),
        Pool("maxpool", 6, Window((2, 2), (2, 2)), ceil=True),
        Pool("avgpool", 6, Window((2, 2), (2, 2)), include_pad=True),
        Mean(8),
        Concat((7, 8)),
        Conv(10, "weight", None, WINDOW, FULL),
        Output(11),
        Output(9),
    ),
    (1, 8, 8, 16),
)
TEXT = """\
lanes 1,8,8,16
images shape=3,32,16
map in=0 steps=sub:1,div:2 act=none support=full
conv in=1 weight=7 bias=- kernel=3,2 strides=1,2 pads=1,0,2,1 dilations=1,3 support=9 residual=- act=none form=table
conv in=2 weight=7 bias=4 kernel=1,1 strides=1,1 pads=0,0,0,0 dilations=1,1 support=8&9 residual=2 act=relu form=table
map in=3 steps=bn:3:4:5:6:1e-05 act=sigmoid support=8
add in=3,4 act=relu
mul in=4,5 act=none
maxpool in=6 kernel=2,2 strides=2,2 pads=0,0,0,0 ceil=1
avgpool in=6 kernel=2,2 strides=2,2 pads=0,0,0,0 ceil=0 include_pad=1
mean in=8
concat in=7,8
conv in=10 weight=7 bias=- kernel=3,2 strides=1,2 pads=1,0,2,1 dilations=1,3 support=full residual=- act=none form=dense
output in=11
output in=9
"""


def test_limits_are_those_of_the_operator() -> None:
    source = "".join((NATIVE / name).read_text() for name in ("plan.cc", "convolution.cc"))
    native = {
        name: eval(value.replace("INT32_MAX", str(2**31 - 1)).replace("/", "//"), {})
        for name, value in re.findall(r"constexpr \w+ (kMost\w+) = ([^;]+);", source)
    }
    assert program.MAX_WEIGHT_ROWS == program.MAX_EXTENT == native["kMostExtent"]
    assert program.MAX_NEURONS == native["kMostNeurons"]
    assert program.MAX_WINDOW_CELLS == native["kMostCells"]
    assert program.MAX_CONV_CELLS == min(native["kMostVisits"], native["kMostCells"])
    assert program.MAX_CONV_INPUTS == native["kMostIndex"]


def test_text_of_every_instruction() -> None:
    assert PROGRAM.text() == TEXT


def test_text_is_parsed_back() -> None:
    assert parse_program(TEXT, INPUTS) == PROGRAM


@pytest.mark.parametrize("line", ["", "lanes 1,1", "jump in=1", "map in=0", "mean in=x", "mean", "conv in=1 weight=99"])
def test_other_lines_are_errors_that_name_the_line(line: str) -> None:
    text = line if line.startswith("lanes") or not line else f"lanes 1,1,8,16\n{line}\n"
    if line == "lanes 1,1":
        text = "lane 1,1,8,16\n"
        line = text.strip()
    with pytest.raises(ExportError) as caught:
        parse_program(text, INPUTS)
    assert f"'{line}'" in str(caught.value)
