"""The pages in docs/: their blocks are valid, run in order in an empty folder as a newcomer would, and what they link to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from defensemble_server.backend import built_backend
from tests.e2e.pages import Ports, blocks_of, check_blocks, free_ports, stop_what_is_left

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Blocks, and those of them that are not run.
COUNTS = {
    "data.md": (0, 0),
    "ensembles.md": (13, 2),
    "export.md": (9, 2),
    "networks.md": (3, 0),
    "precisions.md": (0, 0),
    "training.md": (9, 3),
}
ELSEWHERE = {"networks.md"}  # run by tests/training/test_networks_page.py, which compares what they print
_LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#]+)")


@pytest.fixture
def ports() -> Iterator[Ports]:
    chosen = free_ports()
    yield chosen
    stop_what_is_left(chosen)


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


def test_the_blocks_work_as_they_stand(tmp_path: Path, ports: Ports) -> None:
    backend = built_backend()
    assert backend is not None
    # Images that are decoded here are nobody's: not into the user's cache.
    (tmp_path / "cache/defensemble").mkdir(parents=True)
    (tmp_path / "cache/defensemble/backend").symlink_to(backend.parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changes = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **changes}
    output: dict[str, str] = {}
    for page in PAGES:
        folder = tmp_path / page.stem
        folder.mkdir()
        for block in blocks_of(page):
            if page.name in ELSEWHERE or not block.runs:
                continue
            command = block.command(ports.put_into(block.text))
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            output[page.name] = output.get(page.name, "") + done.stdout + done.stderr
    told = output["training.md"]
    assert "wrote checkpoints/first.safetensors" in told
    assert "nothing to resume" in told
    assert "accuracy" in told
    assert "stopped the server" in told
    edited = output["ensembles.md"]
    assert "adds keep0.7@1 with weight 0.5 (20.0 %)" in edited
    assert "nothing differs, nothing was done" in edited
    assert "keep0.3: version 1 -> 2" in edited
    assert "of 64 images get the same label" in edited
    assert "go forward again: " in edited
    assert "an older one: its config.pbtxt has changed since" in edited
    assert re.search(r"^deleted \d+, ", edited, re.MULTILINE)
    assert (tmp_path / "training" / "repository-of-mine" / "mine" / "config.pbtxt").exists()
