"""The benchmark of serving: timing, comparisons, figures and result."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from benchmarks.common.answers import expected_outputs
from benchmarks.common.figures import exit_status, round_ratios
from benchmarks.common.forms import Form, WrongAnswerError, check_answers
from benchmarks.common.processes import pss_bytes
from benchmarks.common.timing import Timing, calls_in_window, time_form
from benchmarks.serving.figures import SETTINGS, Setting, build_result, compute_figures
from benchmarks.serving.forms import forms_in_process
from benchmarks.serving.page import page
from benchmarks.serving_overhead import SCHEMA, Effort, measure
from defensemble_export import ExportedMember
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.facts import assert_facts, raises

SCRIPT = ROOT / "benchmarks" / "serving_overhead.py"
SEEDS = {"alpha": 1, "beta": 2, "gamma": 3}


def members() -> list[ExportedMember]:
    return [ExportedMember(name, tiny.linear_onnx(seed), tiny.SHAPE, 3, tiny.CLASSES, f"digest-of-{name}") for name, seed in SEEDS.items()]


def expected(images: tiny.Array) -> tiny.Array:
    probabilities: tiny.Array = np.mean([tiny.softmax(tiny.logits(seed, images)) for seed in SEEDS.values()], axis=0)
    return probabilities


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, **options)


# Timing


def test_calls_count_by_their_fraction_in_the_window() -> None:
    calls = [(0.0, 2.0), (2.0, 3.0), (3.0, 7.0), (7.0, 8.0)]
    assert calls_in_window(calls, 1.0, 4.0) == pytest.approx(0.5 + 1 + 0.25)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_adjacent_windows_count_every_call_once(durations: list[float], first: float, second: float) -> None:
    ends = np.cumsum(durations)
    calls = list(zip([0.0, *ends[:-1]], ends, strict=True))
    cuts = sorted([0.0, first * ends[-1], second * ends[-1], ends[-1]])
    parts = [calls_in_window(calls, begin, end) for begin, end in itertools.pairwise(cuts)]
    assert sum(parts) == pytest.approx(len(calls))


def test_a_form_is_timed_with_concurrent_callers() -> None:
    images = tiny.images(6).reshape(3, 2, *tiny.SHAPE)
    seen: set[bytes] = set()

    def predict(batch: tiny.Array) -> tiny.Array:
        seen.add(batch.tobytes())
        time.sleep(0.02)
        return batch

    timing = time_form(predict, images, warm_s=0.05, seconds=0.3)
    assert seen == {batch.tobytes() for batch in images}
    one_caller, all_callers = 2 / 0.02, 3 * 2 / 0.02
    assert one_caller < timing.images_per_s <= all_callers * 1.001  # a sleep is never shorter
    assert min(timing.calls_ms) >= 20


def test_an_exception_of_a_caller_ends_the_timing() -> None:
    def predict(batch: tiny.Array) -> tiny.Array:
        raise ArithmeticError("no response")

    with pytest.raises(ArithmeticError, match="no response"):
        time_form(predict, tiny.images(4).reshape(4, 1, *tiny.SHAPE), warm_s=5.0, seconds=5.0)


def test_pss_is_at_most_the_resident_set() -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 1_000_000 < pss_bytes(os.getpid()) <= resident * 1.1


# Forms


def test_every_form_in_process_matches_numpy() -> None:
    images = tiny.images(5)
    with forms_in_process(members()) as forms:
        assert len({form.name for form in forms}) == 8
        assert sum(form.spins for form in forms) == 4
        for form in forms:
            assert check_answers(form, images, expected(images)) < 1e-5


def test_expected_probabilities_are_the_mean_of_softmaxes() -> None:
    images = tiny.images(4)
    logits = np.stack([tiny.logits(seed, images) for seed in SEEDS.values()])
    np.testing.assert_allclose(expected_outputs(logits)["probabilities"], expected(images), atol=1e-12)


@pytest.mark.parametrize(("output", "facts"), [(np.zeros((5, 2)), "(5, 2)"), (np.full((5, 3), np.nan), "inf"), (np.ones((5, 3)), "0.667")])
def test_wrong_outputs_are_rejected(output: tiny.Array, facts: str) -> None:
    correct = np.full((5, 3), 1 / 3)
    with raises(WrongAnswerError, facts):
        check_answers(Form("wrong", lambda images: output), tiny.images(5), correct)


# Figures

FORMS = [
    Form("served", lambda images: images, protocol="grpc"),
    Form("sleeping", lambda images: images),
    Form("spinning", lambda images: images, spins=True),
]


def timings(**rates: list[float] | None) -> dict[str, list[Timing] | None]:
    return {name: None if form_rates is None else [Timing(rate, (1.0, 2.0)) for rate in form_rates] for name, form_rates in rates.items()}


def results(setting: Setting, **rates: list[float] | None) -> dict[str, Any]:
    return {setting.key: build_result(setting, FORMS, timings(**rates))}


def test_ratios_are_within_a_round() -> None:
    assert round_ratios([1.0, 4.0], [2.0, 8.0]) == [0.5, 0.5]


def test_the_best_form_has_the_best_median() -> None:
    setting = Setting(8, 16, 0.9)
    (result,) = results(setting, served=[90.0, 95.0, 50.0], sleeping=[100.0, 100.0, 50.0], spinning=[10.0, 10.0, 300.0]).values()
    assert result["best_in_process"] == "sleeping"
    assert result["ratios"]["grpc"]["to_best"] == {"median": 0.95, "min": 0.9, "max": 1.0, "rounds": [0.9, 0.95, 1.0]}
    assert result["ratios"]["grpc"]["to_best_of_round"]["rounds"][2] == pytest.approx(50 / 300, abs=1e-4)


@pytest.mark.parametrize(("rate", "holds"), [(93.0, True), (92.9, False)])
def test_a_figure_may_equal_its_lower_goal(rate: float, holds: bool) -> None:
    setting = Setting(8, 16, 0.93)
    figures = compute_figures(results(setting, served=[rate], sleeping=[100.0], spinning=[90.0]), [setting])
    assert figures == {"grpc_8_callers_batch_16": {"value": round(rate / 100, 4), "goal": ">= 0.93", "holds": holds}}
    assert exit_status(figures) == (0 if holds else 1)


@pytest.mark.parametrize(("spinning", "value"), [(True, 0.5), (False, 0.8)])
def test_spinning_forms_count_only_if_the_setting_includes_them(spinning: bool, value: float) -> None:
    setting = Setting(1, 1, 0.6, spinning=spinning)
    figures = compute_figures(results(setting, served=[80.0], sleeping=[100.0], spinning=[160.0]), [setting])
    assert figures["grpc_1_caller_batch_1"] == {"value": value, "goal": ">= 0.60", "holds": not spinning}


def test_a_failed_form_has_no_value_and_misses_its_goal() -> None:
    setting = Setting(8, 1, 0.78)
    figures = compute_figures(results(setting, served=None, sleeping=[100.0], spinning=[100.0]), [setting])
    assert figures["grpc_8_callers_batch_1"] == {"value": None, "goal": ">= 0.78", "holds": False}
    assert exit_status(figures) == 1


def test_a_result_without_figures_is_a_failure() -> None:
    assert exit_status({}) == 1
    assert exit_status({"first": {"holds": True}, "second": {"holds": True}}) == 0


# Results


def check_result(result: dict[str, Any], rounds: int) -> None:
    assert result["schema"] == SCHEMA == "defensemble.benchmark.serving_overhead/1"
    assert {"seed", "rounds", "hardware", "versions", "git_commit", "measured_at"} <= set(result)
    assert {"onnx", "onnxruntime", "numpy", "python"} <= set(result["versions"])
    assert result["server"] == {"name": "triton", "version": "2.51.0"}
    assert set(result["settings"]) == {setting.key for setting in SETTINGS}
    for setting in result["settings"].values():
        assert len(setting["forms"]) == 10
        for form in setting["forms"].values():
            assert len(form["images_per_s"]["rounds"]) == rounds
            assert 0 < form["images_per_s"]["min"] <= form["images_per_s"]["median"] <= form["images_per_s"]["max"]
    process = result["server_process"]
    for memory in (process["memory_idle"], process["memory_after_load"]):
        assert memory["triton_pss_bytes"] > memory["supervisor_pss_bytes"] > 1_000_000
    for duration in process["start"].values():
        assert 0 < duration["median"] < 60
    goals = {f"{protocol}_{setting.key}": setting.goal for setting in SETTINGS for protocol in ("grpc", "http")}
    assert set(result["figures"]) == set(goals)
    for name, figure in result["figures"].items():
        assert figure["goal"] == f">= {goals[name]:.2f}"
        assert figure["holds"] is (figure["value"] >= goals[name])
    assert result["failures"] == {}


@pytest.mark.slow
def test_a_complete_run_on_a_real_triton() -> None:
    images = tiny.images(128)
    messages: list[str] = []
    effort = Effort(rounds=2, seconds=0.05, warm_s=0.01, starts=2)
    result = measure(members(), images, expected(images), effort, on_progress=messages.append)
    check_result(json.loads(json.dumps(result, allow_nan=False)), rounds=2)
    assert result["largest_difference"] < 1e-5
    assert sum(line.startswith("round ") for line in messages) == 2 * len(SETTINGS)


def test_wrong_outputs_are_reported_before_timing() -> None:
    images = tiny.images(128)
    with pytest.raises(WrongAnswerError, match="Triton, gRPC"):
        measure(members(), images, expected(images) + 0.01, Effort(rounds=1, seconds=60.0, warm_s=0.0, starts=1))


def test_help_lists_the_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for option in ("--json FILE", "--quick", "--rounds", "--seconds", "--seed", "Examples:"):
        assert option in done.stdout


def test_one_core_is_rejected() -> None:
    core = min(os.sched_getaffinity(0))
    program = f"import os, runpy; os.sched_setaffinity(0, {{{core}}}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert_facts(done.stderr, "2 cores | 1")


@pytest.mark.slow
def test_a_quick_run_writes_its_result(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = run("--quick", "--json", str(out))
    assert "Traceback" not in done.stderr
    result = json.loads(out.read_text())
    check_result(result, rounds=1)
    assert result["quick"] is True
    assert result["member_spec"] == {"arch": "resnet18", "keep": 0.3, "blocks": [0, 1, 2], "width": 16, "trained": False}
    assert done.returncode == exit_status(result["figures"])
    assert out.with_suffix(".md").read_text() == page(result, out.name)
