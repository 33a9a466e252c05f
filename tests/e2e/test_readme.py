"""The README: its length, its order, and its blocks, which run in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.facts import assert_facts
from tests.support.pages import Ports, run_blocks

README = ROOT / "README.md"


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path, ports: Ports) -> None:
    output = run_blocks(README, tmp_path, ports)
    assert "['1', '3', '3', '8'" in output
    assert "(8, 10)" in output
    assert_facts(output, "weight | keep0.3@1 | 1 -> 2 | 50.0 % -> 66.7 %")
    assert_facts(output, "weight | keep0.3@1 | 2 -> 1 | 66.7 % -> 50.0 %")
    assert "Gaussian noise: accuracy" in output
    assert "wrote runs/report.html" in output
    assert "stopped the server" in output


def test_it_is_short_and_in_the_order_of_a_reader() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    headings = re.findall("^## (.*)$", text, re.MULTILINE)
    assert headings[:6] == ["Install", "Call an ensemble", "Two commands", "How it works", "What it gains, and what it costs", "Security"]
    assert text.index("![") < text.index("## Install"), "a picture of the result comes first"
    assert text.index("is for development on one machine") < text.index("defensemble serve --detach")


def test_the_output_of_the_commands_is_real() -> None:
    text = README.read_text()
    assert "Gaussian noise: accuracy, %" in text
    assert re.search(r"\d+ passed", text)
