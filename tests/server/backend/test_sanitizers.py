"""The backend under gcc's sanitizers of addresses, undefined behaviour and threads, in a real tritonserver: bad files, random requests."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from defensemble_ops.library import NATIVE
from defensemble_server.runtime.backend_build import LIBRARY_NAME, Compiler, onnxruntime_library
from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton, arrays, infer_inputs, infer_outputs

pytestmark = pytest.mark.slow

MUTATIONS = 300
REQUESTS = 600
ANSWER_DEADLINE_S = 60.0
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-g", "-O1"]


@dataclass(frozen=True)
class Sanitizer:
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    environment: dict[str, str]


ADDRESS = Sanitizer(
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    ("libasan.so", "libubsan.so"),
    {
        "ASAN_OPTIONS": "handle_segv=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
)
# Triton and ONNX Runtime are not instrumented: their atomics are invisible, and without the option their own memory is reported (56 times
# in 300 requests). With it only races in our code are, while the mutexes of all code still count as order.
THREAD = Sanitizer(("-fsanitize=thread",), ("libtsan.so",), {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1"})


def runtime_libraries(sanitizer: Sanitizer, compiler: Compiler) -> str:
    libraries = []
    for name in sanitizer.libraries:
        answer = subprocess.run([*compiler.command, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(answer.stdout.strip())
        if not path.is_absolute() or not path.exists():
            pytest.skip(f"{compiler} has no {name}: gcc's sanitizer runtimes are needed")
        libraries.append(str(path.resolve()))
    return ":".join(libraries)


def build(folder: Path, sanitizer: Sanitizer, source: Path, compiler: Compiler) -> Path:
    """Build the backend with a sanitizer; return the directory for `--backend-directory`."""
    library = folder / "onnxruntime" / LIBRARY_NAME
    library.parent.mkdir()
    command = [
        *compiler.command,
        *FLAGS,
        *sanitizer.flags,
        f"-I{NATIVE}",
        *sorted(map(str, source.glob("*.cc"))),
        "-o",
        str(library),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return folder


def server(folder: Path, sanitizer: Sanitizer, compiler: Compiler, backend: Path, **more: str) -> Triton:
    environment = {"LD_PRELOAD": runtime_libraries(sanitizer, compiler), **sanitizer.environment}
    return Triton(folder / "server", backend, {"library": str(onnxruntime_library()), **more}, environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, source: Path, compiler: Compiler) -> Callable[[Sanitizer], Path]:
    backends: dict[str, Path] = {}

    def backend(sanitizer: Sanitizer) -> Path:
        runtime_libraries(sanitizer, compiler)
        if sanitizer.flags[0] not in backends:
            backends[sanitizer.flags[0]] = build(tmp_path_factory.mktemp("backend"), sanitizer, source, compiler)
        return backends[sanitizer.flags[0]]

    return backend


@pytest.fixture(scope="module", params=[ADDRESS, THREAD], ids=["address", "thread"])
def sanitized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, built: Callable[[Sanitizer], Path], compiler: Compiler
) -> Iterator[Triton]:
    sanitizer: Sanitizer = request.param
    with server(tmp_path_factory.mktemp("sanitized"), sanitizer, compiler, built(sanitizer)) as running:
        maps = Path(f"/proc/{running.pid}/maps").read_text()
        assert all(library in maps for library in sanitizer.libraries)
        yield running
    assert_clean_log(running)


only_address = pytest.mark.parametrize("sanitized", [ADDRESS], ids=["address"], indirect=True)


def assert_clean(server: Triton) -> None:
    assert server.alive(), server.log()[-6000:]
    assert_clean_log(server)


def assert_clean_log(server: Triton) -> None:
    log = server.log()
    assert "Sanitizer" not in log, log[-6000:]
    assert "runtime error:" not in log, log[-6000:]


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    kind = generator.integers(4)
    if kind == 0:
        return bytes(changed[: generator.integers(len(changed))])
    if kind == 1:
        at, size = generator.integers(len(changed)), generator.integers(1, 20)
        return bytes(changed[:at] + generator.bytes(int(size)) + changed[at:])
    for _ in range(generator.integers(1, 6)):
        changed[generator.integers(len(changed))] = generator.integers(256)
    return bytes(changed)


@only_address
def test_mutated_files(sanitized: Triton) -> None:
    generator = np.random.default_rng(20)
    originals: list[tuple[dict[str, Any], onnx.ModelProto, dict[str, Any]]] = [
        (graphs.AFFINE_CONFIG, graphs.affine(), {"x": np.ones((2, 4), np.float32)}),
        (graphs.GATHER_CONFIG, graphs.gather(), {"index": np.array([[3], [1]])}),
        (graphs.LOOP_CONFIG, graphs.loop(), {"rounds": np.array([[3], [1]])}),
    ]
    loaded = 0
    for i in range(MUTATIONS):
        config, model, inputs = originals[i % len(originals)]
        name = sanitized.write(config, mutated(model.SerializeToString(), generator))
        try:
            sanitized.client.load_model(name)
        except InferenceServerException:
            continue
        loaded += 1
        for _ in range(2):
            try:
                sanitized.infer(name, inputs)
            except InferenceServerException:
                assert sanitized.alive(), sanitized.log()[-6000:]
        sanitized.client.unload_model(name)
    assert 0 < loaded < MUTATIONS
    assert_clean(sanitized)


def load(running: Triton, name: str, requests: int, during: Callable[[], None] = lambda: None) -> list[InferenceServerException]:
    """Send many requests at once, then call `during`; return the errors among the answers."""
    done: Queue[InferenceServerException | None] = Queue()
    inputs = infer_inputs({"x": np.ones((1, 4), np.float32)})
    for _ in range(requests):
        running.client.async_infer(name, inputs, lambda result, error: done.put(error))
    during()
    answers = [done.get(timeout=ANSWER_DEADLINE_S) for _ in range(requests)]
    return [error for error in answers if error is not None]


SEVERAL_INSTANCES = {**graphs.AFFINE_CONFIG, "instance_group": [{"count": 3, "kind": "KIND_CPU"}]}


def test_models_and_instances_that_go_while_their_requests_run(sanitized: Triton) -> None:
    for _ in range(5):
        name = sanitized.load(SEVERAL_INSTANCES, graphs.affine())
        for error in load(sanitized, name, 100, during=functools.partial(sanitized.client.unload_model, name)):
            assert error.status() in ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE"), error
    config = sanitized.repository / (name := sanitized.load(graphs.AFFINE_CONFIG, graphs.affine())) / "config.pbtxt"
    text = config.read_text()
    for count in (3, 1, 2, 1):
        config.write_text(f"{text}\ninstance_group {{ count: {count} kind: KIND_CPU }}\n")
        assert load(sanitized, name, 200, during=functools.partial(sanitized.client.load_model, name)) == []
    assert_clean(sanitized)


def test_draining(tmp_path: Path, built: Callable[[Sanitizer], Path], compiler: Compiler) -> None:
    running = server(tmp_path, THREAD, compiler, built(THREAD), drain_seconds="2")
    try:
        name = running.__enter__().load(SEVERAL_INSTANCES, graphs.affine())
        assert load(running, name, 300, during=lambda: os.kill(running.pid, signal.SIGUSR1)) == []
        assert running.wait() == 0
    finally:
        running.stop()
    assert_clean_log(running)


def test_a_race_in_the_backend_is_reported(tmp_path: Path, source: Path, compiler: Compiler) -> None:
    """The counter of executions without its atomic: ThreadSanitizer sees our code, although the server's is not instrumented."""
    racing = tmp_path / "source"
    shutil.copytree(source, racing)
    drain = (racing / "drain.cc").read_text()
    atomic = "std::atomic<int> running{0};"
    plain = "struct { int n; int operator++() { return ++n; } int operator--() { return --n; } int load() { return n; } } running;"
    assert atomic in drain
    (racing / "drain.cc").write_text(drain.replace(atomic, plain))
    options = {"TSAN_OPTIONS": f"{THREAD.environment['TSAN_OPTIONS']}:exitcode=0"}
    sanitizer = replace(THREAD, environment=options)
    runtime_libraries(sanitizer, compiler)
    (tmp_path / "backend").mkdir()
    with server(tmp_path, sanitizer, compiler, build(tmp_path / "backend", sanitizer, racing, compiler)) as running:
        assert load(running, running.load(SEVERAL_INSTANCES, graphs.affine()), 300) == []
    assert "WARNING: ThreadSanitizer: data race" in running.log()


