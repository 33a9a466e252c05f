"""Bad programs, constants and images: an error that names what is wrong, never a crash and never much memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.support.operator_programs import Array, Written, model_of, session_of

F32 = np.float32
# 1: weight, 2: bias, 3: mask, 4: scalar
CONSTANTS: list[Array] = [np.ones((4, 2, 3, 3), F32), np.ones(4, F32), np.arange(100).reshape(4, 5, 5) % 3 > 0, np.ones((), F32)]
CONV = "conv in=0 weight=1 bias=2 kernel=3,3 strides=1,1 pads=1,1,1,1 dilations=1,1 support=3 residual=- act=relu form=table"
POOL = "maxpool in=0 kernel=2,2 strides=2,2 pads=0,0,0,0 ceil=0"
AVERAGE = "avgpool in=0 kernel=2,2 strides=2,2 pads=0,0,0,0 ceil=0 include_pad=1"
MAP = "map in=0 steps=mul:4 act=none support=full"
GOOD = Written(
    (2, 5, 5),
    [CONV, POOL, AVERAGE, MAP, "add in=1,1 act=relu", "mean in=5", "mul in=5,6 act=none", "concat in=5,7", "output in=8"],
    CONSTANTS,
)


def loaded(*lines: str, constants: list[Array] | None = None, lanes: str = "1,1,8,16") -> None:
    program = Written((2, 5, 5), [*lines, "output in=1"], CONSTANTS if constants is None else constants, lanes)
    session_of(model_of(program))


def refused(message: str, *lines: str, **more: Any) -> None:
    with pytest.raises(RuntimeException, match=rf"MaskedNetwork_v1: (.|\n)*({message})"):
        loaded(*lines, **more)


def test_the_good_program_loads() -> None:
    (got,) = session_of(model_of(GOOD)).run(None, {"images": GOOD.images(3)})
    np.testing.assert_allclose(got, GOOD.interpreted(GOOD.images(3))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("in=0", "in=7", "tensor 7 "),
        ("in=0", "in=-1", "tensor -1 "),
        ("in=0", "in=", "''"),
        ("in=0", "in=zero", "'zero'"),
        ("in=0", "in=0x", "'0x'"),
        ("in=0 ", "", "no in"),
        ("in=0", "in", "'in'"),
        ("in=0", "in=99999999999999999999", "99999999999999999999"),
        ("weight=1", "weight=0", "input 0 "),
        ("weight=1", "weight=5", "input 5 "),
        ("weight=1", "weight=-1", "input -1 "),
        ("weight=1", "weight=3", "input 3 is not FLOAT"),
        ("weight=1", "weight=2", "weight"),
        ("bias=2", "bias=1", "expected 4"),
        ("bias=2", "bias=3", "input 3 is not FLOAT"),
        ("support=3", "support=2", "input 2 "),
        ("support=3", "support=3&", "''"),
        ("support=3", "support=|3", "support"),
        ("support=3", "support=", "support"),
        ("support=3", "support=3&&3", "''"),
        ("kernel=3,3", "kernel=3", "kernel"),
        ("kernel=3,3", "kernel=3,2", "weight"),
        ("kernel=3,3", "kernel=3,3,", "kernel|''"),
        ("kernel=3,3", "kernel=0,3", "kernel"),
        ("kernel=3,3", "kernel=-3,-3", "kernel"),
        ("strides=1,1", "strides=0,1", "stride"),
        ("strides=1,1", "strides=1,-1", "stride"),
        ("strides=1,1", "strides=1,9999999999", "stride"),
        ("dilations=1,1", "dilations=3,1", "kernel"),
        ("dilations=1,1", "dilations=70000,1", "dilation"),
        ("pads=1,1,1,1", "pads=1,1,1", "pads"),
        ("pads=1,1,1,1", "pads=1,1,-1,1", "pad"),
        ("pads=1,1,1,1", "pads=65535,1,65535,1", "extent"),
        ("pads=1,1,1,1", "pads=30000,30000,30000,30000", "neurons"),
        ("pads=1,1,1,1", "pads=9223372036854775807,1,1,1", "pad"),
        ("residual=-", "residual=0", "residual"),
        ("residual=-", "residual=9", "tensor 9 "),
        ("act=relu", "act=sigmoid", "act"),
        ("act=relu", "act=Relu", "act"),
        ("form=table", "form=dense", "full"),
        ("form=table", "form=rows", "form"),
        ("conv", "convolve", "convolve"),
    ],
)
def test_a_convolution_that_is_wrong(old: str, new: str, fact: str) -> None:
    assert old in CONV
    refused(fact, CONV.replace(old, new, 1))


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (POOL.replace("ceil=0", "ceil=2"), "ceil"),
        (POOL.replace("pads=0,0,0,0", "pads=0,0,2,0"), "pad"),
        (POOL.replace("kernel=2,2", "kernel=6,2"), "kernel"),
        (POOL.replace("kernel=2,2", "kernel=60000,60000").replace("pads=0,0,0,0", "pads=59999,59999,59999,59999"), "extent|neurons|cells"),
        (AVERAGE.replace(" include_pad=1", ""), "include_pad"),
        (AVERAGE.replace("include_pad=1", "include_pad=-1"), "include_pad"),
        (MAP.replace("mul:4", "mul:1"), "channels"),
        (MAP.replace("mul:4", "mul:3"), "not FLOAT"),
        (MAP.replace("mul:4", "pow:4"), "pow"),
        (MAP.replace("mul:4", "mul"), "'mul'"),
        (MAP.replace("mul:4", "mul:4,"), "''"),
        (MAP.replace("mul:4", "bn:4:4:4:4:1e-5"), "expected 2"),
        (MAP.replace("mul:4", "bn:5:5:5:5:x1"), "'x1'"),
        (MAP.replace("full", "3"), "mask"),
        ("add in=0,0 act=sigmoid", "act"),
        ("add in=0 act=relu", "in has 1"),
        ("add in=0,0,0 act=relu", "in has 3"),
        ("mul in=0,0", "no act"),
        ("concat in=", "inputs"),
        ("mean in=1", "tensor 1 "),
        ("images shape=2,5,5", "first"),
        ("output", "no in"),
        ("nonsense", "nonsense"),
    ],
)
def test_other_instructions_that_are_wrong(line: str, fact: str) -> None:
    refused(fact, line, constants=[*CONSTANTS, np.ones(2, F32)])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "lanes"),
        ("images shape=2,5,5\noutput in=0\n", "lanes"),
        ("lanes\nimages shape=2,5,5\noutput in=0\n", "lanes"),
        ("lanes 1,1,8\nimages shape=2,5,5\noutput in=0\n", "four"),
        ("lanes 1,1,8,16,16\nimages shape=2,5,5\noutput in=0\n", "four"),
        ("lanes 1,1,8,16 2\nimages shape=2,5,5\noutput in=0\n", "'2'"),
        ("lanes 1,2,8,16\nimages shape=2,5,5\noutput in=0\n", "1, 8 or 16"),
        ("lanes 1,1,8,16\n", "output"),
        ("lanes 1,1,8,16\noutput in=0\n", "tensor 0 "),
        ("lanes 1,1,8,16\nimages shape=2,5,5\n", "output"),
        ("lanes 1,1,8,16\nimages shape=2,5\noutput in=0\n", "shape has 2"),
        ("lanes 1,1,8,16\nimages shape=0,5,5\noutput in=0\n", "extent"),
        ("lanes 1,1,8,16\nimages shape=-2,5,5\noutput in=0\n", "extent"),
        ("lanes 1,1,8,16\nimages shape=65536,5,5\noutput in=0\n", "65536"),
        ("lanes 1,1,8,16\nimages shape=65535,65535,65535\noutput in=0\n", "neurons"),
        ("lanes 1,1,8,16\nimages shape=2,5,5\noutput in=0\noutput in=0\n", "1 outputs.* 2"),
    ],
)
def test_a_text_that_is_wrong(text: str, fact: str) -> None:
    with pytest.raises(RuntimeException, match=fact):
        session_of(model_of(GOOD, text))


def test_more_outputs_than_the_program_has() -> None:
    with pytest.raises(RuntimeException, match=r"2 outputs.* 1"):
        session_of(model_of(GOOD, outputs=2))


def test_an_output_without_a_name() -> None:
    model = model_of(Written((2, 5, 5), [MAP, "output in=0", "output in=1"], CONSTANTS))
    (node,) = (each for each in model.graph.node if each.domain)
    unread = node.output[0]
    node.output[0] = ""
    model.graph.output.remove(next(each for each in model.graph.output if each.name == unread))
    with pytest.raises(RuntimeException, match=r"1 outputs.* 2"):
        session_of(model)


def test_more_than_65535_weight_rows() -> None:
    line = "conv in=0 weight=1 bias=- kernel=1,1 strides=1,1 pads=0,0,0,0 dilations=1,1 support=full residual=- act=none form=dense"
    for channels, fact in ((65535, None), (65536, "extent")):
        program = Written((channels, 1, 1), [line, "output in=1"], [np.ones((1, channels, 1, 1), F32)])
        if fact is None:
            (got,) = session_of(model_of(program)).run(None, {"images": np.ones((9, channels, 1, 1), F32)})
            np.testing.assert_allclose(got, np.full((9, 1, 1, 1), channels), rtol=1e-4)
        else:
            with pytest.raises(RuntimeException, match=fact):
                session_of(model_of(program))
    wide = line.replace("kernel=1,1", "kernel=1,3")
    with pytest.raises(RuntimeException, match="65,535"):
        session_of(model_of(Written((21846, 1, 3), [wide, "output in=1"], [np.ones((1, 21846, 1, 3), F32)])))


@pytest.mark.parametrize("kind", ["half", "bytes", "missing", "computed", "input"])
def test_inputs_of_another_kind(kind: str) -> None:
    model = model_of(GOOD)
    node, graph = model.graph.node[0], model.graph
    if kind in ("half", "bytes"):
        dtype = np.float16 if kind == "half" else np.uint8
        model = model_of(replace(GOOD, constants=[CONSTANTS[0].astype(dtype), *CONSTANTS[1:]]))
    elif kind == "missing":
        node.input[2] = ""
    elif kind == "computed":
        graph.node.insert(0, helper.make_node("ReduceMean", ["images"], ["c2_of_images"], keepdims=0))
        node.input[2] = "c2_of_images"
    else:
        graph.input.append(helper.make_tensor_value_info("c2_given", TensorProto.FLOAT, [4]))
        node.input[2] = "c2_given"
    # ONNX Runtime itself refuses a type that no other input has.
    with pytest.raises((RuntimeException, Fail), match=r"MaskedNetwork_v1"):
        session_of(model)


def test_an_input_of_another_type_that_the_program_does_not_read() -> None:
    program = replace(GOOD, constants=[*CONSTANTS, np.array([2, 3])])  # the axes of a mean, which only the function reads
    (got,) = session_of(model_of(program)).run(None, {"images": GOOD.images(3)})
    np.testing.assert_array_equal(got, session_of(model_of(GOOD)).run(None, {"images": GOOD.images(3)})[0])


def test_a_program_that_is_missing_or_not_a_text() -> None:
    for value in (None, 3):
        model = model_of(GOOD)
        del model.graph.node[0].attribute[:]
        if value is not None:
            model.graph.node[0].attribute.append(helper.make_attribute("program", value))
        with pytest.raises((RuntimeException, Fail), match=r"program|Attribute"):
            session_of(model)


def test_a_text_with_a_null_in_a_number() -> None:
    with pytest.raises((RuntimeException, Fail, InvalidArgument)):
        session_of(model_of(GOOD, GOOD.text().replace("in=8", "in=8\0 9")))


@pytest.mark.parametrize("shape", [(1, 2, 5, 4), (1, 3, 5, 5), (2, 5, 5), (50,), (1, 1, 2, 5, 5), ()])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    session = session_of(model_of(GOOD, images=[f"d{axis}" for axis in range(len(shape))]))
    with pytest.raises(InvalidArgument, match=rf"\({', '.join(map(str, shape))}\), expected \(N, 2, 5, 5\)"):
        session.run(None, {"images": np.zeros(shape, F32)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.bool_, np.uint8])
def test_images_of_another_type(dtype: type) -> None:
    session = session_of(model_of(GOOD, images_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))
    with pytest.raises(InvalidArgument, match="FLOAT"):
        session.run(None, {"images": np.zeros((1, 2, 5, 5), dtype)})


def test_bytes_of_a_mask_other_than_0_and_1() -> None:
    model = model_of(GOOD)
    tensor = next(each for each in model.graph.initializer if each.data_type == TensorProto.BOOL)
    tensor.raw_data = bytes([0, 1, 2, 255, 128] * 20)
    (got,) = session_of(model).run(None, {"images": GOOD.images(3)})
    values = np.frombuffer(tensor.raw_data, np.uint8).reshape(4, 5, 5) != 0
    want = replace(GOOD, constants=[*CONSTANTS[:2], values, *CONSTANTS[3:]]).interpreted(GOOD.images(3))[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: Written((2, 4000, 4000), [], CONSTANTS),  # nothing but the images
        lambda: Written((1, 5000, 5000), [AVERAGE.replace("kernel=2,2", "kernel=5000,5000"), "output in=1"], CONSTANTS),
        lambda: Written(
            (1, 5000, 5000), [POOL.replace("kernel=2,2", "kernel=900,900").replace("strides=2,2", "strides=1,1"), "output in=1"], CONSTANTS
        ),
        lambda: Written(
            (255, 60, 60),
            [
                "conv in=0 weight=1 bias=- kernel=16,16 strides=1,1 pads=1000,1000,1000,1000 dilations=1,1 support=full residual=- "
                "act=none form=dense",
                "output in=1",
            ],
            [np.ones((1, 255, 16, 16), F32)],
        ),
    ],
    ids=["no output", "whole window", "windows", "convolution"],
)
def test_huge_extents_do_not_take_the_memory(make: Callable[[], Written]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        session_of(model_of(make()))
    except RuntimeException as error:
        assert "MaskedNetwork_v1" in str(error)  # noqa: PT017
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5e6  # kilobytes


def edited(draw: st.DrawFn, text: str) -> str:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(text) - 1)))
        kind = draw(st.sampled_from(("cut", "drop", "put", "swap", "line", "number")))
        if kind == "cut":
            text = text[:at]
        elif kind == "drop":
            text = text[:at] + text[at + draw(st.integers(1, 5)) :]
        elif kind in ("put", "swap"):
            text = text[:at] + draw(st.text("0123456789,=-:&| \nabcfx.", min_size=1, max_size=3)) + text[at + (kind == "swap") :]
        elif kind == "line":
            lines = text.split("\n")
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)))
            text = "\n".join(lines)
        else:
            digits = [position for position, letter in enumerate(text) if letter.isdigit()]
            if digits:
                at = draw(st.sampled_from(digits))
                number = draw(
                    st.sampled_from(("0", "1", "2", "3", "7", "16", "300", "65535", "65536", "2147483647", "-1", "9223372036854775808"))
                )
                text = text[:at] + number + text[at + 1 :]
    return text


@st.composite
def edited_texts(draw: st.DrawFn) -> str:
    """The text of the good program after random edits."""
    return edited(draw, GOOD.text())


@given(text=edited_texts(), batch=st.sampled_from((1, 6, 9)))
def test_random_edits_give_an_error_or_answers(text: str, batch: int) -> None:
    try:
        (got,) = session_of(model_of(GOOD, text)).run(None, {"images": GOOD.images(batch)})
    except (RuntimeException, InvalidArgument, Fail):
        return
    assert got.shape[0] == batch
