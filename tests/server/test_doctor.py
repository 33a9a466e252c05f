"""The doctor: what it finds here, what it says of servers, and its exit status."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_server import Server
from defensemble_server.doctor import FAIL, PASS, WARN, Check, diagnose


def found(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_this_machine(triton: Server) -> None:
    checks = diagnose([])
    for name in ("platform", "Python", "Triton", "ONNX Runtime", "compiler", "backend"):
        assert [check.status for check in found(checks, name)] == [PASS], name
    assert found(checks, "core's age")[0].status == WARN
    mine = found(checks, f"server {triton.state.grpc_port}")
    assert [check.status for check in mine] == [PASS, WARN]
    assert triton.state.repository in mine[0].text
    assert "CVE-2025-23310" in found(checks, "core's age")[0].text
    assert all(check.mend for check in checks if check.status != PASS), "whatever is wrong comes with what mends it"


def test_a_server_behind_a_url_is_told_its_holes(triton: Server) -> None:
    (check,) = found(diagnose([triton.http_url]), triton.http_url)
    assert check.status == WARN
    assert "CVE-2025-23310" in check.text


def test_a_server_that_is_new_enough_has_no_holes(other_server: str) -> None:
    assert [(check.status, check.text) for check in found(diagnose([other_server]), other_server)] == [(PASS, "core 2.71.0")]


@pytest.fixture
def other_server() -> Iterator[str]:
    """Answers as a newer Triton does where it is asked for its version."""

    class Newer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name": "triton", "version": "2.71.0"}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Newer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["nobody there", "no URL", "another server"])
def test_a_server_that_cannot_be_asked_fails(kind: str, triton: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = {"nobody there": f"http://127.0.0.1:{port}", "no URL": "not a url", "another server": triton.metrics_url}[kind]
    (check,) = found(diagnose([url]), url)
    assert check.status == FAIL
    assert "HTTP front end" in check.mend


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("defensemble_server.options.ServeOptions.ports", property(lambda self: {"http": port}))
        (check,) = found(diagnose([]), "http port")
    assert check.status == WARN
    assert check.mend == "defensemble serve --free-ports"


def test_without_a_compiler_and_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    checks = diagnose([])
    assert found(checks, "compiler")[0].mend.startswith("apt-get install g++")
    assert found(checks, "backend")[0].status == WARN


def test_the_command_line_fails_where_something_must_be_mended() -> None:
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(cli, ["doctor", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert "FAIL" in result.output
