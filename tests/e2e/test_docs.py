"""The pages in docs/: their blocks are valid, run in order in an empty folder as a newcomer would, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.pages import Ports, blocks_of, check_blocks, run_blocks

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Blocks, and those of them that are not run.
COUNTS = {
    "data.md": (0, 0),
    "ensembles.md": (13, 1),
    "export.md": (9, 2),
    "glossary.md": (0, 0),
    "networks.md": (3, 0),
    "precisions.md": (0, 0),
    "predict.md": (1, 1),
    "security.md": (0, 0),
    "training.md": (9, 3),
}
_LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#]+)")


def test_every_page_is_run() -> None:
    """By this file or, so that pages run beside each other, by one of its own."""
    elsewhere = {"networks.md": "tests/training/models/test_networks_page.py", "ensembles.md": "tests/e2e/test_ensembles_page.py"}
    root = DOCS.parent
    assert [name for name, file in elsewhere.items() if name not in (root / file).read_text()] == []
    here = {"data.md", "export.md", "glossary.md", "precisions.md", "predict.md", "security.md", "training.md"}
    assert here | set(elsewhere) == set(COUNTS)


def test_every_page_is_known() -> None:
    assert [page.name for page in PAGES] == sorted(COUNTS)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_block_is_valid_and_few_are_not_run(page: Path) -> None:
    check_blocks(page)
    found = blocks_of(page)
    reasons = [block.reason for block in found if block.reason]
    assert (len(found), len(reasons)) == COUNTS[page.name], reasons


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_a_page_links_to_is_there(page: Path) -> None:
    assert [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "name", ["data.md", pytest.param("export.md", marks=pytest.mark.slow), "precisions.md", "predict.md", "security.md", "training.md"]
)
def test_the_blocks_work_as_they_stand(name: str, tmp_path: Path, ports: Ports) -> None:
    told = run_blocks(DOCS / name, tmp_path, ports)
    if name == "training.md":
        assert "wrote checkpoints/first.safetensors" in told
        assert "nothing to resume" in told
        assert "accuracy" in told
        assert "stopped the server" in told
        assert (tmp_path / "training" / "repository-of-mine" / "mine" / "config.pbtxt").exists()
