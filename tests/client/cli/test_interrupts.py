"""Ctrl-C ends a command with exit status 130 and no traceback, from the first line of our entry module on."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command_line import TIMEOUT_S, environment
from tests.support.scripted import free_port

# An interrupt before the first line of our entry module, which is Python's to handle, ends the process as a later one does.
_SCRIPT = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import defensemble
os.write(1, b"ready\\n")
try:
    from defensemble._entry import main
except KeyboardInterrupt:
    os._exit(130)
main()
"""


def interrupt(arguments: list[str], delay_s: float, cwd: Path) -> tuple[int, str]:
    """Send SIGINT `delay_s` after the entry module starts; return the exit status and standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, stderr.decode(errors="replace")


def assert_interrupted(arguments: list[str], delay_s: float, cwd: Path, *, may_end_before: bool = False) -> None:
    status, stderr = interrupt(arguments, delay_s, cwd)
    assert "Traceback" not in stderr
    assert status == 130 or (may_end_before and status in (0, 1)), (status, stderr)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="training needs torch")
@pytest.mark.parametrize("delay_s", [0.01, 0.05, 0.2, 0.6])
def test_ctrl_c_while_a_command_starts(tmp_path: Path, delay_s: float) -> None:
    assert_interrupted(["train", "a.safetensors", "--epochs", "1000"], delay_s, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.005 * 1.42**step for step in range(20)])  # to 3.9 s
@pytest.mark.parametrize("verb", ["train", "predict", "doctor", "probe"])
def test_ctrl_c_at_twenty_delays(tmp_path: Path, verb: str, delay_s: float) -> None:
    (tmp_path / "a.png").touch()
    url = f"http://127.0.0.1:{free_port()}"
    arguments = {
        "train": ["train", "a.safetensors", "--epochs", "1000"],
        "predict": ["predict", "--url", url, "a.png"],
        "doctor": ["doctor"],
        "probe": ["probe", "noise", url, "--dataset", "digits"],
    }[verb]
    assert_interrupted(arguments, delay_s, tmp_path, may_end_before=verb != "train")


def test_an_ignored_sigint_stays_ignored(tmp_path: Path) -> None:
    """A shell starts background jobs with SIGINT ignored."""
    script = "import signal; signal.signal(2, signal.SIG_IGN); import defensemble._entry; print(int(signal.getsignal(2)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIG_IGN
