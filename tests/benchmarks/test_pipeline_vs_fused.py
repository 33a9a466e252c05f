"""The benchmark of fused graphs: comparisons, result, page and figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common.figures import exit_status
from benchmarks.common.forms import WrongAnswerError
from benchmarks.fused.in_process import compute_figures, measure_in_process
from benchmarks.fused.page import page
from benchmarks.fused.served import FUSED, IN_PROCESS, PIPELINE
from benchmarks.pipeline_vs_fused import SCHEMA, Effort, measure
from tests.support import tiny
from tests.support.checkout import ROOT

SCRIPT = ROOT / "benchmarks" / "pipeline_vs_fused.py"
EFFORT = Effort(rounds=2, seconds=0.1, warm_s=0.01, seconds_in_process=0.005, sizes=(1, 2))
MEMBERS = [tiny.member(f"member{seed}", seed) for seed in range(2)]
DESCRIPTION = {"member_spec": {"arch": "resnet18", "keep": 0.3, "blocks": [0, 1, 2], "width": [16], "trained": False}, "seed": 0}


def logits(images: tiny.Array) -> tiny.Array:
    return np.stack([tiny.logits(seed, images) for seed in range(2)]).astype(np.float32)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """The result for both forms of linear members on real Tritons, as the script writes it."""
    images = tiny.images(64)
    measured = measure({16: MEMBERS}, logits(images), images, EFFORT, batches=(1, 8))
    complete = {**measured, **DESCRIPTION, "quick": True, "note": None, "duration_s": 1.0}
    parsed: dict[str, Any] = json.loads(json.dumps(complete, allow_nan=False))
    return parsed


def test_both_forms_are_timed_in_every_setting(result: dict[str, Any]) -> None:
    assert result["schema"] == SCHEMA == "defensemble.benchmark.pipeline_vs_fused/1"
    assert {"rounds", "hardware", "versions", "git_commit", "measured_at"} <= set(result)
    assert [entry["members"] for entry in result["served"]] == [1, 2]
    for entry in result["served"]:
        assert [(setting["callers"], setting["batch"]) for setting in entry["settings"]] == [(1, 1), (1, 8), (8, 1), (8, 8)]
        for setting in entry["settings"]:
            assert set(setting["forms"]) == {PIPELINE, FUSED, IN_PROCESS}
            for form in setting["forms"].values():
                assert len(form["images_per_s"]["rounds"]) == 2
                assert form["call_ms"]["n"] > 0
                assert 0 < form["call_ms"]["p50"] < 1000
            rates = [setting["forms"][name]["images_per_s"]["rounds"] for name in (FUSED, PIPELINE)]
            ratios = [fused / pipeline for fused, pipeline in zip(*rates, strict=True)]
            assert setting["fused_by_pipeline"]["rounds"] == pytest.approx(ratios, rel=1e-3)
            assert all(duration["median"] > 0 for duration in setting["server_processor_ms_per_image"].values())
        for memory in entry["memory"].values():
            assert min(memory.values()) > 10_000_000


def test_the_cost_in_process_is_relative_to_single_members(result: dict[str, Any]) -> None:
    costs = result["in_process"]["16"]
    assert [(cost["batch"], cost["members"]) for cost in costs] == [(1, 1), (1, 2), (8, 1), (8, 2)]
    for cost in costs:
        assert cost["fused_by_singles"]["median"] == pytest.approx(cost["fused_ms"] / (cost["members"] * cost["single_ms"]), rel=0.7)


def test_the_page_shows_the_result(result: dict[str, Any]) -> None:
    text = page({**result, "figures": compute_figures({"16": [cost_of(16, 2, 1.1)]})}, "result.json")
    assert "A quick run" in text
    assert "[result.json](result.json)" in text
    assert "the largest is 1.10: it holds" in text
    for entry in result["served"]:
        for setting in entry["settings"]:
            assert f"| {entry['members']} | {setting['batch']} | " in text
            assert f"{setting['fused_by_pipeline']['median']:.2f}" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 250
    noted_text = page({**result, "note": "Others worked.", "figures": compute_figures({"16": [cost_of(16, 2, 1.3)]})}, "result.json")
    assert "Others worked." in noted_text
    assert "the largest is 1.30: missed" in noted_text


def cost_of(batch: int, members: int, ratio: float) -> dict[str, Any]:
    return {"batch": batch, "members": members, "fused_by_singles": {"median": ratio}}


@pytest.mark.parametrize(("ratio", "holds"), [(1.2, True), (1.21, False)])
def test_a_figure_may_equal_its_goal(ratio: float, holds: bool) -> None:
    figures = compute_figures({"16": [cost_of(1, 4, 9.0), cost_of(16, 4, ratio), cost_of(64, 4, 1.0)], "64": [cost_of(16, 4, 9.0)]})
    assert set(figures) == {"in_process_width_16_batch_16_members_4", "in_process_width_16_batch_64_members_4"}
    assert figures["in_process_width_16_batch_16_members_4"] == {"value": ratio, "goal": "<= 1.2", "holds": holds}
    assert exit_status(figures) == (0 if holds else 1)


def test_members_are_compared_with_one_on_the_same_images() -> None:
    costs = measure_in_process(MEMBERS, tiny.images(4), rounds=3, seconds=0.001, sizes=(2,), batches=(4,))
    assert [(cost["members"], cost["batch"], len(cost["fused_by_singles"]["rounds"])) for cost in costs] == [(2, 4, 3)]


def test_wrong_outputs_are_reported_before_timing() -> None:
    images = tiny.images(64)
    with pytest.raises(WrongAnswerError, match="pipeline"):
        measure({16: MEMBERS}, logits(images)[::-1], images, Effort(1, 60.0, 0.0, 0.001, sizes=(1,)), batches=(1,))


def test_help_lists_the_options() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--json FILE", "--quick", "--rounds", "--note", "--seed", "Examples:"):
        assert option in done.stdout


@pytest.mark.slow
def test_a_quick_run_writes_its_result_and_page(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick", "--json", str(out)], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    output = json.loads(out.read_text())
    assert output["quick"] is True
    assert [entry["members"] for entry in output["served"]] == [1, 4]
    assert done.returncode == exit_status(output["figures"])
    assert out.with_suffix(".md").read_text() == page(output, "result.json")
