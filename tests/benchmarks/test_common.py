"""Shared code of the benchmarks: options, pages, and CIFAR-10 with the class indices of the zoo."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.common import cifar10
from benchmarks.common.cifar10 import cifar10_for
from benchmarks.common.command_line import Options, benchmark_command, run
from benchmarks.common.markdown import table
from defensemble_training import DataError, Dataset, Part, TrainingError, build, save_checkpoint
from tests.support.checkout import ROOT
from tests.support.untrained import record_of, tiny_spec

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py") if path.stem not in ("zoo_training", "robustness"))
PAGES = {
    "aborted_calls": "aborting.page",
    "averaging_cost": "averaging_cost",
    "client": "calling.page",
    "edit_under_load": "editing.page",
    "faults": "faulting.page",
    "mask_aware": "masking.page",
    "overload": "faulting.overload_page",
    "peers": "peering.page",
    "pipeline_vs_fused": "fused.page",
    "precisions": "precision.page",
    "precisions_without_vnni": "precision.page",
    "probes": "probes",
    "restart_time": "restart_time",
    "serving_overhead": "serving.page",
    "soak": "faulting.soak_page",
    "training_overhead": "training_overhead",
    "where_a_call_goes": "tracing.page",
    "zoo_cifar10": "zoo.page",
}
KEPT = sorted(path.stem for path in (ROOT / "docs/results").glob("*.json"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_common_options(script: str) -> None:
    done = CliRunner().invoke(importlib.import_module(f"benchmarks.{script}").main, ["--help"])
    assert done.exit_code == 0
    for text in ("--json FILE", "--quick", "--note TEXT", "--seed", f"python benchmarks/{script}.py --quick"):
        assert text in done.output


@pytest.mark.parametrize("arguments", [["--seconds", "nan"], ["--seconds", "inf"], ["--seed", str(2**32)], ["--rounds", "0"]])
def test_numbers_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(importlib.import_module("benchmarks.serving_overhead").main, arguments)
    assert (done.exit_code, arguments[0] in done.stderr) == (2, True)


@pytest.mark.parametrize("name", KEPT)
def test_every_kept_page_matches_its_json(name: str) -> None:
    path = ROOT / f"docs/results/{name}.json"
    page = importlib.import_module(f"benchmarks.{PAGES[name]}").page(json.loads(path.read_text()), path.name)
    assert page == path.with_suffix(".md").read_text()


def test_every_kept_result_has_its_page() -> None:
    assert set(KEPT) <= set(PAGES)
    assert [importlib.import_module(f"benchmarks.{module}").page for module in PAGES.values()]


def benchmark_that(holds: bool, error: Exception | None = None) -> click.Command:
    @benchmark_command("example", quick="fewer calls", seed="nothing")
    def main(options: Options) -> NoReturn:
        def measure(on_progress: object) -> dict[str, object]:
            if error is not None:
                raise error
            return {"seed": options.seed, "figures": {"figure": {"value": 1, "goal": "1", "holds": holds}}}

        run(measure, lambda result, name: f"# {name}, seed {result['seed']}", options, errors=(TrainingError,), cores=None)

    return main


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_a_run_writes_its_result_and_its_page(tmp_path: Path, holds: bool, status: int) -> None:
    out = tmp_path / "example.json"
    earlier = [tmp_path / "earlier.json", tmp_path / "earlier.md"]
    for file in earlier:
        file.write_text("old")
        file.with_stem("example").hardlink_to(file)
    done = CliRunner().invoke(benchmark_that(holds), ["--json", str(out), "--quick", "--note", "A note.", "--seed", "7"])
    assert done.exit_code == status
    result = json.loads(out.read_text())
    assert (result["seed"], result["quick"], result["note"]) == (7, True, "A note.")
    assert out.with_suffix(".md").read_text() == "# example.json, seed 7"
    assert [file.read_text() for file in earlier] == ["old", "old"], "replaced atomically, not overwritten"


def test_an_error_of_a_run_is_shown_without_a_traceback(tmp_path: Path) -> None:
    done = CliRunner().invoke(benchmark_that(True, TrainingError("no data")), ["--json", str(tmp_path / "example.json")])
    assert (done.exit_code, done.stderr) == (1, "Error: no data\n")
    assert list(tmp_path.iterdir()) == []


def test_a_table_may_have_empty_cells() -> None:
    assert table(("a", ""), [("1", "2")]) == "| a | |\n|---|---|\n| 1 | 2 |"


# CIFAR-10


def checkpoint(folder: Path, name: str, class_names: tuple[str, ...]) -> Path:
    spec = tiny_spec()
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, build(spec), spec, replace(record_of(spec), class_names=class_names))
    return path


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Replace CIFAR-10 by a dataset whose test image i is of class i. Returns its class names."""
    count = tiny_spec().num_classes
    part = Part(np.zeros((count, 3, 8, 8), np.uint8), np.arange(count, dtype=np.int64))
    class_names = tuple(f"class{index}" for index in range(count))
    data = Dataset("cifar10", class_names, part, part, (0.5,) * 3, (0.5,) * 3, flip=True, source="a test", digest="0" * 16)
    monkeypatch.setattr(cifar10, "load_dataset", lambda *arguments, **options: data)
    return class_names


def test_labels_are_the_class_indices_of_the_networks(tmp_path: Path, names: tuple[str, ...]) -> None:
    rotated = (*names[1:], names[0])
    data = cifar10_for([checkpoint(tmp_path, "a", rotated), checkpoint(tmp_path, "b", rotated)], None)
    assert [rotated[label] for label in data.test.labels] == list(names)


def test_networks_with_different_class_indices_are_rejected(tmp_path: Path, names: tuple[str, ...]) -> None:
    paths = [checkpoint(tmp_path, "a", names), checkpoint(tmp_path, "b", names[::-1])]
    with pytest.raises(DataError, match=r"a\.safetensors.*b\.safetensors"):
        cifar10_for(paths, None)
    with pytest.raises(DataError):
        cifar10_for([], None)
