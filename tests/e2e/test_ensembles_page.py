"""docs/ensembles.md: its blocks run as they stand, in order, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.facts import assert_facts
from tests.support.pages import Ports, run_blocks

PAGE = ROOT / "docs" / "ensembles.md"


@pytest.mark.slow
def test_the_blocks_work_as_they_stand(tmp_path: Path, ports: Ports) -> None:
    told = run_blocks(PAGE, tmp_path, ports)
    assert_facts(told, "adds | keep0.7@1 | 0.5 | 20.0 %")
    declared = re.search(r"^```text\n(name: ensemble\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert declared is not None
    assert declared[1].replace("average: probabilities", "average: logits") in told, "the page shows what is applied"
    assert "nothing" in told
    assert_facts(told, "keep0.3 | version | 1 -> 2")
    assert "64 images" in told
    assert "go forward again: " in told
    assert_facts(told, "older | config.pbtxt")
    assert re.search(r"^deleted \d+, ", told, re.MULTILINE)
    assert "stopped the server" in told
