"""What the gRPC transports send to and read from servers of several kinds, over plain and encrypted channels."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import service_pb2

from defensemble import (
    ConnectionFailedError,
    DeadlineExceededError,
    GrpcTransport,
    InputError,
    OutputRequest,
    RequestRefusedError,
    ServerFailedError,
)
from defensemble._transport.base import BINARY_TENSORS, CLASSIFICATION, ConnectionOptions, ModelStatistics, TlsFiles
from defensemble._transport.grpc_messages import arrays_from_response
from defensemble._transport.grpc_transport import AsyncGrpcTransport
from tests.support.certificates import make_certificate
from tests.support.facts import assert_facts, raises
from tests.support.grpc_servers import NEW, OLD, observing, one_output
from tests.support.scripted import cut_off, free_port, scripted

IMAGES = {"images": np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)}
OUTPUTS = [OutputRequest("y")]
GZIP = ConnectionOptions(compression="gzip")


@contextmanager
def transport_to(url: str, options: ConnectionOptions | None = None) -> Iterator[GrpcTransport]:
    transport = GrpcTransport(url, options)
    yield transport
    transport.close()


def infer(transport: Any, **more: Any) -> Any:
    outcome = transport.infer("m", IMAGES, OUTPUTS, 10, **more)
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def test_an_inference_carries_its_id_and_headers_and_returns_the_version() -> None:
    with observing() as server, transport_to(server.url) as transport:
        assert infer(transport, request_id="id-1", headers={"traceparent": "00-ab"}).model_version == "7"
        assert server.requests[0].id == "id-1"
        assert server.headers[0]["traceparent"] == "00-ab"


def test_statistics_have_failures_images_and_times() -> None:
    def statistics(request: Any, context: Any) -> Any:
        entry = service_pb2.ModelStatistics(name="m", version="3", inference_count=21, execution_count=5, last_inference=9)
        entry.inference_stats.success.count, entry.inference_stats.success.ns = 7, 700
        entry.inference_stats.fail.count, entry.inference_stats.queue.ns = 2, 40
        durations = entry.inference_stats
        durations.compute_input.ns, durations.compute_infer.ns, durations.compute_output.ns = 1, 20, 300
        return service_pb2.ModelStatisticsResponse(model_stats=[entry])

    with observing(methods={"ModelStatistics": statistics}) as server, transport_to(server.url) as transport:
        assert transport.statistics(5) == [
            ModelStatistics("m", 3, 9, executions=5, last_ms=9, failures=2, images=21, success_ns=700, queue_ns=40, compute_ns=321)
        ]


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN"])
def test_a_server_that_refuses_bytes_gets_typed_contents(code: str) -> None:
    def typed_only(request: Any, context: Any) -> Any:
        if request.raw_input_contents:
            context.abort(grpc.StatusCode[code], "no bytes")
        return one_output(request, context)

    with observing(name="other", version="1", answer=typed_only) as server, transport_to(server.url) as transport:
        assert transport.missing_features == frozenset()
        for _ in range(2):
            assert infer(transport)["y"].shape == (2, 2)
        assert [bool(request.raw_input_contents) for request in server.requests] == [True, False, False], "it is remembered"
        assert list(server.requests[1].inputs[0].contents.fp32_contents) == list(range(32))
        assert transport.missing_features == {BINARY_TENSORS}


@pytest.mark.parametrize(("name", "before", "tried"), [("triton", False, 1), ("other", False, 2), ("other", True, 2)])
def test_a_refusal_for_another_reason_is_reported(name: str, before: bool, tried: int) -> None:
    calls: list[Any] = []

    def refusing(request: Any, context: Any) -> Any:
        calls.append(request)
        if not (before and len(calls) == 1):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "raw" if request.raw_input_contents else "typed")
        return one_output(request, context)

    with observing(name=name, answer=refusing) as server, transport_to(server.url) as transport:
        if before:  # a server that accepted bytes has another reason
            infer(transport)
        with raises(RequestRefusedError, "'raw'"):
            infer(transport)
        assert len(calls) == tried
        assert transport.missing_features == frozenset()


NAMES = {"?": "BOOL", "|u1": "UINT8", "|i1": "INT8", "|b1": "BOOL"} | {
    f"<{kind}{size}": f"{name}{8 * size}" for kind, name in (("u", "UINT"), ("i", "INT"), ("f", "FP")) for size in (2, 4, 8)
}
FIELDS = {"BOOL": "bool", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from(["?", "<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8"]),
        arrays.array_shapes(max_dims=3, max_side=4),
    )
)
def test_typed_contents_are_read(array: Any) -> None:
    datatype = NAMES[array.dtype.str]
    response = service_pb2.ModelInferResponse()
    output = response.outputs.add(name="y", datatype=datatype, shape=array.shape)
    field = FIELDS.get(datatype) or ("uint" if datatype.startswith("U") else "int")
    getattr(output.contents, f"{field}_contents").extend(array.ravel().tolist())
    (read,) = arrays_from_response(response, "call").values()
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_typed_strings_are_read_and_contents_that_do_not_fit_are_not() -> None:
    response = service_pb2.ModelInferResponse()
    output = response.outputs.add(name="y", datatype="BYTES", shape=[1, 2])
    output.contents.bytes_contents.extend([b"0.5:1:cat", b""])
    assert arrays_from_response(response, "call")["y"].tolist() == [[b"0.5:1:cat", b""]]
    output.shape[1] = 3
    with raises(ServerFailedError, "call | BYTES | [1, 3]"):
        arrays_from_response(response, "call")
    for datatype, values in (("FP16", []), ("FP32", []), ("INT8", [300])):
        output.datatype = datatype
        output.contents.int_contents[:] = values
        with raises(ServerFailedError, "call"):
            arrays_from_response(response, "call")


def test_a_classification_that_is_ignored_is_noted() -> None:
    with observing() as server, transport_to(server.url) as transport:
        transport.infer("m", IMAGES, [OutputRequest("y", class_count=2)], 5)
        assert transport.missing_features == {CLASSIFICATION}


def test_models_come_from_the_index_where_there_are_no_statistics() -> None:
    def index(request: Any, context: Any) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        for name, version, state in (("b", "v2.1", "State.READY"), ("a", "", "READY"), ("a", "2", "READY"), ("c", "", "UNAVAILABLE")):
            response.models.add(name=name, version=version, state=state)
        return response

    with observing(name="other", methods={"RepositoryIndex": index}) as server, transport_to(server.url) as transport:
        assert transport.models(5) == ["a", "b"]
        assert transport.missing_features == {"statistics"}
        with pytest.raises(RequestRefusedError):
            transport.model_config("a", 5)
        assert transport.missing_features == {"statistics", "model configuration"}
    with (
        observing(name="other") as server,
        transport_to(server.url) as transport,
        raises(RequestRefusedError, "UNIMPLEMENTED | list the models | extension"),
    ):
        transport.models(5)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")
    for name in ("server", "client"):
        make_certificate(folder, name)
    (folder / "both.pem").write_bytes((folder / "client.pem").read_bytes() + (folder / "client.key").read_bytes())
    return folder


def test_tls_and_mutual_tls(pem: Path) -> None:
    pair = [((pem / "server.key").read_bytes(), (pem / "server.pem").read_bytes())]
    mutual = grpc.ssl_server_credentials(pair, (pem / "client.pem").read_bytes(), require_client_auth=True)
    authority = pem / "server.pem"
    shown = [TlsFiles(authority, pem / "client.pem", pem / "client.key"), TlsFiles(str(authority), str(pem / "both.pem"))]
    cases: list[tuple[Any, TlsFiles | None, str]] = [
        (grpc.ssl_server_credentials(pair), TlsFiles(authority), ""),
        (grpc.ssl_server_credentials(pair), None, "certificate is not trusted"),
        (grpc.ssl_server_credentials(pair), TlsFiles(pem / "client.pem"), "certificate is not trusted"),
        (mutual, TlsFiles(authority), "closed the connection"),
        *((mutual, files, "") for files in shown),
    ]
    for credentials, files, facts in cases:
        with observing(credentials=credentials) as server:
            url = server.url.replace("grpc", "grpcs")
            with transport_to(url, ConnectionOptions(tls=files)) as blocking:
                awaiting = AsyncGrpcTransport(url, ConnectionOptions(tls=files))
                for transport in (blocking, awaiting):
                    if not facts:
                        assert infer(transport)["y"].shape == (2, 2)
                        continue
                    with raises(ConnectionFailedError, f"{url} | {facts}"):
                        infer(transport)
                asyncio.run(awaiting.close())


def test_unusable_options_are_refused_before_any_connection(pem: Path) -> None:
    cases: list[tuple[ConnectionOptions, str]] = [
        (ConnectionOptions(tls=TlsFiles(pem / "absent.pem")), "absent.pem | ca_file"),
        (ConnectionOptions(tls=TlsFiles(key_file=pem / "client.key")), "client.key | certificate_file"),
        (ConnectionOptions(compression="br"), "'br' | gzip"),
    ]
    for kind in (GrpcTransport, AsyncGrpcTransport):
        for options, facts in cases:
            with raises(InputError, facts):
                kind("grpcs://localhost", options)
        with raises(InputError, "tls | grpc://"):
            kind("grpc://localhost", cases[1][0])


def test_gzip_compresses_requests() -> None:
    identity_only = [("grpc.compression_enabled_algorithms_bitset", 1)]
    with observing(options=identity_only) as server, transport_to(server.url) as plain, transport_to(server.url, GZIP) as compressing:
        assert infer(plain)["y"].shape == (2, 2)
        with raises(RequestRefusedError, "UNIMPLEMENTED | gzip"):  # by this server, which cannot read it
            infer(compressing)
    with observing() as server, transport_to(server.url, GZIP) as transport:
        assert infer(transport)["y"].shape == (2, 2)


@pytest.mark.parametrize("version", [OLD, pytest.param(NEW, marks=pytest.mark.slow)])
def test_200_tasks_and_24_threads_share_a_transport(version: str) -> None:
    def echo(request: Any, context: Any) -> Any:
        response = service_pb2.ModelInferResponse(id=request.id)
        response.outputs.add(name="y", datatype="FP32", shape=[1])
        response.raw_output_contents.append(np.float32(request.id).tobytes())
        return response

    def value(outputs: Any) -> int:
        return int(outputs["y"][0])

    async def tasks(transport: AsyncGrpcTransport) -> list[int]:
        calls = [transport.infer("m", IMAGES, OUTPUTS, 20, request_id=str(number)) for number in range(200)]
        return [value(outputs) for outputs in await asyncio.gather(*calls)]

    with observing(version, answer=echo) as server, transport_to(server.url) as transport:
        of_tasks = AsyncGrpcTransport(server.url)
        for _ in range(2):  # in two event loops, one after the other
            assert asyncio.run(tasks(of_tasks)) == list(range(200))
        asyncio.run(of_tasks.close())
        answers: dict[int, list[int]] = {}
        threads = [
            threading.Thread(target=_call_repeatedly, args=(answers, number, lambda n: value(infer(transport, request_id=str(n)))))
            for number in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert answers == {number: [100 * number + step for step in range(5)] for number in range(24)}
    for thread in threading.enumerate():
        if thread.name == "defensemble-grpc":
            thread.join(5)
            assert not thread.is_alive(), "closing ends the transport's own threads"


def test_an_abandoned_transport_leaves_no_thread() -> None:
    with observing() as server:
        transport = GrpcTransport(server.url)
        infer(transport)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "defensemble-grpc")
        del transport
        gc.collect()
        thread.join(5)
        assert not thread.is_alive()


def test_a_server_that_is_missing_or_silent_does_not_block_the_event_loop() -> None:
    async def longest_pause_s(transport: AsyncGrpcTransport) -> tuple[float, BaseException | None]:
        call = asyncio.create_task(transport.live(0.3))
        longest, last = 0.0, time.monotonic()
        while not call.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest, call.exception()

    def stay_silent(connection: socket.socket, received: bytes) -> None:
        over.wait(10)
        cut_off(connection, received)

    transports = []
    over = threading.Event()
    with scripted(cut_off) as cutting, scripted(stay_silent) as silent:
        for port, kind, facts in (
            (free_port(), ConnectionFailedError, "connection refused"),
            (cutting.port, ConnectionFailedError, "closed the connection"),
            (silent.port, DeadlineExceededError, "timed out"),
        ):
            transports.append(transport := AsyncGrpcTransport(f"grpc://127.0.0.1:{port}"))
            pause_s, error = asyncio.run(longest_pause_s(transport))
            assert type(error) is kind
            assert_facts(str(error), f"{transport.url} | {facts}")
            assert pause_s < 0.2
        over.set()  # which ends the call that closing waits for
        for transport in transports:
            asyncio.run(transport.close())


def _call_repeatedly(answers: dict[int, list[int]], number: int, call: Callable[[int], int]) -> None:
    answers[number] = [call(100 * number + step) for step in range(5)]
