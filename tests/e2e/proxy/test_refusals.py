"""What the proxy refuses: neither it nor the server behind it takes harm."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator

import grpc  # type: ignore[import-untyped]
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common.nginx import CONFIGURATION, Nginx
from benchmarks.common.raw_http import chunked, request
from defensemble_repository.names import MODEL_NAME
from defensemble_server import Server
from defensemble_server.admin_key import ADMIN_HEADER
from tests.support import tiny
from tests.support.raw_http import INFER, exchange, status_of

from .harmless import unharmed

SERVICE = "inference.GRPCInferenceService"
FORWARDED_CALLS = {
    "ModelInfer",
    *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_harmed(triton: Server, proxied: Nginx) -> Iterator[None]:
    with unharmed(triton, proxied):
        yield


def nested(depth: int) -> bytes:
    """A well-formed request whose data is nested."""
    head = b'{"inputs":[{"name":"images","shape":[1,3,4,4],"datatype":"FP32","data":'
    return head + b"[" * depth + b"]" * depth + b"}]}"


def binary_request(images: tiny.Array) -> tuple[bytes, bytes]:
    """The JSON and the bytes of a request with binary tensors."""
    described = {"name": "images", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
    return json.dumps({"inputs": [described]}).encode(), images.tobytes()


def length_header(length: object) -> str:
    return f"Inference-Header-Content-Length: {length}"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[" * 120_000, [], 413),
        (nested(100_000), [], 413),
        (nested(100_000), ["Content-Type: application/octet-stream"], 413),
        (nested(100_000), [length_header(len(nested(100_000)))], 400),
        (nested(100_000), [length_header("0x9999999")], 400),
        (nested(100_000), [length_header("+999999")], 400),
        (nested(100_000), [length_header(-1)], 400),
        (nested(100_000), [length_header("99, 999999")], 400),
        (nested(100_000), [length_header(9999)], 500),
        (nested(100_000), [length_header(" ")], 413),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["whole", "chunked"])
def test_deep_json(proxied: Nginx, body: bytes, headers: list[str], status: int, is_chunked: bool) -> None:
    if is_chunked:
        body, headers = chunked(body, 4096), [*headers, "Transfer-Encoding: chunked"]
    assert status_of(proxied.http_port, request("POST", INFER, body, headers)) == status


def test_of_two_lengths_the_first_counts_or_the_request_is_refused(proxied: Nginx) -> None:
    """nginx 1.22 takes the first, newer ones join both."""
    twice = [length_header(100), length_header(999999)]
    assert status_of(proxied.http_port, request("POST", INFER, nested(100_000), twice)) in (400, 500)


def test_the_largest_json_that_is_forwarded_is_harmless_at_any_depth(proxied: Nginx) -> None:
    depth = (48 * 1024 - len(nested(0))) // 2
    assert status_of(proxied.http_port, request("POST", INFER, nested(depth))) == 500, "Triton's own answer"
    assert status_of(proxied.http_port, request("POST", INFER, b"[" * 48 * 1024)) == 500
    assert status_of(proxied.http_port, request("POST", INFER, nested(depth) + b"   ")) == 413


def test_an_image_of_cifar_10_fits_as_json_with_9_digits(proxied: Nginx) -> None:
    """It is refused because `alpha` has smaller images: by Triton, not by the proxy."""
    data = ",".join(f"{value:.9g}" for value in tiny.images(1, shape=(3, 32, 32)).ravel())
    body = f'{{"inputs":[{{"name":"images","shape":[1,3,32,32],"datatype":"FP32","data":[{data}]}}]}}'.encode()
    response = exchange(proxied.http_port, request("POST", INFER, body))
    assert response is not None
    assert response[0] == 400
    assert "shape" in json.loads(response[2])["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "GZIP", "x"])
def test_compressed_bodies(proxied: Nginx, encoding: str) -> None:
    body = gzip.compress(b" " * (10_000_000 if encoding == "gzip" else 10))
    assert status_of(proxied.http_port, request("POST", INFER, body, [f"Content-Encoding: {encoding}"])) == 415


def test_many_chunks_become_one_body_and_large_bodies_are_refused(proxied: Nginx) -> None:
    head, images = binary_request(tiny.images(1))
    valid = chunked(head + images, 1)
    headers = [length_header(len(head)), "Transfer-Encoding: chunked"]
    assert status_of(proxied.http_port, request("POST", INFER, valid, headers)) == 200
    assert status_of(proxied.http_port, request("POST", INFER, b"ffffffffffffffff\r\nx", headers)) in (400, 413)
    assert status_of(proxied.http_port, request("POST", INFER, b"x", [length_header(2), "Content-Length: 40000000"])) == 413
    assert status_of(proxied.http_port, request("POST", INFER, b"x", [length_header(2), f"Content-Length: {10**25}"])) == 400


def test_a_body_of_megabytes_is_forwarded(proxied: Nginx) -> None:
    """Triton refuses it, because it has too many bytes for its shape."""
    head, images = binary_request(tiny.images(1))
    for content in (images, images + bytes(3_000_000)):
        response = exchange(proxied.http_port, request("POST", INFER, head + content, [length_header(len(head))]))
        assert response is not None
        assert (response[0] == 200) == (content is images)
        assert response[1].get("server") == "nginx"
        assert b"proxy" not in response[2]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"X-A: {'a' * 5_000}"], 400),
        ([f"X-{number}: {'a' * 1000}" for number in range(50)], 400),
        ([f"X-{number}: a" for number in range(500)], 200),  # none of them is forwarded
    ],
)
def test_large_and_many_headers(proxied: Nginx, headers: list[str], status: int) -> None:
    assert status_of(proxied.http_port, request("GET", "/v2", headers=headers)) == status


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 40"],
        ["Content-Length: -1"],
        ["Content-Length: 4a"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
    ],
)
def test_requests_that_two_parsers_could_read_in_two_ways(proxied: Nginx, headers: list[str]) -> None:
    hidden = request("POST", "/v2/repository/index", b"{}")
    assert status_of(proxied.http_port, request("POST", INFER, b"0\r\n\r\n" + hidden, headers)) in (400, 411, 501)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/alpha/load"),
        ("POST", "/v2/repository/models/alpha/unload"),
        ("POST", "/v2/models/alpha/load"),
        ("POST", "/v2/models/alpha/generate"),
        ("POST", "/v2/models/alpha/generate_stream"),
        ("POST", "/v2/models/../repository/index"),
        ("POST", "/v2/models/alpha/infer/../../../repository/index"),
        ("POST", "/v2/models/alpha/../../repository/index/infer"),
        ("POST", "/v2/models/..%2f..%2frepository%2findex/infer"),
        ("POST", "/v2/models/%2e%2e/repository/index"),
        ("POST", "/v2//repository/index"),
        ("POST", "//v2/repository/index"),
        ("POST", "/v2/repository%2findex"),
        ("POST", "/v2/%72epository/index"),
        ("POST", "/v2/models/alpha%00/infer"),
        ("POST", "/v2/models/alpha/infer?x=1"),
        ("POST", "/v2/models/alpha/infer/"),
        ("POST", "/v2/models/alpha\\infer"),
        ("POST", f"/v2/models/{'a' * 101}/infer"),
        ("POST", "/v2/models/alpha/versions/-1/infer"),
        ("POST", "/V2/models/alpha/infer"),
        ("POST", "/defensemble/binary"),
        ("GET", "/defensemble/error"),
        ("GET", "/v2/models/alpha/infer"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/alpha/trace/setting"),
        ("GET", "/metrics"),
        ("GET", "/models"),  # the front end of SageMaker
        ("POST", "/models"),
        ("POST", "/invocations"),
        ("GET", "/ping"),
        ("POST", "/predict"),
        ("GET", "/"),
        ("DELETE", "/v2/models/alpha"),
        ("PUT", "/v2/models/alpha/infer"),
        ("OPTIONS", "/v2"),
    ],
)
def test_other_paths_and_methods(proxied: Nginx, triton: Server, method: str, target: str) -> None:
    key = f"{ADMIN_HEADER}: {triton.state.admin_key}"
    assert status_of(proxied.http_port, request(method, target, b"{}" if method == "POST" else b"", [key])) in (400, 403, 404)


def test_escapes_that_leave_the_path_are_refused_by_nginx_itself(proxied: Nginx) -> None:
    for line in (b"POST /../../etc/passwd", b"CONNECT localhost:1", b"GET http://localhost/metrics", b"TRACE /v2", b"GET /v2\0"):
        assert status_of(proxied.http_port, line + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") in (400, 403, 405)


@pytest.fixture(scope="module")
def channel(proxied: Nginx) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{proxied.grpc_port}") as channel:
        yield channel


def status_of_call(channel: grpc.Channel, path: str, message: bytes = b"", **options: object) -> str:
    call = channel.unary_unary(path, request_serializer=None, response_deserializer=None)
    try:
        call(message, timeout=20, **options)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_only_the_calls_of_inference_metadata_and_health_are_forwarded(channel: grpc.Channel, triton: Server) -> None:
    key = (f"triton-grpc-protocol-{ADMIN_HEADER}", triton.state.admin_key)
    methods = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
    refused = {name for name in methods if status_of_call(channel, f"/{SERVICE}/{name}", metadata=[key]) == "PERMISSION_DENIED"}
    assert set(methods) - refused == FORWARDED_CALLS
    assert status_of_call(channel, "/grpc.health.v1.Health/Check") == "OK"


@pytest.mark.parametrize(
    "path",
    [
        f"//{SERVICE}/RepositoryIndex",
        f"/x/../{SERVICE}/RepositoryIndex",
        f"/{SERVICE}/ServerLive/../RepositoryIndex",
        f"/{SERVICE}/%52epositoryIndex",
        f"/{SERVICE}/RepositoryIndex?{SERVICE}/ServerLive",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_other_paths_of_grpc(channel: grpc.Channel, triton: Server, path: str) -> None:
    key = (f"triton-grpc-protocol-{ADMIN_HEADER}", triton.state.admin_key)
    assert status_of_call(channel, path, metadata=[key]) == "PERMISSION_DENIED"


@pytest.mark.parametrize("name", ["ModelInfer", "ServerLive"])
def test_compressed_messages(channel: grpc.Channel, name: str) -> None:
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        assert status_of_call(channel, f"/{SERVICE}/{name}", bytes(1000), compression=compression) == "UNIMPLEMENTED"


def test_large_messages_and_metadata(channel: grpc.Channel, proxied: Nginx) -> None:
    message = service_pb2.ModelInferRequest(model_name="ensemble", raw_input_contents=[bytes(34_000_000)])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of_call(channel, f"/{SERVICE}/ServerLive", bytes(2000)) == "RESOURCE_EXHAUSTED"
    assert status_of_call(channel, f"/{SERVICE}/ServerLive", metadata=[("x", "a" * 5000)]) != "OK"
    assert status_of_call(channel, f"/{SERVICE}/ServerLive") == "OK"


def test_the_patterns_of_paths_accept_the_names_that_this_project_accepts() -> None:
    patterns = re.findall(r"/v2/models/(\S+?)\(/versions", CONFIGURATION.read_text())
    assert len(patterns) == 2
    assert {pattern.replace("_.-]", "_.\\-]") for pattern in patterns} == {MODEL_NAME.pattern}
