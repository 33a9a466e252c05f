"""The supervisor's port answers at once, whatever other clients do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import urllib3

from defensemble_server.addresses import claim_ports
from defensemble_server.supervisor.endpoint import LONGEST_REQUEST, MAX_CONNECTIONS, REQUEST_WITHIN_S, Answer, Endpoint


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an endpoint that knows the path /there, and fails to answer /broken."""

    def answer(path: str) -> Answer | None:
        if path == "/broken":
            raise OSError(5, "Input/output error")
        return Answer(200, '{"here": true}') if path == "/there" else None

    number = claim_ports("127.0.0.1", {"supervisor": 0})["supervisor"]
    endpoint = Endpoint("127.0.0.1", number, answer)
    yield number
    endpoint.close()


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, and return everything that is answered until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(request)
        answer = b""
        try:
            while received := client.recv(65_536):
                answer += received
        except ConnectionResetError:
            pass
    return answer


def test_only_get_and_head_of_known_paths_are_answered(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    answer = urllib3.request("GET", f"{url}/there?query")
    assert (answer.status, answer.json(), answer.headers["Content-Type"]) == (200, {"here": True}, "application/json")
    head = urllib3.request("HEAD", f"{url}/there")
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", answer.headers["Content-Length"])
    assert urllib3.request("GET", f"{url}/../etc/passwd").status == 404
    for method in ("POST", "PUT", "DELETE"):
        assert urllib3.request(method, f"{url}/there", retries=False).status == 405


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET /there FTP/1\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n"]
)
def test_what_is_no_request_is_refused(port: int, request_: bytes) -> None:
    assert exchange(port, request_).startswith(b"HTTP/1.1 400 ")


def test_long_headers_are_dropped(port: int) -> None:
    assert exchange(port, b"GET /there HTTP/1.1\r\nX: " + b"x" * 2 * LONGEST_REQUEST + b"\r\n\r\n") == b""


def test_half_open_clients_do_not_keep_others_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_server.supervisor.endpoint.REQUEST_WITHIN_S", 0.5)
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(2 * MAX_CONNECTIONS)]
        for client in slow[::2]:
            client.sendall(b"GET /there HT")
        for _ in range(20):
            assert urllib3.request("GET", f"http://127.0.0.1:{port}/there", retries=False, timeout=5).status == 200
        slow[-1].settimeout(10)
        assert slow[-1].recv(1) == b"", "it is dropped after a while"


def test_an_answer_that_fails_is_an_error_and_not_a_lost_connection(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert urllib3.request("GET", f"http://127.0.0.1:{port}/broken", retries=False).status == 500
    assert "Input/output error" in capsys.readouterr().err


def test_half_open_clients_do_not_delay_the_end() -> None:
    number = claim_ports("127.0.0.1", {"supervisor": 0})["supervisor"]
    endpoint = Endpoint("127.0.0.1", number, lambda path: Answer(200, "{}"))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", number), 10)) for _ in range(3)]
        for client in clients:
            client.sendall(b"GET")
        assert exchange(number, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 "), "the others are accepted, too"
        begin = time.monotonic()
        endpoint.close()
        assert time.monotonic() - begin < REQUEST_WITHIN_S / 2
