"""The unit file that ships, and what a service manager is sent."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.calls import gone_within
from tests.support.checkout import ROOT

UNIT = ROOT / "server_config/systemd/defensemble.service"


@pytest.mark.slow
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text()
    command = f"{sys.executable} -m defensemble serve"
    assert "/opt/defensemble/bin/defensemble serve" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/defensemble/bin/defensemble serve", command).replace("User=defensemble", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])
    unit.write_text(unit.read_text().replace("Type=notify", "Type=nothing"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=120)
    assert "nothing" in done.stderr, "systemd reads this line"


@pytest.mark.slow
def test_the_service_manager_learns_of_start_checks_and_end(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [sys.executable, "-m", "defensemble", "serve", "--repository", str(repository), "--free-ports"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            lines: list[str] = []
            deadline = time.monotonic() + 60
            while not {"READY=1", "WATCHDOG=1", "STATUS=serving"} <= set(lines):
                assert time.monotonic() < deadline, lines
                lines += manager.recv(10_000).decode().splitlines()
            assert "STOPPING=1" not in lines
            server.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in lines:
                assert time.monotonic() < deadline + 60, lines
                lines += manager.recv(10_000).decode().splitlines()
            assert server.wait(60) == 0
    assert gone_within(repository, 20)


@pytest.mark.slow
def test_the_guard_reports_that_it_is_at_work_if_nothing_is_checked(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [sys.executable, "-m", "defensemble", "serve", "--repository", str(repository), "--free-ports"]
        command += ["--check-interval", "0", "--no-restart"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            lines: list[str] = []
            deadline = time.monotonic() + 60
            while "READY=1" not in lines or lines[lines.index("READY=1") :].count("WATCHDOG=1") < 2:
                assert time.monotonic() < deadline, lines
                lines += manager.recv(10_000).decode().splitlines()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
    assert gone_within(repository, 20)
