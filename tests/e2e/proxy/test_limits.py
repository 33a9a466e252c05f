"""The proxy's limits on load, and how clients see what it refuses."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
import urllib3
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common.nginx import CONFIGURATION, Nginx, nginx_command, shipped_configuration, write_configuration
from benchmarks.common.raw_http import request
from defensemble import (
    Client,
    ConnectionFailedError,
    ForbiddenError,
    NotReadyError,
    RequestRefusedError,
    RetryPolicy,
    TlsFiles,
)
from defensemble._transport.base import OutputRequest
from defensemble_server import Server
from tests.support import tiny
from tests.support.certificates import make_certificate
from tests.support.nginx import nginx_before, require_nginx
from tests.support.raw_http import exchange
from tests.support.scripted import http, scripted, sends
from tests.support.tcp_proxy import until

NO_RETRY = RetryPolicy(max_retries=0)
ONE_AT_A_TIME = {"max_conns=16": "max_conns=1"}
KINDS = ("http", "grpc")


def url_of(nginx: Nginx, kind: str) -> str:
    return nginx.http_url if kind == "http" else nginx.grpc_url


def run_slow(nginx: Nginx, kind: str, rounds: int) -> None:
    """Run `slow` for about a second for each million of rounds."""
    if kind == "http":
        body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [rounds]}]}
        assert urllib3.request("POST", f"{nginx.http_url}/v2/models/slow/infer", json=body, timeout=30, retries=False).status == 200
        return
    message = service_pb2.ModelInferRequest(model_name="slow", raw_input_contents=[np.int64(rounds).tobytes()])
    message.inputs.add(name="rounds", datatype="INT64", shape=[1, 1])
    with grpc.insecure_channel(f"127.0.0.1:{nginx.grpc_port}") as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)


@contextmanager
def occupied(nginx: Nginx, kind: str, rounds: int = 200_000) -> Iterator[None]:
    """Keep the only request in flight that the proxy allows busy with `slow`; wait for its answer at the end."""
    with ThreadPoolExecutor(1) as callers:
        running = callers.submit(run_slow, nginx, kind, rounds)
        with Client(url_of(nginx, kind), model="alpha", retry=NO_RETRY) as client:
            until(lambda: running.done() or is_refused(client))
        assert not running.done(), "the call ended before the limit was reached"
        yield
        running.result()


def is_refused(client: Client) -> bool:
    try:
        client.predict(tiny.images(1))
    except NotReadyError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_above_the_limit_is_refused_at_once_and_a_retry_is_answered(slow_server: Server, nginx_folder: Path, kind: str) -> None:
    with nginx_before(slow_server, nginx_folder, ONE_AT_A_TIME) as nginx:
        with occupied(nginx, kind):
            with Client(url_of(nginx, kind), model="alpha", retry=NO_RETRY) as client:
                with pytest.raises(NotReadyError) as caught:
                    client.predict(tiny.images(1))
                assert caught.value.is_retryable
                assert caught.value.retry_after_s == (1 if kind == "http" else None)
                assert client.transport.live(5), "health has a limit of its own"
            with Client(url_of(nginx, kind), model="alpha") as client:
                prediction = client.predict(tiny.images(1), timeout_s=20)
        np.testing.assert_allclose(prediction.probabilities, tiny.softmax(tiny.logits(1, tiny.images(1))), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_caller_that_hangs_up_still_counts_until_triton_has_answered(slow_server: Server, nginx_folder: Path) -> None:
    with nginx_before(slow_server, nginx_folder, ONE_AT_A_TIME) as nginx:
        body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [300_000]}]}
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            urllib3.request("POST", f"{nginx.http_url}/v2/models/slow/infer", json=body, timeout=0.1, retries=False)
        with Client(nginx.http_url, model="alpha", retry=NO_RETRY) as client:
            assert is_refused(client)
            until(lambda: not is_refused(client))


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_above_its_rate_is_refused(triton: Server, nginx_folder: Path, kind: str) -> None:
    limits = {"rate=1000r/s": "rate=1r/s", "burst=1000": "burst=2"}
    with nginx_before(triton, nginx_folder, limits) as nginx, Client(url_of(nginx, kind), retry=NO_RETRY) as client:
        client.server_metadata()
        with pytest.raises((NotReadyError, ConnectionFailedError)) as caught:
            [client.server_metadata() for _ in range(5)]
        assert caught.value.is_retryable
        if kind == "http":
            response = exchange(nginx.http_port, request("GET", "/v2"))
            assert response is not None
            assert (response[0], response[1]["retry-after"]) == (429, "1")


def test_the_rate_of_all_callers_of_grpc_together(triton: Server, nginx_folder: Path) -> None:
    limits = {"defensemble_grpc_rate:1m rate=1000r/s": "defensemble_grpc_rate:1m rate=1r/m", "burst=16": "burst=2"}
    with nginx_before(triton, nginx_folder, limits) as nginx, ExitStack() as stack:
        transports = [stack.enter_context(Client(nginx.grpc_url, retry=NO_RETRY)).transport for _ in range(4)]
        for transport in transports[:3]:
            transport.infer("alpha", {"images": tiny.images(1)}, [OutputRequest("logits")], 5)
        with pytest.raises(NotReadyError):
            transports[3].infer("alpha", {"images": tiny.images(1)}, [OutputRequest("logits")], 5)
        assert transports[3].live(5)
        assert transports[3].models(5)
        with Client(nginx.http_url, model="alpha", retry=NO_RETRY) as client:
            client.predict(tiny.images(1))


def test_the_answers_of_a_proxy_whose_server_is_gone(nginx_folder: Path) -> None:
    with scripted(sends(http(b""))) as gone:
        pass
    with nginx_before((gone.port, gone.port), nginx_folder) as nginx:
        for kind in KINDS:
            with Client(url_of(nginx, kind), model="alpha", retry=NO_RETRY) as client, pytest.raises(ConnectionFailedError) as caught:
                client.predict(tiny.images(1))
            assert caught.value.is_retryable


def test_only_the_headers_that_triton_needs_are_forwarded_over_http(nginx_folder: Path) -> None:
    with scripted(sends(http(b"{}"))) as server:
        with nginx_before((server.port, server.port), nginx_folder) as nginx:
            traceparent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            headers = ["x-admin-key: 1", "Accept-Encoding: gzip", "Connection: x, close", "Inference-Header-Content-Length: 2", traceparent]
            assert exchange(nginx.http_port, request("POST", "/v2/models/a/infer", b"{}", headers)) is not None
    lines = server.requests[0].decode().splitlines()
    assert lines[0] == "POST /v2/models/a/infer HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines[1:] if ":" in line and line[0] != "{"}
    assert names == {"host", "inference-header-content-length", "traceparent", "content-length"}


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_client_sees_a_refusal(proxied: Nginx, kind: str) -> None:
    with Client(url_of(proxied, kind), model="ensemble", compression="gzip") as client, pytest.raises(RequestRefusedError) as caught:
        client.predict(tiny.images(1))
    assert "compress" in str(caught.value)
    with Client(url_of(proxied, kind), admin_key="0123456789abcdef") as client, pytest.raises(ForbiddenError):
        client.transport.load_model("alpha", 5)


@pytest.mark.parametrize("kind", KINDS)
def test_tls(triton: Server, nginx_folder: Path, tmp_path: Path, kind: str) -> None:
    make_certificate(tmp_path, "defensemble")
    changes = {
        "listen 127.0.0.1:8080; # edit\n    # listen 8443 ssl;": "listen 127.0.0.1:8080 ssl;",
        "listen 127.0.0.1:8081 http2; # edit\n    # listen 8444 ssl http2;": "listen 127.0.0.1:8081 ssl http2;",
        "# ssl_": "ssl_",
        "/etc/nginx/defensemble": str(tmp_path / "defensemble"),
    }
    with nginx_before(triton, nginx_folder, changes) as nginx:
        scheme, port = ("https", nginx.http_port) if kind == "http" else ("grpcs", nginx.grpc_port)
        with Client(f"{scheme}://localhost:{port}", model="alpha", tls=TlsFiles(str(tmp_path / "defensemble.pem"))) as client:
            assert client.predict(tiny.images(3)).probabilities.shape == (3, 3)


@pytest.mark.slow
def test_calls_over_connections_that_nginx_ends_after_some_requests(triton: Server, nginx_folder: Path) -> None:
    with nginx_before(triton, nginx_folder, {"keepalive_requests 10000": "keepalive_requests 50"}) as nginx:
        with Client(nginx.grpc_url, model="alpha", retry=NO_RETRY) as client:
            for _ in range(200):
                client.predict(tiny.images(1))


def test_the_shipped_file_is_valid_as_it_is(tmp_path: Path) -> None:
    require_nginx()
    command = [*nginx_command(write_configuration(tmp_path, shipped_configuration({}))), "-t"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "[warn]" in line]
    assert all("http2" in line for line in warnings), warnings


def test_every_value_that_is_marked_is_on_a_line_that_can_be_changed() -> None:
    lines = [line for line in CONFIGURATION.read_text().splitlines() if line.endswith("# edit")]
    assert len(lines) > 15
    assert all(re.fullmatch(r" *(# )?[a-z_0-9]+ .*; # edit", line) for line in lines)
