"""External data of foreign files: what ONNX Runtime reads is read with the same values."""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError
from defensemble_export.foreign.convert import foreign_reference, onnx_from_foreign
from defensemble_export.foreign.reader import read_foreign
from tests.support import foreign_models as foreign

IMAGES = np.random.default_rng(7).random((5, *foreign.SHAPE), np.float32)
# Bits per element.
KINDS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


@dataclass(frozen=True)
class Stored:
    """A tensor and the reference of a file to its bytes, with `padding` bytes before and after them."""

    kind: int
    dims: tuple[int, ...]
    seed: int
    location: str
    file: str
    padding: int
    extra: int
    length: str | None
    offset_text: str | None
    leftover: bool
    checksum: bool
    place: str


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    location, file = draw(
        st.sampled_from(
            [
                ("w.bin", "w.bin"),
                ("./w.bin", "w.bin"),
                ("inner/w.bin", "inner/w.bin"),
                ("inner//deep/w.data", "inner/deep/w.data"),
                ("inner/../w.bin", "w.bin"),
                ("link.bin", "w.bin"),
                ("linked/w.bin", "inner/w.bin"),
                ("w ü.bin", "w ü.bin"),
                ("../w.bin", "../w.bin"),
                ("out/w.bin", "../w.bin"),
                ("none.bin", "w.bin"),
            ]
        )
    )
    kind = draw(st.sampled_from(sorted(KINDS)))
    dims = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 0), (3, 5), (2, 3, 7), (300,)]))
    size = (math.prod(dims) * KINDS[kind] + 7) // 8
    padding = draw(st.sampled_from([0, 0, 3, 16, 4096]))
    # One case in ten is wrong.
    offset = draw(st.sampled_from([*[str(padding), f"00{padding}", None if padding == 0 else str(padding)] * 6, "-1", str(padding + 1)]))
    length = draw(st.sampled_from([*[None, "0", str(size)] * 6, str(size + 1), "-1"]))
    place = draw(st.sampled_from(["initializer", "Constant", "If"]))
    extra = draw(st.sampled_from([0, 5]))
    return Stored(
        kind, dims, draw(st.integers(0, 9)), location, file, padding, extra, length, offset, draw(st.booleans()), draw(st.booleans()), place
    )


def written(folder: Path, case: Stored) -> Path:
    """Write a model that returns the float32 values of a stored tensor, and its external files."""
    (folder / "inner/deep").mkdir(parents=True)
    (folder / "link.bin").symlink_to("w.bin")
    (folder / "linked").symlink_to("inner")
    (folder / "out").symlink_to("..")
    size = (math.prod(case.dims) * KINDS[case.kind] + 7) // 8
    generator = np.random.default_rng(case.seed)
    if case.kind == TensorProto.BOOL:
        content = generator.integers(0, 2, size, np.uint8).tobytes()
    else:
        content = generator.integers(0, 60, size, np.uint8).tobytes()  # no NaN in any type
    (folder / case.file).write_bytes(b"\xff" * case.padding + content + b"\xff" * case.extra)
    tensor = TensorProto(name="kept", data_type=case.kind, dims=case.dims, data_location=TensorProto.EXTERNAL)
    entries = {
        "location": case.location,
        "offset": case.offset_text,
        "length": case.length,
        "checksum": "0" * 40 if case.checksum else None,
    }
    for key, text in entries.items():
        if text is not None:
            tensor.external_data.add(key=key, value=text)
    if case.leftover:
        tensor.raw_data = b"\x01" * size
    cast = helper.make_node("Cast", ["kept"], ["value"], to=TensorProto.FLOAT)
    constant = helper.make_node("Constant", [], ["kept"], value=tensor)
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, case.dims)
    nodes, tensors = {
        "initializer": ([cast], [tensor]),
        "Constant": ([constant, cast], []),
        "If": ([], [numpy_helper.from_array(np.array(True), "yes")]),
    }[case.place]
    if case.place == "If":
        branch: Any = helper.make_graph([constant, cast], "branch", [], [value])
        nodes = [helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)]
        value = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, case.dims)
    graph = helper.make_graph(nodes, "theirs", [], [value], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return foreign.write(folder, model)


def answer(source: str | bytes) -> foreign.Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (given_back,) = session.run(None, {})
    assert isinstance(given_back, np.ndarray)
    return given_back


@settings(max_examples=30, derandomize=True)
@given(stored())
def test_every_external_layout_of_onnx_runtime_is_read(case: Stored) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "theirs")
        folder.mkdir()
        path = written(folder, case)
        expected = None
        with contextlib.suppress(Exception):  # ONNX Runtime's errors have no common class below it
            expected = answer(str(path))
        if expected is not None:
            assert np.array_equal(answer(read_foreign(path).SerializeToString()), expected, equal_nan=True)
        elif not (folder / case.location).resolve().is_relative_to(folder.resolve()):
            with pytest.raises(ExportError, match="'kept'"):
                read_foreign(path)


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("one_file", [False, True])
def test_files_with_only_external_tensors_are_read(tmp_path: Path, one_file: bool, attributes: bool) -> None:
    """ONNX Runtime rejects such a file if a shape or an axis is external."""
    inside = helper.make_node("Constant", [], ["factor"], value=numpy_helper.from_array(np.array([2], np.float32)))
    tail = [inside, helper.make_node("Mul", ["scores", "factor"], ["logits"])]
    path = tmp_path / "theirs.onnx"
    model = foreign.classifier(flatten=[-1, 4], tail=tail, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=one_file, size_threshold=0, convert_attribute=attributes
    )
    taken = onnx_from_foreign(path)
    session = onnxruntime.InferenceSession(taken.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": IMAGES})
    assert np.allclose(logits, 2 * foreign.answer(IMAGES), atol=1e-4)
    assert np.allclose(foreign_reference(path)(IMAGES), 2 * foreign.answer(IMAGES), atol=1e-4)


def test_a_hugging_face_cache_of_links_is_read(tmp_path: Path) -> None:
    """`huggingface_hub` downloads both files as links into one folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/main"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    foreign.write_external(blobs).rename(blobs / "0a")
    (blobs / "weights.bin").rename(blobs / "0b")
    (snapshot / "theirs.onnx").symlink_to("../../blobs/0a")
    (snapshot / "weights.bin").symlink_to("../../blobs/0b")
    assert onnx_from_foreign(snapshot / "theirs.onnx").graph.output[0].name == "logits"
