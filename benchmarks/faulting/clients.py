"""Hostile clients: slow and half-open ones, and floods of connections, requests and streams."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common import http2
from benchmarks.common.servers import ENSEMBLE
from benchmarks.faulting.fault import ACCEPTED, REFUSED, UNANSWERED, UNREACHED, Injection
from benchmarks.faulting.raw import connect, http_request, infer_path, json_request, outcome_of, valid_document
from benchmarks.faulting.stage import Stage

_OPENED = "opened"
_TRICKLE_S = 0.2
_FLOOD_THREADS = 8
_PIPELINED = 32
_STREAMS = 1000
_HELD_CONNECTIONS = 3000


def hold_slow_clients(stage: Stage) -> Injection:
    """Hold slow and half-open connections to every port: a third is silent, a third sends byte by byte, a third does not read."""
    injection = Injection()
    ports = list(stage.ports.items())
    count = stage.effort.slow_clients
    with contextlib.ExitStack() as stack:
        trickling: list[tuple[socket.socket, bytes]] = []
        for number in range(count):
            name, port = ports[number % len(ports)]
            connection = _open(port, stack, injection)
            if connection is None:
                continue
            request = http2.PREFACE if name == "grpc" else http_request(infer_path(ENSEMBLE), b"x" * 1000)
            how = number // len(ports) % 3
            if how == 1:
                trickling.append((connection, request))
            elif how == 2:
                with contextlib.suppress(OSError):
                    connection.sendall(request)
        ends, sent = time.monotonic() + stage.effort.flood_s, 0
        while time.monotonic() < ends:
            for connection, request in trickling:
                with contextlib.suppress(OSError):  # the server has closed it
                    connection.send(request[sent % len(request) :][:1])
            sent += 1
            time.sleep(_TRICKLE_S)
    return injection.end()


def flood_connections(stage: Stage) -> Injection:
    """Open connections to every port and hold them, as many as the server takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * _HELD_CONNECTIONS)), hard))
    injection = Injection()
    try:
        ends = time.monotonic() + stage.effort.flood_s
        with contextlib.ExitStack() as stack:
            ports = list(stage.ports.values())
            for number in range(_HELD_CONNECTIONS):
                if time.monotonic() > ends or _open(ports[number % len(ports)], stack, injection) is None:
                    break
            time.sleep(max(0.0, ends - time.monotonic()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return injection.end()


def flood_requests(stage: Stage) -> Injection:
    """Send inferences over HTTP as fast as possible, 32 at once on each of eight connections."""
    port = stage.ports["http"]
    request = json_request(ENSEMBLE, valid_document(stage.pool[:1])).replace(b"Connection: close\r\n", b"")

    def flood(ends: float, outcomes: Counter[str]) -> None:
        while time.monotonic() < ends:
            try:
                with connect(port, timeout_s=5.0) as connection:
                    _pipeline(connection, request, ends, outcomes)
            except OSError:
                outcomes[UNREACHED] += 1
                time.sleep(0.02)

    return _flood(stage, flood)


def flood_streams(stage: Stage) -> Injection:
    """Keep 1,000 calls on one HTTP/2 connection, until each is answered."""
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, raw_input_contents=[stage.pool[:1].tobytes()])
    request.inputs.add(name="images", datatype="FP32", shape=stage.pool[:1].shape)
    injection = Injection()
    ends = time.monotonic() + stage.effort.flood_s
    with grpc.insecure_channel(f"127.0.0.1:{stage.ports['grpc']}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while time.monotonic() < ends:
            calls = [stub.ModelInfer.future(request, timeout=30.0) for _ in range(_STREAMS)]
            for call in calls:
                error = call.exception()
                injection.requests["answered" if error is None else f"failed ({error.code().name})"] += 1
    return injection.end()


def close_channels(stage: Stage) -> Injection:
    """Close gRPC channels during calls, which can crash core 2.51."""
    injection = Injection()
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, raw_input_contents=[stage.pool[:4].tobytes()])
    request.inputs.add(name="images", datatype="FP32", shape=stage.pool[:4].shape)
    for number in range(stage.effort.closes):
        with grpc.insecure_channel(f"127.0.0.1:{stage.ports['grpc']}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5.0)
            except grpc.RpcError:
                injection.add(UNREACHED)
                continue
            for _ in range(4):
                stub.ModelInfer.future(request)
            time.sleep(0.0005 * (number % 8))
        injection.requests["closed in mid-call"] += 1
    return injection.end()


def send_huge_message(stage: Stage) -> Injection:
    """Send gRPC messages of 64 MB of zeros as images, more than a request may hold."""
    injection = Injection()
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, raw_input_contents=[bytes(64 << 20)])
    request.inputs.add(name="images", datatype="FP32", shape=stage.pool[:1].shape)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{stage.ports['grpc']}", options) as channel:
        for _ in range(3):
            error = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request, timeout=10.0).exception()
            if error is None:
                injection.add(ACCEPTED, "a gRPC message of 64 MB")
            else:
                injection.add(UNANSWERED if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else REFUSED)
    return injection.end()


def _open(port: int, stack: contextlib.ExitStack, injection: Injection) -> socket.socket | None:
    try:
        connection = stack.enter_context(connect(port))
    except OSError:
        injection.add(UNREACHED)
        return None
    injection.add(_OPENED)
    return connection


def _pipeline(connection: socket.socket, request: bytes, ends: float, outcomes: Counter[str]) -> None:
    """Send requests on one connection, many at once, and count the answers."""
    while time.monotonic() < ends:
        connection.sendall(request * _PIPELINED)
        received = b""
        answered = 0
        while answered < _PIPELINED:
            part = connection.recv(1 << 16)
            if not part:
                raise OSError("the server closed the connection")
            received += part
            answered = received.count(b"HTTP/1.1 ")
        good = received.count(b"HTTP/1.1 200")
        outcomes["answered"] += good
        outcomes[outcome_of(b"HTTP/1.1 500")] += answered - good


def _flood(stage: Stage, flood: Callable[[float, Counter[str]], None]) -> Injection:
    injection = Injection()
    ends = time.monotonic() + stage.effort.flood_s
    counters = [Counter[str]() for _ in range(_FLOOD_THREADS)]
    threads = [threading.Thread(target=flood, args=(ends, counter), name=f"flood-{number}") for number, counter in enumerate(counters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    injection.requests = sum(counters, Counter[str]())
    return injection.end()
