"""`defensemble.load` and NVIDIA's perf_analyzer measure the same on the same server.

Both call it at the same time, so their calls wait in one queue: each measures the latency under the load of both. What this compares is how
the two measure, not what the server does under one of them; other processes of the machine slow down both.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble.load import LoadSettings, Step, run_load
from defensemble_export import planned_files, write_files
from defensemble_server import ServeOptions, Server, serve
from tests.support.perf_analyzer import Measured, measure
from tests.support.tiny import CLASSES, SHAPE, member, weights

pytestmark = pytest.mark.slow
ROUNDS = 3
SECONDS = 6.0
TOLERANCE = 0.15
CALLERS = 2
_SIZE, _LAYERS = 1024, 60


def heavy_onnx(seed: int) -> bytes:
    """A linear classifier between permutations of a thousand values, which take about 10 ms: much longer than either client."""
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "first"], ["hidden0"])]
    nodes += [helper.make_node("MatMul", [f"hidden{n}", "permutation"], [f"hidden{n + 1}"]) for n in range(_LAYERS)]
    nodes.append(helper.make_node("MatMul", [f"hidden{_LAYERS}", "last"], ["logits"]))
    rng = np.random.default_rng(seed)
    values = {
        "first": weights(seed, SHAPE, _SIZE),
        "permutation": np.eye(_SIZE, dtype=np.float32)[rng.permutation(_SIZE)],
        "last": rng.normal(size=(_SIZE, len(CLASSES)), scale=_SIZE**-0.5).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    content: bytes = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return content


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("heavy") / "repository"
    members = [member(name, seed, onnx=heavy_onnx(seed)) for name, seed in (("alpha", 1), ("beta", 2))]
    write_files(folder, planned_files(folder, members, ensemble="ensemble", max_batch_size=8))
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        yield server


def our_step(url: str, settings: LoadSettings) -> Step:
    (step,) = run_load(url, settings).targets[0].steps
    assert step.answered == step.sent
    return step


def both(url: str, folder: Path, settings: LoadSettings, *load: str) -> tuple[Step, Measured]:
    """Both at the same time, with the same load each."""
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(measure, "ensemble", url, folder, *load, window_ms=int(1000 * SECONDS / 3))
        return our_step(url, settings), theirs.result()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_closed_loop_measures_what_perf_analyzer_measures(heavy: Server, tmp_path: Path, protocol: str) -> None:
    url = heavy.http_url if protocol == "http" else heavy.grpc_url
    settings = LoadSettings(callers=(CALLERS,), step_s=SECONDS, warm_up_s=0.5, processes=1)
    rounds = [both(url, tmp_path / str(n), settings, "--concurrency-range", str(CALLERS)) for n in range(ROUNDS)]
    rates = [ours.requests_per_s / theirs.requests_per_s for ours, theirs in rounds]
    medians = [ours.latency_ms.p50 / theirs.p50_ms for ours, theirs in rounds if ours.latency_ms is not None]
    assert median(rates) == pytest.approx(1, abs=TOLERANCE), rates
    assert len(medians) == ROUNDS
    assert median(medians) == pytest.approx(1, abs=TOLERANCE), medians


def test_an_open_loop_measures_what_perf_analyzer_measures(heavy: Server, tmp_path: Path) -> None:
    single = our_step(heavy.http_url, LoadSettings(callers=(1,), step_s=1.0, warm_up_s=0.3))
    rate = max(round(single.requests_per_s / 4), 2)
    settings = LoadSettings(rates=(rate,), arrivals="constant", step_s=SECONDS, warm_up_s=0.5, processes=1)
    medians = []
    for number in range(ROUNDS):
        ours, theirs = both(heavy.http_url, tmp_path / str(number), settings, "--request-rate-range", str(rate))
        assert ours.sent == pytest.approx(rate * SECONDS, abs=1)
        if ours.latency_ms is not None:  # else other processes kept ours from its schedule
            medians.append(ours.latency_ms.p50 / theirs.p50_ms)
    assert len(medians) > ROUNDS / 2
    assert median(medians) == pytest.approx(1, abs=TOLERANCE), medians


def test_our_counts_are_those_of_the_server(heavy: Server) -> None:
    for url in (heavy.http_url, heavy.grpc_url):
        step = our_step(url, LoadSettings(callers=(CALLERS,), batch_sizes={1: 1, 4: 1}, step_s=1.0, warm_up_s=0.2))
        assert step.server_counters is not None
        for model in ("ensemble", "alpha", "beta"):
            counted = step.server_counters.models[model]
            assert (counted.requests, counted.images, counted.failures) == (step.sent, step.images, 0)
