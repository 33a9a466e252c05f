"""The benchmark of training: that both forms do the same steps, what it writes, and when it says that the figure does not hold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.figures import exit_status
from benchmarks.training.forms import FORMS, Run, Task, bare, harness, same_weights
from benchmarks.training_overhead import EPOCH, SCHEMA, DifferentWeightsError, Effort, cifar10_task, figures_of, measure, random_bytes
from defensemble_training import ModelSpec, recipe_from_preset
from tests.support.checkout import ROOT

SCRIPT = ROOT / "benchmarks" / "training_overhead.py"


@pytest.fixture
def task() -> Task:
    """Three steps of eight images of 3x8x8."""
    spec = ModelSpec("resnet18", 0.7, (0, 1), width=2, mean=(0.5,) * 3, std=(0.5,) * 3, input_shape=(3, 8, 8))
    return Task(spec, random_bytes(24, (3, 8, 8), seed=0), recipe_from_preset("fast", epochs=1, batch_size=8), seed=3)


def check_result(result: dict[str, Any], rounds: int, steps: int) -> None:
    assert result["schema"] == SCHEMA == "defensemble.benchmark.training_overhead/1"
    assert {"seed", "data", "hardware", "versions", "git_commit", "measured_at", "recipe"} <= set(result)
    assert (result["rounds"], result["steps"], result["epoch_steps"]) == (rounds, steps, EPOCH)
    assert set(result["forms"]) == {"harness", "bare"}
    for form in result["forms"].values():
        for measured in form.values():
            assert len(measured["rounds"]) == rounds
            assert measured["min"] <= measured["median"] <= measured["max"]
        assert 0 < form["step_ms"]["min"]
        assert 0 < form["whole_call_s"]["min"]
    assert set(result["ratios"]) == {"step", "step_cpu", "epoch", "whole_call"}
    figure = result["figures"]["epoch_harness_by_bare"]
    assert figure == {"value": result["ratios"]["epoch"]["median"], "goal": "<= 1.05", "holds": figure["value"] <= 1.05}


def test_both_forms_do_the_same_steps(task: Task) -> None:
    ours, theirs = harness(task), bare(task)
    assert same_weights(ours.weights, theirs.weights)
    assert not same_weights(ours.weights, bare(replace(task, seed=4)).weights)
    assert 0 < theirs.steps_s < theirs.whole_s


def test_a_result_has_all_rounds_of_both(task: Task) -> None:
    said: list[str] = []
    result = measure(task, Effort(rounds=2, steps=3), on_progress=said.append)
    check_result(json.loads(json.dumps(result, allow_nan=False)), rounds=2, steps=3)
    assert result["data"] == "random bytes, seed 0"
    assert sum(line.startswith("round ") for line in said) == 2


def test_other_steps_are_not_compared(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(task: Task) -> Run:
        return replace(bare(task), weights={"weight": torch.zeros(1)})

    monkeypatch.setitem(FORMS, "bare", other)
    with pytest.raises(DifferentWeightsError, match="different weights"):
        measure(task, Effort(rounds=1, steps=3))


@pytest.mark.parametrize(("epoch", "status"), [(1.05, 0), (1.0501, 1)])
def test_the_figure_holds_to_its_goal(epoch: float, status: int) -> None:
    assert exit_status(figures_of(epoch)) == status


def test_random_bytes_stand_in_for_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    task = cifar10_task(2, 5, None)
    assert task.dataset.source == "random bytes, seed 5"
    assert task.outline() == "resnet18 of width 16 on 3x32x32, 2 steps of 128 images"


def test_help_names_the_options() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--json FILE", "--quick", "--rounds", "--steps", "--seed", "--data-dir", "Examples:"):
        assert option in done.stdout


@pytest.mark.slow
def test_a_quick_run_writes_its_result(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick", "--json", str(out)], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    result = json.loads(out.read_text())
    check_result(result, rounds=3, steps=12)
    assert result["quick"] is True
    assert done.returncode == exit_status(result["figures"])
