"""The README's blocks, executed in order in an empty folder, as a newcomer would."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    reason: str | None

    @property
    def is_make(self) -> bool:
        return all(line.startswith(("make ", "#")) for line in self.text.splitlines() if line.strip())


def blocks() -> list[Block]:
    found = [Block(match["language"], match["text"], match["reason"]) for match in _BLOCK.finditer(README.read_text())]
    return [block for block in found if block.language in ("sh", "bash", "python")]


def test_every_block_is_valid_and_few_are_not_run() -> None:
    assert {match["language"] for match in _BLOCK.finditer(README.read_text())} <= {"sh", "python", "text"}
    for block in blocks():
        if block.language == "python":
            ast.parse(block.text)
        else:
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
    reasons = [block.reason for block in blocks() if block.reason]
    assert len(reasons) == 3, reasons
    assert len([block for block in blocks() if block.is_make]) == 1
    assert len(blocks()) == 9


@pytest.fixture
def ports() -> dict[str, int]:
    """Free ports in the place of 8000, 8001 and 8002, which may be somebody's."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    chosen = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return dict(zip(("8000", "8001", "8002"), chosen, strict=True))


@pytest.fixture
def stopped_at_the_end(ports: dict[str, int]) -> Iterator[None]:
    """No server is left where a block fails before the one that stops it."""
    from defensemble_server import read_states, stop_server

    yield
    if ports["8001"] in [state.grpc_port for state in read_states()]:
        stop_server(ports["8001"])


@pytest.mark.usefixtures("stopped_at_the_end")
def test_the_blocks_work_as_they_stand(tmp_path: Path, ports: dict[str, int]) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "error::DeprecationWarning:__main__",
    }
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, and a block calls it")
    output = ""
    for block in blocks():
        if block.is_make or block.reason:
            continue
        text = block.text
        for standard, free in ports.items():
            text = text.replace(standard, str(free))
        chosen = f"--http-port {ports['8000']} --grpc-port {ports['8001']} --metrics-port {ports['8002']}"
        text = text.replace("defensemble serve --detach", f"defensemble serve --detach {chosen}")
        command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        output += done.stdout
    assert "['1', '3', '3', '8'" in output
    assert "(8, 10)" in output
    assert '"outputs":[{"name":"probabilities"' in output
    assert "accuracy under Gaussian noise" in output
    assert "stopped the server" in output


def test_pictures_of_the_commands_are_real() -> None:
    """What the README says the commands printed was printed by them: no marker is left, and today's wording is in it."""
    text = README.read_text()
    assert "DEMO-OUTPUT" not in text
    assert "TEST-OUTPUT" not in text
    assert "accuracy under Gaussian noise, %" in text
    assert re.search(r"\d+ passed", text)
