"""Requests that are joined into one run, run separately, or not run at all; and their statistics.

A recording proxy of ONNX Runtime shows what was run; the answers are those of the real library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.utils.shared_memory as shm
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.support import backend_graphs as graphs
from tests.support.backend_calls import ANSWER_DEADLINE_S, Answer, good, infer_together, runs, wait_until
from tests.support.backend_triton import Triton, arrays, infer_inputs, infer_outputs, records
from tests.support.facts import raises


def infer_in_order(triton: Triton, name: str, requests: list[dict[str, npt.NDArray[Any]]]) -> list[Answer]:
    """As `infer_together`, but queued by the server in this order: separate calls may overtake each other, those of a stream do not."""
    done: Queue[Answer] = Queue()
    triton.client.start_stream(lambda result, error: done.put(error if result is None else arrays(result)))
    try:
        for inputs in requests:
            triton.client.async_stream_infer(name, infer_inputs(inputs), outputs=infer_outputs(None))
        return [done.get(timeout=ANSWER_DEADLINE_S) for _ in requests]
    finally:
        triton.client.stop_stream()


def test_eight_requests_are_one_run(recorded: Triton, record_file: Path) -> None:
    name = recorded.load({**graphs.AFFINE_CONFIG, **graphs.JOIN_EIGHT}, graphs.affine())
    x = [np.full((1, 4), i, np.float32) for i in range(8)]
    for i, answer in enumerate(infer_together(recorded, name, [{"x": each} for each in x])):
        np.testing.assert_array_equal(good(answer)["y"], 2 * x[i] + 1)
        np.testing.assert_array_equal(good(answer)["total"], [[4.0 * i]])
    (run,) = runs(record_file, name)
    assert run["inputs"][0]["dims"] == [8, 4]
    assert recorded.statistics(name) == {"inference_count": 8, "execution_count": 1, "success": 8, "fail": 0}
    assert recorded.batches(name) == {8: 1}


@pytest.mark.parametrize(
    ("parameters", "runs_of"),
    [
        ({}, [16, 20, 12, 12]),  # 16 by default
        ({"max_joined_rows": "24"}, [22, 20, 18]),
        ({"max_joined_rows": "64"}, [60]),
        ({"max_joined_rows": "1"}, [6, 6, 20, 4, 6, 6, 6, 6]),
    ],
)
def test_a_joint_run_has_no_more_rows_than_configured_and_a_larger_request_its_own(
    recorded: Triton, record_file: Path, parameters: dict[str, str], runs_of: list[int]
) -> None:
    config = {
        **graphs.AFFINE_CONFIG,
        **graphs.parameters(**parameters),
        "dynamic_batching": {"preferred_batch_size": [60], "max_queue_delay_microseconds": 2_000_000},
        "max_batch_size": 64,
    }
    name = recorded.load(config, graphs.affine())
    x = [np.full((rows, 4), i, np.float32) for i, rows in enumerate((6, 6, 20, 4, 6, 6, 6, 6))]
    for i, answer in enumerate(infer_in_order(recorded, name, [{"x": each} for each in x])):
        np.testing.assert_array_equal(good(answer)["y"], 2 * x[i] + 1)
    assert [run["inputs"][0]["dims"][0] for run in runs(record_file, name)] == runs_of
    assert recorded.statistics(name) == {"inference_count": 60, "execution_count": len(runs_of), "success": 8, "fail": 0}


def test_each_of_a_joint_run_gets_the_outputs_that_it_asked_for(recorded: Triton, record_file: Path) -> None:
    name = recorded.load({**graphs.AFFINE_CONFIG, **graphs.JOIN_EIGHT}, graphs.affine())
    wanted = [["y"], ["total"], ["y", "total"], ["total", "y"]] * 2
    answers = infer_together(recorded, name, [{"x": np.full((1, 4), i, np.float32)} for i in range(8)], wanted)
    for i, answer in enumerate(answers):
        assert sorted(good(answer)) == sorted(wanted[i])
        if "total" in wanted[i]:
            np.testing.assert_array_equal(good(answer)["total"], [[4.0 * i]])
    assert [[output["name"] for output in run["outputs"]] for run in runs(record_file, name)] == [["y", "total"]]


def test_one_output_is_asked_of_the_graph_where_one_is_wanted(recorded: Triton, record_file: Path) -> None:
    name = recorded.load(graphs.AFFINE_CONFIG, graphs.affine())
    recorded.infer(name, {"x": np.zeros((1, 4), np.float32)}, ["total"])
    assert [[output["name"] for output in run["outputs"]] for run in runs(record_file, name)] == [["total"]]


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 3), min_size=2, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_mixed_sizes_get_their_own_rows(triton: Triton, joining: str, sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = [generator.normal(size=(size, 4)).astype(np.float32) for size in sizes]
    for i, answer in enumerate(infer_together(triton, joining, [{"x": each} for each in x])):
        np.testing.assert_array_equal(good(answer)["y"], 2 * x[i] + 1)
        np.testing.assert_allclose(good(answer)["total"], x[i].sum(1, keepdims=True), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def joining(triton: Triton) -> str:
    batching = {"dynamic_batching": {"max_queue_delay_microseconds": 3000}}
    return triton.load({**graphs.AFFINE_CONFIG, **batching}, graphs.affine())


def test_only_the_bad_request_of_eight_fails(recorded: Triton, record_file: Path) -> None:
    name = recorded.load({**graphs.GATHER_CONFIG, **graphs.JOIN_EIGHT}, graphs.gather())
    answers = infer_together(recorded, name, [{"index": np.array([[999 if i == 3 else i]])} for i in range(8)])
    for i, answer in enumerate(answers):
        if i == 3:
            assert isinstance(answer, InferenceServerException)
            assert name in str(answer.message())
            assert "out of data bounds" in str(answer.message())
        else:
            np.testing.assert_array_equal(good(answer)["row"], graphs.gather_table()[[[i]]])
    sizes = [run["inputs"][0]["dims"][0] for run in runs(record_file, name)]
    assert sizes == [8, 1, 1, 1, 1, 1, 1, 1, 1]
    assert recorded.statistics(name) == {"inference_count": 7, "execution_count": 7, "success": 7, "fail": 1}
    # The next batch is joined as ever.
    more = infer_together(recorded, name, [{"index": np.array([[i]])} for i in range(8)])
    assert all(isinstance(answer, dict) for answer in more)
    assert recorded.statistics(name) == {"inference_count": 15, "execution_count": 8, "success": 15, "fail": 1}
    assert recorded.batches(name) == {1: 7, 8: 1}


def test_requests_that_fail_cannot_fill_the_log(triton: Triton) -> None:
    name = triton.load({**graphs.GATHER_CONFIG, **graphs.JOIN_EIGHT}, graphs.gather())
    batches = 20
    for _ in range(batches):
        infer_together(triton, name, [{"index": np.array([[999 if i == 3 else i]])} for i in range(8)])
    log = triton.log()
    assert 1 <= log.count(f"{name}: a joint run failed") < batches
    assert 1 <= log.count(f"onnxruntime, {name}:") < batches
    assert triton.statistics(name)["fail"] == batches


def test_a_failed_request_is_counted_and_the_next_is_right(triton: Triton) -> None:
    name = triton.load(graphs.GATHER_CONFIG, graphs.gather())
    for index in (1, -500, 2, 10, 9):  # bound and unbound runs, failing and not
        if -10 <= index < 10:
            np.testing.assert_array_equal(triton.infer(name, {"index": np.array([[index]])})["row"], graphs.gather_table()[[[index]]])
        else:
            with pytest.raises(InferenceServerException, match="out of data bounds"):
                triton.infer(name, {"index": np.array([[index]])})
    assert triton.statistics(name) == {"inference_count": 3, "execution_count": 3, "success": 3, "fail": 2}


def test_cancelled_requests_are_not_run(recorded: Triton, record_file: Path) -> None:
    name = recorded.load(graphs.LOOP_CONFIG, graphs.loop())
    done: Queue[InferenceServerException | None] = Queue()
    slow, small = np.array([[1_000_000]]), np.array([[1]])
    recorded.client.async_infer(name, infer_inputs({"rounds": slow}), lambda result, error: done.put(error))
    wait_until(lambda: len(runs(record_file, name)) == 1, "the slow request runs")
    calls = [recorded.client.async_infer(name, infer_inputs({"rounds": small}), lambda result, error: done.put(error)) for _ in range(3)]
    wait_until(lambda: len(re.findall(rf"prepared: .* model: {name},", recorded.log())) == 4, "the small requests are in the queue")
    for call in calls:
        call.cancel()
    errors = [done.get(timeout=ANSWER_DEADLINE_S) for _ in range(4)]
    assert [error for error in errors if error is None] == [None], "only the slow one is answered"
    # A last one, behind them all: after its answer they have been through the backend.
    recorded.infer(name, {"rounds": small})
    assert [run["inputs"][0]["dims"] for run in runs(record_file, name)] == [[1, 1], [1, 1]]
    assert recorded.log().count(f"{name}: a cancelled request") == 3
    counted = recorded.statistics(name)
    assert (counted["inference_count"], counted["execution_count"], counted["success"]) == (2, 2, 2)


def test_several_instances_share_a_session(recorded: Triton, record_file: Path) -> None:
    name = recorded.load({**graphs.AFFINE_CONFIG, "instance_group": [{"count": 3, "kind": "KIND_CPU"}]}, graphs.affine())
    assert sum(f"/{name}/" in record.get("session", "") for record in records(record_file)) == 1
    for answer in infer_together(recorded, name, [{"x": np.ones((2, 4), np.float32)}] * 30):
        np.testing.assert_array_equal(good(answer)["y"], np.full((2, 4), 3.0))


def unregistered(triton: Triton, region: str) -> bool:
    try:
        triton.client.unregister_system_shared_memory(region)
    except InferenceServerException as error:
        # Triton lets go of a region a moment after the answer.
        if "currently in use" in str(error.message()):
            return False
        raise
    return True


@contextmanager
def shared_memory(triton: Triton, size: int) -> Iterator[tuple[Any, str, str]]:
    name = f"defensemble_test_{triton.pid}"
    handle = shm.create_shared_memory_region(name, f"/{name}", size)
    try:
        triton.client.register_system_shared_memory(name, f"/{name}", size)
        yield handle, name, f"/dev/shm/{name}"
        wait_until(lambda: unregistered(triton, name), "the region is free")
    finally:
        shm.destroy_shared_memory_region(handle)


def test_one_request_is_not_copied(recorded: Triton, record_file: Path) -> None:
    """Input and outputs in a region of shared memory: the graph reads and writes them there."""
    name = recorded.load(graphs.AFFINE_CONFIG, graphs.affine())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with shared_memory(recorded, 4096) as (handle, region, path):
        shm.set_shared_memory_region(handle, [x])
        tensor = InferInput("x", [2, 4], "FP32")
        tensor.set_shared_memory(region, x.nbytes)
        wanted = InferRequestedOutput("y")
        wanted.set_shared_memory(region, x.nbytes, offset=1024)
        for _ in range(3):
            recorded.client.infer(name, [tensor], outputs=[wanted])
            np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=1024), 2 * x + 1)
        # At an odd address neither can be used in place; the answer is the same.
        shm.set_shared_memory_region(handle, [x], offset=2049)
        tensor.set_shared_memory(region, x.nbytes, offset=2049)
        wanted.set_shared_memory(region, x.nbytes, offset=3001)
        recorded.client.infer(name, [tensor], outputs=[wanted])
        answer = bytes(shm.get_contents_as_numpy(handle, np.uint8, [x.nbytes], offset=3001))
        np.testing.assert_array_equal(np.frombuffer(answer, np.float32).reshape(2, 4), 2 * x + 1)
    first, *bound, odd = runs(record_file, name)
    assert first["inputs"][0]["mapping"] == path
    assert first["outputs"] == [{"name": "y", "given": False}], "the first run has to confirm the shapes"
    for run in bound:
        assert run["inputs"][0]["mapping"] == path
        assert run["outputs"] == [{"name": "y", "dims": [2, 4], "mapping": path, "given": True}]
    assert odd["inputs"][0]["mapping"] != path
    assert odd["outputs"] == [{"name": "y", "given": False}]


def test_joined_requests_are_not_bound(recorded: Triton, record_file: Path) -> None:
    name = recorded.load({**graphs.AFFINE_CONFIG, **graphs.JOIN_EIGHT}, graphs.affine())
    for _ in range(2):
        infer_together(recorded, name, [{"x": np.ones((1, 4), np.float32)}] * 8)
    joint = runs(record_file, name)
    assert [run["inputs"][0]["dims"] for run in joint] == [[8, 4], [8, 4]]
    assert not any(output["given"] for run in joint for output in run["outputs"])


def test_a_wrong_batch_in_the_output_is_an_error(triton: Triton) -> None:
    config = graphs.config([("x", TensorProto.FLOAT, [2])], [("y", TensorProto.FLOAT, [2])])
    model = graphs.model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        [graphs.value("x", TensorProto.FLOAT, ["batch", 2])],
        [graphs.value("y", TensorProto.FLOAT, ["twice", 2])],
    )
    name = triton.load(config, model)
    for _ in range(2):
        with raises(InferenceServerException, "'y' | [6,2] | 3"):
            triton.infer(name, {"x": np.zeros((3, 2), np.float32)})
    assert triton.alive()


def test_tensors_without_elements(triton: Triton) -> None:
    config = graphs.config([("x", TensorProto.FLOAT, [-1])], [("y", TensorProto.FLOAT, [-1])])
    name = triton.load(config, graphs.identity(TensorProto.FLOAT, ["batch", "n"]))
    for shape in ((2, 0), (1, 0), (2, 3), (3, 0)):
        np.testing.assert_array_equal(triton.infer(name, {"x": np.ones(shape, np.float32)})["y"], np.ones(shape))
