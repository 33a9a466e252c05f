"""How the backend ends a server: requests in flight are answered, and those that come later get an answer or UNAVAILABLE."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import grpc  # type: ignore[import-untyped]
import pytest
import urllib3
from tritonclient.grpc import service_pb2, service_pb2_grpc

from defensemble_export import fuse_repository
from defensemble_server import Server, serve
from tests.support import tiny
from tests.support.calls import FREE, processor_ticks, write_slow_model

pytestmark = pytest.mark.slow

CALLERS = 6  # of each kind


def drain(server: Server) -> None:
    os.kill(server.triton_pid, signal.SIGUSR1)


def run_slow(server: Server, rounds: int) -> int:
    body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [rounds]}]}
    return urllib3.request("POST", f"{server.http_url}/v2/models/slow/infer", json=body, retries=False, timeout=60.0).status


def wait_until_it_runs(server: Server, ticks_before: int) -> None:
    deadline = time.monotonic() + 30
    while processor_ticks(server.triton_pid) < ticks_before + 5:  # an idle server takes none
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_running_and_queued_requests_are_answered(repository: Path) -> None:
    write_slow_model(repository)
    with serve(repository, replace(FREE, drain_s=60)) as server, ThreadPoolExecutor(4) as callers:
        before = processor_ticks(server.triton_pid)
        calls = [callers.submit(run_slow, server, 300_000) for _ in range(4)]  # one instance: three of them wait
        wait_until_it_runs(server, before)
        drain(server)
        assert [call.result() for call in calls] == [200] * 4
        assert server.wait() == 0


def test_after_the_limit_a_running_request_is_answered_and_a_later_one_refused(repository: Path) -> None:
    write_slow_model(repository)
    with serve(repository, replace(FREE, drain_s=0)) as server, ThreadPoolExecutor(2) as callers:
        before = processor_ticks(server.triton_pid)
        running = callers.submit(run_slow, server, 150_000)
        wait_until_it_runs(server, before)
        drain(server)
        time.sleep(0.05)  # the signal is handled within 0.3 ms
        later = callers.submit(run_slow, server, 1)
        assert (running.result(), later.result()) == (200, 503)
        assert server.wait() == 0


def test_a_request_that_never_ends_does_not_keep_the_server(repository: Path) -> None:
    write_slow_model(repository)
    with serve(repository, replace(FREE, drain_s=0)) as server, ThreadPoolExecutor(1) as callers:
        before = processor_ticks(server.triton_pid)
        running = callers.submit(run_slow, server, 600_000_000)
        wait_until_it_runs(server, before)
        drain(server)
        assert server.wait() == 0
        assert isinstance(running.exception(), urllib3.exceptions.HTTPError)


def call_grpc(server: Server, model: str) -> Callable[[], str]:
    images = tiny.images(4)
    channel = grpc.insecure_channel(server.grpc_url.removeprefix("grpc://"), options=[("grpc.use_local_subchannel_pool", 1)])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="FP32", shape=images.shape)

    def call() -> str:
        try:
            stub.ModelInfer(request, timeout=30)
            return "answered"
        except grpc.RpcError as error:
            return str(error.code().name)

    return call


def call_http(server: Server, model: str) -> Callable[[], str]:
    images = tiny.images(4)
    pool = urllib3.HTTPConnectionPool("127.0.0.1", server.state.http_port, maxsize=1, retries=False)
    body = {"inputs": [{"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}]}

    def call() -> str:
        try:
            status = pool.request("POST", f"/v2/models/{model}/infer", json=body, timeout=30.0).status
            return "answered" if status == 200 else str(status)
        except urllib3.exceptions.HTTPError:
            return "disconnected"

    return call


@pytest.mark.parametrize("protocols", [(call_grpc,), (call_http,), (call_grpc, call_http)], ids=["grpc", "http", "both"])
@pytest.mark.parametrize("models", [("ensemble", "alpha"), ("fused",)], ids=" ".join)
@pytest.mark.parametrize("drain_s", [0, 1])
def test_under_load_every_call_is_answered_or_unavailable(
    repository: Path, protocols: tuple[Callable[[Server, str], Callable[[], str]], ...], drain_s: int, models: Sequence[str]
) -> None:
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(2))
    got: Counter[str] = Counter()
    ended = Event()
    with serve(repository, replace(FREE, drain_s=drain_s)) as server, ThreadPoolExecutor(4 * CALLERS) as callers:

        def repeat(call: Callable[[], str]) -> None:
            while not ended.is_set():
                got[call()] += 1

        loops: list[Future[None]] = [
            callers.submit(repeat, protocol(server, model)) for protocol in protocols for model in models for _ in range(CALLERS)
        ]
        try:
            deadline = time.monotonic() + 30
            while got["answered"] < 200:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            server.stop()
        finally:
            ended.set()
        for loop in loops:
            loop.result()
    assert set(got) <= {"answered", "UNAVAILABLE", "503", "disconnected"}, got
    assert protocols != (call_http,) or got["503"] > 0, "later requests are refused"
    assert got["disconnected"] + got["UNAVAILABLE"] + got["503"] > 0
