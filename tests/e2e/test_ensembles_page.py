"""docs/how-to/edit-live.md: its blocks run in order, and print what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.facts import assert_facts
from tests.support.pages import Ports, run_blocks

PAGE = ROOT / "docs/how-to/edit-live.md"


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path, ports: Ports) -> None:
    output = run_blocks(PAGE, tmp_path, ports)
    assert_facts(output, "adds | keep0.7@1 | 0.5 | 20.0 %")
    declared = re.search(r"^```text\n(name: ensemble\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert declared is not None
    assert declared[1].replace("average: probabilities", "average: logits") in output, "the page shows the applied file"
    assert "nothing" in output
    assert_facts(output, "keep0.3 | version | 1 -> 2")
    assert re.search(r"rollback .*--to [0-9a-f]{12}", output), "a rollback names the command that undoes it"
    assert_facts(output, "config.pbtxt | reload")
    assert re.search(r"^deleted \d+, ", output, re.MULTILINE)
    assert "stopped the server" in output
