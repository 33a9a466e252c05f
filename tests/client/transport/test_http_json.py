"""Servers of the KServe v2 protocol that are not Triton: JSON tensors, no statistics, compressed bodies."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import (
    ConnectionFailedError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    OutputRequest,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from defensemble._transport.base import BINARY_TENSORS, STATISTICS, ConnectionOptions
from defensemble._transport.tensor_codec import array_from_json
from tests.support.facts import raises
from tests.support.http_transports import KINDS, Connect
from tests.support.scripted import Script, http, scripted
from tests.support.tiny import images, logits, softmax

if TYPE_CHECKING:
    from defensemble_server import Server

IMAGES = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)
OUTPUTS = [OutputRequest("y")]
ANSWER = {"model_version": None, "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3.5, 4]}]}
RIGHT = [[1, 2], [3.5, 4]]
NOT_FOUND = http(b'{"detail":"Not Found"}', "404 Not Found")

Respond = Callable[[str, dict[str, str], bytes], bytes]
"""Called with "METHOD PATH", the headers and the body of a request; returns the response."""


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Connect:
    return KINDS[request.param]


def responding(respond: Respond) -> Script:
    def script(connection: socket.socket, received: bytes) -> None:
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ") for line in lines)}
        connection.sendall(respond(first.removesuffix(" HTTP/1.1"), headers, body))

    return script


def json_only(status: str, refusal: str = "400 Bad Request") -> Respond:
    """A server that refuses binary tensors with a status, unknown models with 404, and two channels with another."""

    def respond(request: str, headers: dict[str, str], body: bytes) -> bytes:
        if "inference-header-content-length" in headers:
            return http(b"traceback", status)
        document = json.loads(body)
        if "/nope/" in request:
            return http(b'{"error":"no such model"}', "404 Not Found")
        if document["inputs"][0]["shape"][1] == 2:
            return http(b'{"error":"two channels"}', refusal)
        np.testing.assert_array_equal(np.array(document["inputs"][0]["data"], np.float32), IMAGES.ravel())
        assert document["outputs"] == [{"name": "y"}]
        assert "parameters" not in document["inputs"][0]
        return http(json.dumps({**ANSWER, "id": document.get("id")}).encode())

    return respond


@pytest.mark.parametrize("status", ["400 No", "415 No", "422 No", "500 No", "501 No"])
def test_a_server_without_binary_tensors_gets_json(connect: Connect, status: str) -> None:
    with scripted(responding(json_only(status))) as server:
        transport = connect(server.url)
        assert transport.missing_features == frozenset()
        for count in (2, 3, 4):
            outputs = transport.infer("m", {"images": IMAGES}, OUTPUTS, 5, request_id="call")
            assert outputs["y"].tolist() == RIGHT
            assert (outputs["y"].dtype.name, outputs.model_version) == ("float32", "")
            assert transport.missing_features == {BINARY_TENSORS}
            assert len(server.requests) == count, "it is remembered"
        assert json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])["id"] == "call"
        with raises(InputError, "not finite | JSON"):
            transport.infer("m", {"images": IMAGES * np.float32("nan")}, OUTPUTS, 5)
        transport.close()


def test_a_refusal_with_json_is_the_true_one(connect: Connect) -> None:
    with scripted(responding(json_only("500 Traceback"))) as server:
        transport = connect(server.url)
        for _ in range(2):
            with raises(RequestRefusedError, "HTTP 400 | 'two channels'"):
                transport.infer("m", {"images": np.zeros((1, 2, 4, 4), np.float32)}, OUTPUTS, 5)
            with raises(ModelNotFoundError, "HTTP 404 | 'no such model'"):
                transport.infer("nope", {"images": IMAGES}, OUTPUTS, 5)
        with raises(ServerFailedError, "HTTP 500 | 'traceback'"):  # JSON cannot express it
            transport.infer("m", {"images": IMAGES * np.float32("nan")}, OUTPUTS, 5)
        assert transport.missing_features == frozenset()
        transport.close()
    with scripted(responding(json_only("500 Traceback", "503 Busy"))) as server:
        transport = connect(server.url)
        with raises(NotReadyError, "HTTP 503 | 'two channels'"):
            transport.infer("m", {"images": np.zeros((1, 2, 4, 4), np.float32)}, OUTPUTS, 5)
        transport.close()


def test_a_server_that_reads_binary_tensors_is_sent_no_images_twice(connect: Connect) -> None:
    def respond(request: str, headers: dict[str, str], body: bytes) -> bytes:
        assert "inference-header-content-length" in headers
        if "/m/" in request:
            return http(json.dumps(ANSWER).encode())  # JSON, although bytes were requested
        return http(b"{}", "400 No")

    with scripted(responding(respond)) as server:
        transport = connect(server.url)
        assert transport.infer("m", {"images": IMAGES}, OUTPUTS, 5)["y"].tolist() == RIGHT
        with pytest.raises(RequestRefusedError):
            transport.infer("bad", {"images": IMAGES}, OUTPUTS, 5)
        assert len(server.requests) == 2
        transport.close()


def test_json_and_bytes_may_be_mixed(connect: Connect) -> None:
    tensors = [
        {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "BYTES", "shape": [1, 2], "data": ["ä", "b"]},
        {"name": "c", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
        {"name": "d", "datatype": "BOOL", "shape": [2, 1], "data": [[True], [False]]},
    ]
    head = json.dumps({"outputs": tensors}).encode()
    body = head + np.array([1, 2], "<f4").tobytes() + np.array([7], "<i8").tobytes()
    with scripted(responding(lambda *_: http(body, headers=f"Inference-Header-Content-Length: {len(head)}\r\n"))) as server:
        transport = connect(server.url)
        outputs = transport.infer("m", {"images": IMAGES}, [], 5)
        assert {name: array.tolist() for name, array in outputs.items()} == {
            "a": [1, 2],
            "b": [["ä".encode(), b"b"]],
            "c": [7],
            "d": [[True], [False]],
        }
        transport.close()


def models_of(index: bytes, listed: bytes, refusal: bytes = NOT_FOUND) -> Respond:
    responses = {"GET /v2/models/stats": refusal, "POST /v2/repository/index": index, "GET /v2/models": listed}
    return lambda request, headers, body: responses[request]


INDEX = http(b'[{"name":"b","state":"READY","version":"v2.1"},{"name":"c","state":"UNAVAILABLE"},{"name":"a","state":"READY"}]')


@pytest.mark.parametrize("status", ["400 No", "404 No", "405 No", "501 No"])
@pytest.mark.parametrize(("index", "listed", "calls"), [(INDEX, NOT_FOUND, 2), (NOT_FOUND, http(b'{"models":["b","a"]}'), 3)])
def test_models_are_listed_without_statistics(connect: Connect, status: str, index: bytes, listed: bytes, calls: int) -> None:
    with scripted(responding(models_of(index, listed, http(b"", status)))) as server:
        transport = connect(server.url)
        for _ in range(2):
            assert transport.models(5) == ["a", "b"]
            assert transport.missing_features == {STATISTICS}
        assert len(server.requests) == 2 * calls - 1, "it is remembered"
        transport.close()


def test_a_server_that_lists_nothing_is_reported_by_its_first_refusal(connect: Connect) -> None:
    with scripted(responding(models_of(NOT_FOUND, http(b"", "500 No"), http(b"first", "404 No")))) as server:
        transport = connect(server.url)
        with raises(ModelNotFoundError, "HTTP 404 | 'first'"):
            transport.models(5)
        assert transport.missing_features == frozenset()
        transport.close()
    with scripted(responding(models_of(http(b"{}"), http(b"")))) as server:
        transport = connect(server.url)
        with raises(ServerFailedError, "KServe"):
            transport.models(5)
        transport.close()


def test_statistics_have_all_counters(connect: Connect) -> None:
    counts = {"success": {"count": 5, "ns": 11}, "fail": {"count": 2, "ns": 3}, "queue": {"count": 5, "ns": 7}}
    counts |= {f"compute_{part}": {"count": 5, "ns": ns} for part, ns in (("input", 1), ("infer", 20), ("output", 300))}
    model = {"name": "m", "version": "3", "last_inference": 9, "inference_count": 40, "execution_count": 4, "inference_stats": counts}
    with scripted(responding(lambda *_: http(json.dumps({"model_stats": [model]}).encode()))) as server:
        transport = connect(server.url)
        (found,) = transport.statistics(5)
        assert (found.name, found.version, found.requests, found.executions, found.last_ms) == ("m", 3, 7, 4, 9)
        assert (found.failures, found.images, found.success_ns, found.queue_ns, found.compute_ns) == (2, 40, 11, 7, 321)
        transport.close()


def test_compression_is_used_only_if_asked_for(connect: Connect) -> None:
    def respond(request: str, headers: dict[str, str], body: bytes) -> bytes:
        if "content-encoding" not in headers:
            assert "accept-encoding" not in headers
            return http(json.dumps(ANSWER).encode())
        assert (headers["content-encoding"], headers["accept-encoding"]) == ("gzip", "gzip")
        content = gzip.decompress(body)
        size = int(headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(content[size:], np.float32), IMAGES.ravel())
        assert json.loads(content[:size])["outputs"][0]["name"] == "y"
        tensor = {"name": "y", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}
        head = json.dumps({"outputs": [tensor]}).encode()
        sizes = f"Content-Encoding: gzip\r\nInference-Header-Content-Length: {len(head)}\r\n"
        return http(gzip.compress(head + np.array(RIGHT, "<f4").tobytes()), headers=sizes)

    with scripted(responding(respond)) as server:
        for compression in ("gzip", None):
            transport = connect(server.url, ConnectionOptions(compression=compression))
            assert transport.infer("m", {"images": IMAGES}, OUTPUTS, 5)["y"].tolist() == RIGHT
            transport.close()


def test_a_response_is_not_decompressed_without_bound(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._transport.http_transport._MAX_INFLATED_BYTES", 100_000)
    for size, is_accepted in ((100_000, True), (100_001, False), (10**7, False)):
        body = b'{"name":"s","version":"1"}'.ljust(size)
        response = http(gzip.compress(body), headers="Content-Encoding: gzip\r\n")
        with scripted(responding(lambda *_, response=response: response)) as server:
            transport = connect(server.url, ConnectionOptions(compression="gzip"))
            if is_accepted:
                assert transport.server_metadata(5).name == "s"
            else:
                with raises(ServerFailedError, "100000 bytes | decompressed"):
                    transport.server_metadata(5)
            transport.close()


@pytest.mark.parametrize("compression", ["gzip", None])
def test_triton_reads_and_sends_every_form(triton: Server, connect: Connect, compression: str | None) -> None:
    batch = images(8)
    right = softmax(logits(1, batch))
    transport = connect(triton.http_url, ConnectionOptions(compression=compression))
    outputs = [OutputRequest("logits"), OutputRequest("logits", 3)]
    before = {entry.name: entry for entry in transport.statistics(20)}["alpha"]
    binary = transport.infer("alpha", {"images": batch}, outputs[:1], 20, request_id='a "call"')
    labels = transport.infer("alpha", {"images": batch}, outputs[1:], 20)
    np.testing.assert_allclose(softmax(binary["logits"]), right, atol=1e-6)
    assert (labels["logits"].shape, binary.model_version) == ((8, 3), "1")
    after = {entry.name: entry for entry in transport.statistics(20)}["alpha"]
    assert (after.images - before.images, after.requests - before.requests, after.failures) == (16, 2, before.failures)
    assert after.success_ns - before.success_ns > after.queue_ns - before.queue_ns >= 0
    assert transport.missing_features == frozenset()
    with pytest.raises(RequestRefusedError):
        transport.infer("alpha", {"images": batch[:, :, :2]}, outputs[:1], 20)
    cast(Any, transport)._calls._missing_features = frozenset([BINARY_TENSORS])
    as_json = transport.infer("alpha", {"images": batch}, outputs[:1], 20, request_id="call")
    np.testing.assert_array_equal(as_json["logits"], binary["logits"])
    assert as_json.model_version == "1"
    transport.close()


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_an_error_with_a_page_that_cannot_be_read_keeps_its_status(connect: Connect, encoding: str) -> None:
    response = http(b"\x8b not to be read", "502 Bad Gateway", f"Content-Encoding: {encoding}\r\n")
    with scripted(responding(lambda *_: response)) as server:
        transport = connect(server.url)
        with raises(ConnectionFailedError, "HTTP 502") as caught:
            transport.server_metadata(5)
        assert caught.value.is_retryable
        transport.close()


NUMBERS = {"FP32": "f4", "FP64": "f8", "INT32": "i4", "UINT8": "u1", "INT64": "i8", "UINT64": "u8"}


@given(st.sampled_from(sorted(NUMBERS)), st.lists(st.integers(0, 3), max_size=3), st.booleans(), st.randoms())
def test_numbers_survive_json(datatype: str, shape: list[int], is_flat: bool, random: Any) -> None:
    dtype: np.dtype[Any] = np.dtype(NUMBERS[datatype])
    limits = (0, 1) if dtype.kind == "f" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    values = [random.random() if dtype.kind == "f" else random.randint(*limits) for _ in range(int(np.prod(shape)))]
    right = np.array(values, dtype).reshape(shape)
    data = json.loads(json.dumps(right.ravel().tolist() if is_flat or not shape else right.tolist()))
    decoded = array_from_json(datatype, tuple(shape), data, "context")
    assert (decoded.dtype, decoded.flags.writeable) == (dtype, False)
    np.testing.assert_array_equal(decoded, right)


def test_large_and_small_integers_side_by_side_survive_json() -> None:
    values = [[2**63, 0], [2**64 - 1, 1]]
    for data in (values, [*values[0], *values[1]]):
        decoded = array_from_json("UINT64", (2, 2), data, "context")
        assert (decoded.dtype, decoded.flags.writeable) == (np.dtype(np.uint64), False)
        assert decoded.tolist() == values
    assert array_from_json("UINT64", (0, 2), [], "context").shape == (0, 2)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), [1]),
        ("FP32", (2, 2), [[1, 2, 3, 4]]),
        ("FP32", (4,), [[1, 2], [3, 4]]),
        ("FP32", (2, 2), [[1, 2], [3]]),
        ("FP32", (-1,), [1]),
        ("FP32", (1,), ["1"]),
        ("FP32", (1,), [None]),
        ("FP32", (1,), [True]),
        ("FP32", (1,), [1e300]),
        ("FP32", (1,), 1.0),
        ("FP32", (1,), {"0": 1}),
        ("UINT8", (1,), [256]),
        ("UINT8", (1,), [-1]),
        ("INT32", (1,), [1.5]),
        ("INT64", (1,), [10**30]),
        ("UINT64", (1,), [2**64]),
        ("UINT64", (2,), [2**63, -1]),
        ("UINT64", (2,), [2**63, 0.5]),
        ("UINT64", (1,), [True]),
        ("UINT64", (1,), [[1, 2]]),
        ("BOOL", (1,), [1]),
        ("BYTES", (1,), [1]),
        ("BYTES", (2,), ["a"]),
        ("FP128", (1,), [1]),
    ],
)
def test_json_that_does_not_match_is_rejected(datatype: str, shape: tuple[int, ...], data: Any) -> None:
    with raises(ServerFailedError, datatype):
        array_from_json(datatype, shape, data, "context")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(st.sampled_from(["FP32", "BYTES", "BOOL", "INT8", "UINT64", "x"]), st.lists(st.integers(-1, 3), max_size=3), JSON)
def test_arbitrary_json_is_an_array_or_raises(datatype: str, shape: list[int], data: Any) -> None:
    try:
        array = array_from_json(datatype, tuple(shape), data, "context")
    except ServiceError:
        return
    assert array.shape == tuple(shape)
