"""Programs for the mask-aware operator, written directly and at random, without the compiler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.support.program_interpreter import run_program

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]
BATCHES = (1, 2, 4, 5, 8, 9, 16, 17, 33)
OTHER_LIBRARY = "DEFENSEMBLE_TEST_OPS_LIBRARY"  # of the operator, for tests under sanitizers
LANES = ("1,1,8,16", "1,1,1,1", "8,8,8,8", "16,16,16,16", "1,8,16,8", "16,1,8,1")


@dataclass
class Written:
    """A program, and the constants of its node: input 1, 2, ..."""

    shape: Shape
    lines: list[str] = field(default_factory=list)
    constants: list[Array] = field(default_factory=list)
    lanes: str = LANES[0]
    outputs: int = 1

    def text(self) -> str:
        return "".join(f"{line}\n" for line in (f"lanes {self.lanes}", f"images shape={_list(self.shape)}", *self.lines))

    def constant(self, values: Array) -> int:
        self.constants.append(values)
        return len(self.constants)

    def with_lanes(self, lanes: str) -> Written:
        return replace(self, lanes=lanes)

    def images(self, count: int, seed: int = 0) -> Array:
        return np.random.default_rng(seed).normal(size=(count, *self.shape)).astype(np.float32)

    def interpreted(self, images: Array) -> list[Array]:
        return run_program(self.text(), [images, *self.constants])


def _list(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)


def model_of(
    program: Written, text: str | None = None, *, outputs: int | None = None, images: Sequence[Any] | None = None, images_type: int = 1
) -> onnx.ModelProto:
    """A graph with only the operator's node, without the function that other runtimes need."""
    names = [f"c{number}" for number in range(1, len(program.constants) + 1)]
    results = [f"y{number}" for number in range(program.outputs if outputs is None else outputs)]
    node = helper.make_node(
        "MaskedNetwork_v1", ["images", *names], results, domain="defensemble", program=program.text() if text is None else text
    )
    graph = helper.make_graph(
        [node],
        "program",
        [helper.make_tensor_value_info("images", images_type, ["N", *program.shape] if images is None else images)],
        [helper.make_tensor_value_info(name, 1, ["N", None, None, None]) for name in results],
        [numpy_helper.from_array(values, name) for name, values in zip(names, program.constants, strict=True)],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("defensemble", 1)])


