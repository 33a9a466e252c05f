"""The child process rejects foreign files that would need endless time or memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError, OnnxSource, VerificationError
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.members.foreign_child import onnx_from_foreign_limited
from tests.support import foreign_models as foreign
from tests.support.facts import raises

LOGITS = [("logits", TensorProto.FLOAT, ("N", foreign.CLASSES))]


def huge(operator: str) -> list[onnx.NodeProto]:
    """Return nodes that add the largest value of a tensor of 2^40 elements to the scores."""
    inputs = {"ConstantOfShape": ["n"], "Expand": ["one", "n"], "Tile": ["one", "n"], "Range": ["zero", "count", "step"]}[operator]
    return [
        helper.make_node(operator, inputs, ["huge"]),
        helper.make_node("Cast", ["huge"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats"], ["largest"], keepdims=0),
        helper.make_node("Add", ["scores", "largest"], ["logits"]),
    ]


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_a_tensor_larger_than_memory_is_rejected(tmp_path: Path, operator: str) -> None:
    numbers = {"n": [2**40], "count": 2**40, "zero": 0, "step": 1}
    more = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    more.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    path = foreign.write(tmp_path, foreign.classifier(tail=huge(operator), more=more, outputs=LOGITS))
    with pytest.raises(ExportError, match=operator) as caught:
        onnx_from_foreign_limited(path)
    assert str(path) in str(caught.value)


def test_exponential_functions_time_out_and_the_next_file_is_read(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.doubling(40))
    with raises(ExportError, f"{path} | 0.4 s"):
        _ = OnnxSource(path, "a", timeout_s=0.4).graph
    assert OnnxSource(foreign.write(tmp_path, foreign.doubling(3)), "a").describe_member().input_shape == foreign.SHAPE


def test_the_child_gives_the_same_graph_and_the_same_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.write(tmp_path, foreign.classifier())
    monkeypatch.chdir(tmp_path)
    assert onnx_from_foreign_limited("theirs.onnx", mean=np.array([0.5])) == onnx_from_foreign("theirs.onnx", mean=[0.5])
    noise = [helper.make_node("RandomNormalLike", ["scores"], ["logits"])]
    foreign.write(tmp_path, foreign.classifier(tail=noise, outputs=LOGITS))
    with pytest.raises(VerificationError, match=r"^theirs\.onnx: .*random"):
        onnx_from_foreign_limited("theirs.onnx")
    with pytest.raises(OSError, match="too long") as caught:
        onnx_from_foreign_limited("x" * 300)
    assert caught.value.filename == "x" * 300


def busy_where_bright(work: Sequence[onnx.NodeProto], size: int) -> onnx.ModelProto:
    """Return a classifier that does `work` on a square matrix in a loop of 10,000 trips if all values of an image are above 0.9."""
    busy = [foreign.loop("trips", "m", "worked", work), helper.make_node("ReduceMax", ["worked"], ["extra"], keepdims=0)]
    branches: dict[str, Any] = {
        "then_branch": helper.make_graph(busy, "busy", [], [helper.make_tensor_value_info("extra", TensorProto.FLOAT, None)]),
        "else_branch": helper.make_graph(
            [helper.make_node("Identity", ["least"], ["same"])],
            "idle",
            [],
            [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
        ),
    }
    tail = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Greater", ["least", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["chosen"], **branches),
        helper.make_node("Sub", ["chosen", "chosen"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["logits"]),
    ]
    constants = {"trips": np.array(10_000), "limit": np.array(0.9, np.float32), "m": np.full((size, size), 1e-3, np.float32)}
    return foreign.classifier(tail=tail, more=[numpy_helper.from_array(value, name) for name, value in constants.items()], outputs=LOGITS)


def test_the_time_limit_also_covers_real_images(tmp_path: Path) -> None:
    """The graph is fast on random images, as in its import."""
    work = [helper.make_node("MatMul", ["worked_in", "worked_in"], ["worked_out"])]
    path = foreign.write(tmp_path, busy_where_bright(work, 400))
    network, target = OnnxSource(path, "a", timeout_s=0.5), tmp_path / "a.onnx"
    bright = np.full((2, *foreign.SHAPE), 0.95, np.float32)
    start = time.monotonic()
    with raises(ExportError, f"{path} | --timeout"):
        network.write_onnx(target, max_batch_size=2, images=bright)
    assert time.monotonic() - start < 10
    assert [one.name for one in tmp_path.iterdir()] == ["theirs.onnx"]
    network.write_onnx(target, max_batch_size=2, images=bright / 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.onnx", "a.onnx.json", "theirs.onnx"]


def test_a_failure_on_real_images_names_the_file(tmp_path: Path) -> None:
    work = [helper.make_node("Div", ["worked_in", "worked_in"], ["one"]), helper.make_node("Log", ["chosen_low"], ["worked_out"])]
    low = helper.make_node("Sub", ["one", "one"], ["chosen_low"])
    path = foreign.write(tmp_path, busy_where_bright([work[0], low, work[1]], 1))
    bright = np.full((1, *foreign.SHAPE), 0.95, np.float32)
    with raises(VerificationError, f"{path} | 1 real image | not finite"):
        OnnxSource(path, "a").write_onnx(tmp_path / "a.onnx", max_batch_size=1, images=bright)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_an_invalid_timeout_is_rejected(timeout_s: float) -> None:
    with pytest.raises(ExportError, match=str(timeout_s)):
        OnnxSource(Path("a.onnx"), "a", timeout_s=timeout_s)


def test_files_are_loaded_one_after_the_other(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.classifier())
    node_counts: list[int] = []
    threads = [threading.Thread(target=lambda: node_counts.append(len(onnx_from_foreign_limited(path).graph.node))) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert len(node_counts) == 3
