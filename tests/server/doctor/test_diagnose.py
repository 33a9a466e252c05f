"""The doctor: its checks of this machine and of servers, and its exit status."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_ops import instruction_set
from defensemble_ops.library import LIBRARY_NAME
from defensemble_server import Server
from defensemble_server.doctor.diagnose import FAIL, PASS, WARN, Check, diagnose
from defensemble_server.process.state import state_file
from tests.support.facts import assert_facts


def found(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_this_machine(triton: Server) -> None:
    checks = diagnose([])
    for name in ("platform", "Python", "Triton", "ONNX Runtime", "compiler", "backend", "operator library"):
        assert [check.status for check in found(checks, name)] == [PASS], name
    assert found(checks, "core age")[0].status == WARN
    mine = found(checks, f"server {triton.state.grpc_port}")
    assert [check.status for check in mine] == [PASS, WARN]
    assert triton.state.repository in mine[0].text
    assert "CVE-2025-23310" in found(checks, "core age")[0].text
    (faults,) = found(checks, "core faults")
    assert faults.status == WARN
    assert all(name in faults.text for name in ("8034", "PR 8172", "PR 8570", "PRs 466, 470", "PR 483", "without limit"))
    assert "docs/how-to/proxy.md" in faults.text + faults.fix
    assert all(check.fix for check in checks if check.status != PASS), "each problem has a fix"


def test_a_server_at_a_url_is_reported_with_its_vulnerabilities(triton: Server) -> None:
    (check,) = found(diagnose([triton.http_url]), triton.http_url)
    assert check.status == WARN
    assert "CVE-2025-23310" in check.text
    assert "PRs 466, 470" in check.text


def test_a_recent_server_has_no_vulnerabilities(other_server: str) -> None:
    assert [(check.status, check.text) for check in found(diagnose([other_server]), other_server)] == [(PASS, "core 2.71.0")]


@pytest.fixture
def other_server() -> Iterator[str]:
    """Answers as a newer Triton does where it is asked for its version."""
    with answering(b'{"name": "triton", "version": "2.71.0"}') as url:
        yield url


def test_an_answer_nested_without_end_is_none_of_triton_s() -> None:
    with answering(b"[" * 200_000) as url:
        (check,) = found(diagnose([url]), url)
    assert check.status == FAIL
    assert "Triton" in check.text


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("url", "text"), [("localhost:8000", "has no scheme"), ("grpc://localhost:8001", "grpc:// is not supported")])
def test_a_url_with_another_scheme_is_reported(url: str, text: str) -> None:
    (check,) = found(diagnose([url]), url)
    assert check.status == FAIL
    assert text in check.text
    assert_facts(check.fix, "http://HOST:PORT")


@pytest.mark.parametrize("kind", ["nobody there", "no URL", "another server"])
def test_a_server_that_cannot_be_asked_fails(kind: str, triton: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = {"nobody there": f"http://127.0.0.1:{port}", "no URL": "not a url", "another server": triton.metrics_url}[kind]
    (check,) = found(diagnose([url]), url)
    assert check.status == FAIL
    assert "HTTP front end" in check.fix


def test_a_taken_port_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("defensemble_server.options.ServeOptions.ports", property(lambda self: {"http": port}))
        (check,) = found(diagnose([]), "http port")
    assert check.status == WARN
    assert check.fix == "defensemble serve --free-ports"


def test_without_a_compiler_and_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    checks = diagnose([])
    assert found(checks, "compiler")[0].fix.startswith("apt-get install g++")
    assert found(checks, "backend")[0].status == WARN
    (operators,) = found(checks, "operator library")
    assert operators.status == WARN
    assert_facts(f"{operators.text} {operators.fix}", "densely | apt-get install g++")


def test_a_compiler_that_does_not_run_fails_and_the_other_checks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    checks = diagnose([])
    (check,) = found(checks, "compiler")
    assert check.status == FAIL
    assert_facts(check.text, "C++ compiler | CXX | `/nowhere/c++ -m64`")
    assert "unset CXX" in check.fix
    assert {"platform", "ONNX Runtime", "backend", "grpc port"} <= {other.name for other in checks}
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL  compiler" in result.output
    assert "PASS  grpc port" in result.output or "WARN  grpc port" in result.output


def test_the_operator_library_is_described_with_its_instructions(monkeypatch: pytest.MonkeyPatch, triton: Server) -> None:
    (check,) = found(diagnose([]), "operator library")
    assert check.status == PASS
    assert_facts(check.text, f"{LIBRARY_NAME} | {instruction_set()} | ONNX Runtime")
    monkeypatch.setenv("DEFENSEMBLE_OPS_ISA", "sse9")
    (check,) = found(diagnose([]), "operator library")
    assert check.status == FAIL
    assert_facts(f"{check.text} {check.fix}", "densely | 'sse9' | unset DEFENSEMBLE_OPS_ISA")


def test_an_operator_library_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / LIBRARY_NAME
    library.write_bytes(b"no library")
    monkeypatch.setattr("defensemble_server.doctor.operators.built_library", lambda: library)
    (check,) = found(diagnose([]), "operator library")
    assert check.status == FAIL
    assert_facts(f"{check.text} {check.fix}", f"{library} | densely | rm -r {tmp_path}")


def test_the_gpu_build_of_onnxruntime_stands_for_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.30.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.30.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *[entry for entry in sys.path if not list(Path(entry).glob("onnxruntime-*"))]])
    (check,) = found(diagnose([]), "export")
    assert (check.status, check.text) == (PASS, "onnx 1.30.0, onnxruntime-gpu 1.30.0, onnxscript 1.30.0")


def test_a_damaged_server_file_is_reported_with_the_command_that_removes_it(own_state_folder: Path) -> None:
    path = state_file(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{")
    try:
        (check,) = found(diagnose([]), "server file")
        assert check.status == WARN
        assert str(path) in check.text
        subprocess.run(check.fix, shell=True, check=True)
        assert found(diagnose([]), "server file") == []
    finally:
        path.unlink(missing_ok=True)


def test_doctor_exits_with_1_if_something_must_be_fixed() -> None:
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(cli, ["doctor", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert "FAIL" in result.output