def session_of(model: onnx.ModelProto | bytes, *, threads: int = 1, library: Path | None = None) -> onnxruntime.InferenceSession:
    """A session that runs the node of the model on the operator library."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is None:
        from defensemble_ops import library_path

        library = Path(os.environ[OTHER_LIBRARY]) if OTHER_LIBRARY in os.environ else library_path()
    options.register_custom_ops_library(str(library))
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def computed(program: Written, images: Array, *, threads: int = 1) -> list[Array]:
    return [np.asarray(each) for each in session_of(model_of(program), threads=threads).run(None, {"images": images})]


def assert_close(got: Sequence[Array], want: Sequence[Array], tolerance: float = 3e-5) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max(initial=0))))


@st.composite
def programs(draw: st.DrawFn, most: int = 10) -> Written:
    """Programs of every instruction, with odd shapes, windows and supports, one to three outputs, and constants from a seed."""
    return _Drawing(draw, most).program


class _Drawing:
    def __init__(self, draw: st.DrawFn, most: int) -> None:
        self.draw = draw
        self.generator = np.random.default_rng(draw(st.integers(0, 1 << 16)))
        self.program = Written(
            (self.among(1, 1, 2, 3, 5), self.size(9), self.size(9)), lanes=_list([self.among(1, 8, 16) for _ in range(4)])
        )
        self.tensors: list[Shape] = [self.program.shape]
        kinds = (self.map, self.conv, self.conv, self.conv, self.combine, self.pool, self.mean, self.concat)
        for _ in range(self.size(most)):
            self.among(*kinds)()
        read = [len(self.tensors) - 1, *(self.pick() for _ in range(self.among(0, 0, 1, 2)))]
        self.program.lines += [f"output in={tensor}" for tensor in read]
        self.program.outputs = len(read)

    def among(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def size(self, most: int, least: int = 1) -> int:
        return self.draw(st.integers(least, most))

    def pick(self) -> int:
        """A tensor, often one of the latest."""
        count = len(self.tensors)
        return self.draw(st.integers(max(0, count - 3), count - 1)) if self.draw(st.booleans()) else self.draw(st.integers(0, count - 1))

    def normal(self, *shape: int) -> int:
        return self.program.constant(self.generator.normal(size=shape).astype(np.float32))

    def define(self, line: str, shape: Shape) -> None:
        self.program.lines.append(line)
        self.tensors.append(shape)

    def mask(self, shape: Shape) -> int:
        channels, height, width = shape
        dims: tuple[int, ...] = self.among(shape, shape, (channels, 1, 1), (1, height, width))
        keep = self.among(0.0, 0.1, 0.3, 0.7, 1.0)
        return self.program.constant(self.generator.random((1, *dims) if self.draw(st.booleans()) else dims) < keep)

    def support(self, shape: Shape) -> str:
        kind = self.among("full", "one", "one", "and", "or")
        if kind == "full":
            return "full"
        first = str(self.mask(shape))
        return first if kind == "one" else f"{first}{'&' if kind == 'and' else '|'}{self.mask(shape)}"

    def map(self) -> None:
        tensor = self.pick()
        channels = self.tensors[tensor][0]
        steps = []
        for _ in range(self.size(3, 0)):
            kind = self.among("sub", "add", "mul", "div", "bn")
            if kind == "bn":
                positive = self.program.constant(self.generator.uniform(0.5, 2, channels).astype(np.float32))
                inputs = ":".join(str(self.normal(channels)) for _ in range(3))
                steps.append(f"bn:{inputs}:{positive}:{self.among('1e-05', '0.001', '0.0')}")
            else:
                dims: tuple[int, ...] = self.among((), (1,), (channels, 1, 1), (1, channels, 1, 1))
                values = self.generator.uniform(0.5, 2, dims).astype(np.float32)
                steps.append(f"{kind}:{self.program.constant(values)}")
        act = self.among("none", "relu", "sigmoid")
        self.define(f"map in={tensor} steps={','.join(steps)} act={act} support={self.support(self.tensors[tensor])}", self.tensors[tensor])

    def conv(self) -> None:
        tensor = self.pick()
        channels, *extents = self.tensors[tensor]
        strides, dilations = ([self.size(3), self.size(3)] for _ in range(2))
        kernel = [self.among(1, 2, 3, 3, 7, 11), self.among(1, 2, 3, 3, 7, 11)]
        pads = [self.size(2, 0) for _ in range(4)]
        result = []
        for axis in (0, 1):
            missing = dilations[axis] * (kernel[axis] - 1) + 1 - extents[axis] - pads[axis] - pads[axis + 2]
            pads[axis + self.among(0, 2)] += max(missing, 0)  # kernels larger than the image
            room = extents[axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1
            result.append(room // strides[axis] + 1)
        alike = [number for number, shape in enumerate(self.tensors) if shape[1:] == tuple(result)]
        residual = self.among(None, *alike)
        out = self.among(1, 3, 6, 7, 8, 13, 16, 17, 33) if residual is None else self.tensors[residual][0]
        shape = (out, result[0], result[1])
        weight = self.program.constant(
            (self.generator.normal(size=(out, channels, *kernel)) / np.sqrt(channels * np.prod(kernel))).astype(np.float32)
        )
        bias = self.normal(out) if self.draw(st.booleans()) else "-"
        support = self.support(shape)
        self.define(
            f"conv in={tensor} weight={weight} bias={bias} kernel={_list(kernel)} strides={_list(strides)} pads={_list(pads)} "
            f"dilations={_list(dilations)} support={support} residual={'-' if residual is None else residual} "
            f"act={self.among('none', 'relu')} form={self.among('dense' if support == 'full' else 'table', 'packed')}",
            shape,
        )

    def combine(self) -> None:
        first = self.pick()
        shape = self.tensors[first]
        alike = [
            number
            for number, other in enumerate(self.tensors)
            if other[0] == shape[0] and (other == shape or other[1:] == (1, 1) or shape[1:] == (1, 1))
        ]
        second = self.draw(st.sampled_from(alike))
        self.define(
            f"{self.among('add', 'mul')} in={first},{second} act={self.among('none', 'relu')}",
            self.tensors[second] if shape[1:] == (1, 1) else shape,
        )

    def pool(self) -> None:
        tensor = self.pick()
        channels, *extents = self.tensors[tensor]
        kernel, strides = [self.size(4), self.size(4)], [self.size(3), self.size(3)]
        pads = [self.size(kernel[axis % 2] - 1, 0) for axis in range(4)]
        kind = self.among("maxpool", "avgpool")
        ceil = kind == "maxpool" and self.draw(st.booleans())
        result = []
        for axis in (0, 1):
            missing = kernel[axis] - extents[axis] - pads[axis] - pads[axis + 2]
            if missing > 0:
                kernel[axis] -= missing
                pads[axis], pads[axis + 2] = min(pads[axis], kernel[axis] - 1), min(pads[axis + 2], kernel[axis] - 1)
            room = extents[axis] + pads[axis] + pads[axis + 2] - kernel[axis]
            if room < 0:
                return
            count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
            result.append(count - (ceil and (count - 1) * strides[axis] >= extents[axis] + pads[axis]))
        padding = "" if kind == "maxpool" else f" include_pad={self.among(0, 1)}"
        window = f"kernel={_list(kernel)} strides={_list(strides)} pads={_list(pads)}"
        self.define(f"{kind} in={tensor} {window} ceil={int(ceil)}{padding}", (channels, result[0], result[1]))

    def mean(self) -> None:
        tensor = self.pick()
        self.define(f"mean in={tensor}", (self.tensors[tensor][0], 1, 1))

    def concat(self) -> None:
        first = self.pick()
        alike = [number for number, shape in enumerate(self.tensors) if shape[1:] == self.tensors[first][1:]]
        chosen = [first, *self.draw(st.lists(st.sampled_from(alike), max_size=2))]
        channels = sum(self.tensors[number][0] for number in chosen)
        self.define(f"concat in={_list(chosen)}", (channels, *self.tensors[first][1:]))