def test_random_requests(sanitized: Triton) -> None:
    """Valid and invalid requests, many at a time, joined and separate: correct answers to the valid ones."""
    model = graphs.model(
        [
            helper.make_node("Gather", ["table", "index"], ["row"], axis=0),
            helper.make_node("Mul", ["x", "x"], ["square"]),
            helper.make_node("Not", ["flag"], ["no"]),
        ],
        [
            graphs.value("index", TensorProto.INT64, ["batch", 1]),
            graphs.value("x", TensorProto.FLOAT, ["batch", "n", 3]),
            graphs.value("flag", TensorProto.BOOL, ["batch", 1]),
        ],
        [
            graphs.value("row", TensorProto.FLOAT, ["batch", 1, 3]),
            graphs.value("square", TensorProto.FLOAT, ["batch", "n", 3]),
            graphs.value("no", TensorProto.BOOL, ["batch", 1]),
        ],
        [graphs.tensor("table", graphs.gather_table())],
    )
    config = graphs.config(
        [("index", TensorProto.INT64, [1]), ("x", TensorProto.FLOAT, [-1, 3]), ("flag", TensorProto.BOOL, [1])],
        [("row", TensorProto.FLOAT, [1, 3]), ("square", TensorProto.FLOAT, [-1, 3]), ("no", TensorProto.BOOL, [1])],
        dynamic_batching={"max_queue_delay_microseconds": 2000},
        instance_group=[{"count": 2, "kind": "KIND_CPU"}],
    )
    name = sanitized.load(config, model)
    generator = np.random.default_rng(21)
    done: Queue[tuple[int, Any]] = Queue()
    expected: list[dict[str, Any] | None] = []
    cancelled = set()
    for i in range(REQUESTS):
        rows, length = generator.integers(1, 5), generator.integers(0, 4)
        index = generator.integers(0, 10, (rows, 1))
        x = generator.normal(size=(rows, length, 3)).astype(np.float32)
        flag = generator.integers(0, 2, (rows, 1)).astype(bool)
        wanted = list(generator.choice(["row", "square", "no"], generator.integers(1, 4), replace=False))
        answer: dict[str, Any] | None = {"row": graphs.gather_table()[index], "square": x * x, "no": ~flag}
        if i % 7 == 0:
            index[generator.integers(rows), 0] = generator.choice([10, -11, 2**40])
            # Even if only `row` is requested, ONNX Runtime runs the whole graph, including the Gather.
            answer = None
        expected.append(None if answer is None else {key: answer[key] for key in wanted})
        call = sanitized.client.async_infer(
            name,
            infer_inputs({"index": index, "x": x, "flag": flag}),
            lambda result, error, i=i: done.put((i, error if result is None else arrays(result))),
            outputs=infer_outputs(wanted),
        )
        if i % 50 == 49:
            call.cancel()
            cancelled.add(i)
    for _ in range(REQUESTS):
        i, answer = done.get(timeout=ANSWER_DEADLINE_S)
        if isinstance(answer, InferenceServerException) and i in cancelled:
            assert answer.status() == "StatusCode.CANCELLED" or expected[i] is None, answer
        elif (right := expected[i]) is None:
            assert isinstance(answer, InferenceServerException), answer
            assert "out of data bounds" in str(answer)
        else:
            assert isinstance(answer, dict), answer
            assert answer.keys() == right.keys()
            for key, array in right.items():
                np.testing.assert_array_equal(answer[key], array)
    assert_clean(sanitized)
