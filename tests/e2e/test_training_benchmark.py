"""The benchmark of training: both forms do the same steps; result and figure."""

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
from benchmarks.training_overhead import EPOCH, SCHEMA, DifferentWeightsError, Effort, cifar10_task, compute_figures, measure, random_bytes
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
    harness_run, bare_run = harness(task), bare(task)
    assert same_weights(harness_run.weights, bare_run.weights)
    assert not same_weights(harness_run.weights, bare(replace(task, seed=4)).weights)
    assert 0 < bare_run.steps_s < bare_run.whole_s


def test_a_result_has_all_rounds_of_both_forms(task: Task) -> None:
    messages: list[str] = []
    result = measure(task, Effort(rounds=2, steps=3), on_progress=messages.append)
    check_result(json.loads(json.dumps(result, allow_nan=False)), rounds=2, steps=3)
    assert result["data"] == "random bytes, seed 0"
    assert sum(line.startswith("round ") for line in messages) == 2


def test_different_steps_are_rejected(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(task: Task) -> Run:
        return replace(bare(task), weights={"weight": torch.zeros(1)})

    monkeypatch.setitem(FORMS, "bare", other)
    with pytest.raises(DifferentWeightsError, match="different weights"):
        measure(task, Effort(rounds=1, steps=3))


@pytest.mark.parametrize(("epoch", "status"), [(1.05, 0), (1.0501, 1)])
def test_the_figure_may_equal_its_goal(epoch: float, status: int) -> None:
    assert exit_status(compute_figures(epoch)) == status


def test_random_bytes_replace_a_missing_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    task = cifar10_task(2, 5, None)
    assert task.dataset.source == "random bytes, seed 5"
    assert task.outline() == "resnet18 of width 16 on 3x32x32, 2 steps of 128 images"


def test_help_lists_the_options() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--json FILE", "--quick", "--rounds", "--steps", "--seed", "--dataset", "Examples:"):
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
