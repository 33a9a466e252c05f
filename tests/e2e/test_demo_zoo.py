"""The demonstration on CIFAR-10 with the networks of the zoo, and its errors if the zoo or the data are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.command_line import run, succeed
from tests.support.facts import assert_facts

DATA = ROOT.parent / "shared/cifar10"


def test_demo_reports_a_missing_zoo(tmp_path: Path) -> None:
    (tmp_path / "zoo/cifar10").mkdir(parents=True)
    done = run("demo", "--dataset", "cifar10", "--zoo", "zoo", "--folder", "runs", cwd=tmp_path)
    assert done.returncode == 1
    assert_facts(done.stderr, "Error: | zoo/cifar10 | standard.safetensors | keep*.safetensors")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--zoo", "."), "--zoo | --dataset cifar10"),
        (("--dataset", "cifar10", "--zoo", "nowhere"), "--zoo | nowhere | does not exist"),
        (("--dataset", "cifar10", "--epochs", "3"), "--epochs"),
        (("--dataset", "imagenet"), "--dataset | digits | cifar10=FOLDER"),
    ],
)
def test_demo_refuses_options_that_contradict_each_other(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run("demo", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert_facts(done.stderr, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_serves_and_measures_the_zoo(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"CIFAR-10 is missing in {DATA}")
    printed = succeed("demo", "--dataset", f"cifar10={DATA}", "--limit", "20", "--folder", "runs", cwd=tmp_path)
    members = [path.stem for path in sorted((ROOT / "zoo/cifar10").glob("keep*.safetensors"))]
    assert len(members) >= 3
    assert re.findall(r"^  (\S+) +\d+ of 10000 test images correct, \d+ epochs$", printed, re.MULTILINE) == [*members, "standard"]
    assert "largest difference 0 4. measure the" in " ".join(printed.split())
    (folder,) = (tmp_path / "runs").iterdir()
    result = json.loads((folder / "noise.json").read_text())
    assert [target["name"] for target in result["targets"]] == ["ensemble", *sorted(members), "standard"]
    assert result["data"]["n"] == 20
