"""Proxies in front of a server (Python's own HTTP server): redirects, logins, limits and web pages become errors with a hint."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from defensemble import (
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    NotReadyError,
    RequestRefusedError,
    RetryPolicy,
    ServerFailedError,
    ServiceError,
)
from defensemble.cli import cli
from tests.support.facts import raises
from tests.support.scripted import http, scripted

PAGE = "<html><head><title>{0}</title><style>body {{ color: red }}</style></head><body><!-- x --><h1>{0}</h1>nginx &amp; more</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
IMAGE = np.zeros((1, 1, 4, 4), np.float32)
NO_RETRIES = RetryPolicy(max_retries=0)


@contextmanager
def proxy(status: int, headers: Mapping[str, str], body: str = "") -> Iterator[str]:
    """Serve the same response to every request; `{path}` in a header is the requested path. Yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value.replace("{path}", self.path))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [302, 308])
@pytest.mark.parametrize(
    ("location", "suggestion"),
    [
        ("https://example.org{path}", '"https://example.org:443"'),
        ("https://example.org:8443{path}", '"https://example.org:8443"'),
        ("http://example.org{path}", '"http://example.org:80"'),
        ("https://[::1]:8443{path}", '"https://[::1]:8443"'),
        ("//example.org{path}", '"http://example.org:80"'),
        ("https://example.org/login?next={path}", "proxy"),
        ("/somewhere/else", "proxy"),
        ("{path}/", "proxy"),
        ("https://[", "proxy"),
        ("", "proxy"),
    ],
)
def test_a_redirect_is_not_followed_and_the_error_suggests_a_url(status: int, location: str, suggestion: str) -> None:
    with proxy(status, {"Location": location}) as url, Client(url, model="m") as client:
        for call in (client.models, client.server_metadata, lambda: client.predict(IMAGE)):
            with pytest.raises(RequestRefusedError) as caught:
                call()
            text = str(caught.value)
            assert f"HTTP {status} " in text
            assert location.partition("{")[0] in text
            assert suggestion in text
        with pytest.raises(RequestRefusedError):
            client.wait_ready(30)
    suggested = re.search(r'pass "([^"]*)"', text)
    if suggested:
        Client(suggested[1]).close()


def test_a_redirect_without_a_location_raises() -> None:
    with proxy(308, {}) as url, Client(url) as client, pytest.raises(RequestRefusedError, match="HTTP 308 Permanent Redirect"):
        client.models()


def test_the_command_line_shows_the_target_of_a_redirect(tmp_path: Path) -> None:
    picture = tmp_path / "a.npy"
    np.save(picture, IMAGE)
    with proxy(308, {"Location": "https://example.org{path}"}) as url:
        done = CliRunner().invoke(cli, ["predict", "--url", url, str(picture), "--model", "m"])
    assert done.exit_code == 1
    assert 'pass "https://example.org:443"' in done.output


@pytest.mark.parametrize(
    ("status", "headers", "kind", "facts"),
    [
        (401, {"WWW-Authenticate": 'Basic realm="lab"'}, ForbiddenError, ['Basic realm="lab"', "login"]),
        (407, {"Proxy-Authenticate": "Negotiate"}, ForbiddenError, ["Negotiate", "login"]),
        (413, HTML, RequestRefusedError, ["fewer images"]),
        (414, HTML, RequestRefusedError, ["model's name"]),
        (429, {"Retry-After": "30"}, NotReadyError, ["Retry-After: 30", "later"]),
        (502, HTML, ConnectionFailedError, ["'Bad & gone Bad & gone nginx & more"]),
        (503, {**HTML, "Retry-After": "120"}, NotReadyError, ["Retry-After: 120", "nginx & more"]),
        (504, HTML, DeadlineExceededError, ["nginx & more"]),
        (200, HTML, ServerFailedError, ["a web page", "nginx & more", "8000"]),
    ],
)
def test_errors_quote_a_proxy_briefly(status: int, headers: dict[str, str], kind: type[ServiceError], facts: list[str]) -> None:
    page = PAGE.format("Bad &amp; gone") + "<p>" + "x" * 5000
    with proxy(status, headers, page if headers.items() >= HTML.items() else "") as url, Client(url, model="m", retry=NO_RETRIES) as client:
        for call in (client.models, lambda: client.predict(IMAGE)):
            with pytest.raises(kind) as caught:
                call()
            text = str(caught.value)
            assert status == 200 or f"HTTP {status}" in text
            assert [fact for fact in facts if fact not in text] == []
            assert "<" not in text
            assert "color" not in text
            assert len(text) < 700


@pytest.mark.parametrize("body", ["", "<html>", "<script>" + "<script" * 9000, "<" * 60000, "<style>" + "a{}" * 3000])
def test_errors_quote_a_bounded_part_of_a_page(body: str) -> None:
    with proxy(500, HTML, body) as url, Client(url) as client, pytest.raises(ServerFailedError, match="HTTP 500") as caught:
        client.models()
    assert len(str(caught.value)) < 500


def test_an_early_rejection_of_a_large_body_is_reported() -> None:
    def reject(connection: socket.socket, received: bytes) -> None:
        connection.sendall(http(b"too large", "413 Payload Too Large", "Connection: close\r\n"))
        connection.close()

    with scripted(reject) as server, Client(server.url, model="m", timeout_s=20) as client:
        with raises(RequestRefusedError, "HTTP 413 | 'too large' | fewer images"):
            client.transport.infer("m", {"images": np.zeros((64, 3, 224, 224), np.float32)}, [], 20)
