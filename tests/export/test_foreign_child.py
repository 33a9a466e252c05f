"""Foreign files that would take endless time or memory are refused by the child process that tries them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError, FromOnnx, VerificationError, onnx_from_foreign
from defensemble_export.foreign_child import onnx_from_foreign_limited
from tests.export import foreign_models as theirs

LOGITS = [("logits", TensorProto.FLOAT, ("N", theirs.CLASSES))]


def huge(operator: str) -> list[onnx.NodeProto]:
    """Nodes that add the largest value of a tensor of 2^40 elements to the scores."""
    inputs = {"ConstantOfShape": ["n"], "Expand": ["one", "n"], "Tile": ["one", "n"], "Range": ["zero", "count", "step"]}[operator]
    return [
        helper.make_node(operator, inputs, ["huge"]),
        helper.make_node("Cast", ["huge"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats"], ["largest"], keepdims=0),
        helper.make_node("Add", ["scores", "largest"], ["logits"]),
    ]


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_a_tensor_that_no_memory_holds(tmp_path: Path, operator: str) -> None:
    numbers = {"n": [2**40], "count": 2**40, "zero": 0, "step": 1}
    more = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    more.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    path = theirs.write(tmp_path, theirs.classifier(tail=huge(operator), more=more, outputs=LOGITS))
    with pytest.raises(ExportError, match=operator) as caught:
        onnx_from_foreign_limited(path)
    assert str(path) in str(caught.value)


def test_functions_that_double_are_stopped_and_the_next_file_is_read(tmp_path: Path) -> None:
    path = theirs.write(tmp_path, theirs.doubling(40))
    with pytest.raises(ExportError, match=rf"{path} took longer than 0\.4 s"):
        _ = FromOnnx(path, "a", timeout_s=0.4).network
    assert FromOnnx(theirs.write(tmp_path, theirs.doubling(3)), "a").network.input_shape == theirs.SHAPE


def test_the_child_gives_the_same_graph_and_the_same_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs.write(tmp_path, theirs.classifier())
    monkeypatch.chdir(tmp_path)
    assert onnx_from_foreign_limited("theirs.onnx", mean=np.array([0.5])) == onnx_from_foreign("theirs.onnx", mean=[0.5])
    noise = [helper.make_node("RandomNormalLike", ["scores"], ["logits"])]
    theirs.write(tmp_path, theirs.classifier(tail=noise, outputs=LOGITS))
    with pytest.raises(VerificationError, match=r"^theirs\.onnx: .* or is random"):
        onnx_from_foreign_limited("theirs.onnx")
    with pytest.raises(OSError, match="too long") as caught:
        onnx_from_foreign_limited("x" * 300)
    assert caught.value.filename == "x" * 300


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none(timeout_s: float) -> None:
    with pytest.raises(ExportError, match=str(timeout_s)):
        FromOnnx(Path("a.onnx"), "a", timeout_s=timeout_s)


def test_files_are_tried_one_after_the_other(tmp_path: Path) -> None:
    path = theirs.write(tmp_path, theirs.classifier())
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(onnx_from_foreign_limited(path).graph.node))) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert len(found) == 3
