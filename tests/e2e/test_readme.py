"""The README's blocks, executed in order in an empty folder, as a newcomer would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.facts import assert_facts
from tests.support.pages import Ports, blocks_of, check_blocks

README = ROOT / "README.md"


def test_every_block_is_valid_and_few_are_not_run() -> None:
    check_blocks(README)
    reasons = [block.reason for block in blocks_of(README) if block.reason]
    assert len(reasons) == 3, reasons
    assert len([block for block in blocks_of(README) if block.is_make]) == 1
    assert len(blocks_of(README)) == 11


@pytest.mark.slow
def test_the_blocks_work_as_they_stand(tmp_path: Path, ports: Ports) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "error::DeprecationWarning:__main__",
        "OMP_NUM_THREADS": "1",  # two that wait for each other are slow beside other tests
    }
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, and a block calls it")
    output = ""
    for block in blocks_of(README):
        if not block.runs:
            continue
        command = block.command(ports.put_into(block.text))
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        output += done.stdout
    assert "['1', '3', '3', '8'" in output
    assert "(8, 10)" in output
    assert '"outputs":[{"name":"probabilities"' in output
    assert_facts(output, "weight | keep0.3@1 | 1 -> 2 | 50.0 % -> 66.7 %")
    assert_facts(output, "weight | keep0.3@1 | 2 -> 1 | 66.7 % -> 50.0 %")
    assert "accuracy under Gaussian noise" in output
    assert "stopped the server" in output


def test_pictures_of_the_commands_are_real() -> None:
    """What the README says the commands printed was printed by them: no marker is left, and today's wording is in it."""
    text = README.read_text()
    assert "DEMO-OUTPUT" not in text
    assert "TEST-OUTPUT" not in text
    assert "accuracy under Gaussian noise, %" in text
    assert re.search(r"\d+ passed", text)
