"""The operator in sessions of ONNX Runtime: registered or not, the answers are the same, and which of the two it is can be asked."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from defensemble_ops import is_active, library_path, register
from defensemble_ops.compiler import find_compiler
from defensemble_ops.library import NATIVE, instruction_set_of
from defensemble_ops.sessions import registration_problem
from defensemble_server.runtime.backend_build import onnxruntime_library
from tests.support import backend_graphs as graphs, operator_graphs as operators
from tests.support.facts import raises


def session(model: object = None, *, registered: bool = True, parallel: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = 2
    if registered:
        register(options)
    made = operators.masking() if model is None else model
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


def check_answers(tested: onnxruntime.InferenceSession) -> None:
    for count in (1, 2, 5, 16, 35):
        images = operators.images(count)
        np.testing.assert_array_equal(tested.run(None, {"x": images})[0], operators.masked(images))


def test_a_registered_library_is_active() -> None:
    tested = session()
    assert is_active(tested)
    check_answers(tested)


def test_without_it_the_same_file_answers_the_same() -> None:
    tested = session(registered=False)
    assert not is_active(tested)
    check_answers(tested)


def test_a_graph_without_the_operator_is_not_active() -> None:
    assert not is_active(session(graphs.affine()))
    assert not is_active(session(operators.masking("MaskedNetwork_v2"))), "an operator that the library does not know"


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_each_instruction_set_answers_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEMBLE_OPS_ISA", name)
    try:
        instruction_set_of(library_path())
    except ValueError as error:
        pytest.skip(f"this processor lacks {name}: {error}")
    tested = session()
    assert is_active(tested)
    check_answers(tested)


def test_an_instruction_set_that_is_none_is_an_error_at_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEMBLE_OPS_ISA", "sse9")
    with raises(ValueError, "DEFENSEMBLE_OPS_ISA | 'sse9'"):
        register(onnxruntime.SessionOptions())
    assert "DEFENSEMBLE_OPS_ISA" in (registration_problem(library_path()) or ""), "of programs in other languages, too"


def test_a_library_that_works_is_taken() -> None:
    assert registration_problem(library_path()) is None


def test_runs_of_other_threads_do_not_count() -> None:
    active, dense = session(), session(registered=False)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            active.run(None, {"x": operators.images(1)})

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert [is_active(dense) for _ in range(20)] == [False] * 20
        assert is_active(active)
    finally:
        stop.set()
        thread.join()


def test_sessions_that_cannot_be_asked() -> None:
    with raises(ValueError, "ORT_SEQUENTIAL | ORT_PARALLEL"):
        is_active(session(parallel=True))
    sizes = graphs.identity(1, ["batch", 3, "height", "width"])
    with raises(ValueError, "'x' | height | fixed image size"):
        is_active(session(sizes))


def test_the_first_sessions_may_be_created_at_the_same_time(tmp_path: Path) -> None:
    """ONNX Runtime (1.32) fails one of them in every fifth process if they add the operator's domain to its list, which has no lock."""
    compiler = find_compiler()
    assert compiler is not None
    program, graph = tmp_path / "concurrent_sessions", tmp_path / "graph.onnx"
    source = Path(__file__).with_name("concurrent_sessions.cc")
    subprocess.run([*compiler.command, "-std=c++17", f"-I{NATIVE}", str(source), "-o", str(program), "-ldl", "-pthread"], check=True)
    onnx.save(operators.masking(), graph)
    for _ in range(20):
        done = subprocess.run(
            [program, onnxruntime_library(), library_path(), graph], stdout=subprocess.PIPE, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, "")
