"""The demonstration on CIFAR-10: the zoo's networks, nothing trained; and what it says where the zoo or the data are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.command_line import run, succeed
from tests.support.facts import assert_facts

DATA = ROOT.parent / "shared/cifar10"


def test_a_zoo_that_is_not_there_is_told_before_anything_is_served(tmp_path: Path) -> None:
    (tmp_path / "zoo/cifar10").mkdir(parents=True)
    done = run("demo", "--dataset", "cifar10", "--zoo", "zoo", "--folder", "runs", cwd=tmp_path)
    assert done.returncode == 1
    assert_facts(done.stderr, "Error: | zoo/cifar10 | standard.safetensors | keep*.safetensors")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data-dir", "x"), "--data-dir | --zoo | --dataset cifar10"),
        (("--dataset", "cifar10", "--epochs", "3"), "--epochs"),
        (("--dataset", "imagenet"), "is not one of 'digits', 'cifar10'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run("demo", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert_facts(done.stderr, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_zoo_is_served_and_probed(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"CIFAR-10 is not beside the repository, in {DATA}")
    printed = succeed("demo", "--dataset", "cifar10", "--data-dir", DATA, "--limit", "20", "--folder", "runs", cwd=tmp_path)
    members = [path.stem for path in sorted((ROOT / "zoo/cifar10").glob("keep*.safetensors"))]
    assert len(members) >= 3
    assert re.findall(r"^  (\S+) +\d+ of 10000 test images right, \d+ epochs$", printed, re.MULTILINE) == [*members, "standard"]
    assert "largest difference 0 4. probe it" in " ".join(printed.split())
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "noise.json").read_text())
    assert [target["name"] for target in found["targets"]] == ["ensemble", *sorted(members), "standard"]
    assert found["data"]["n"] == 20
