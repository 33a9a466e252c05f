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
from benchmarks.common.in_process import forms_in_process
from benchmarks.common.processes import pss_bytes
from benchmarks.common.timing import Timing, calls_in_window, time_form
from benchmarks.serving.figures import SETTINGS, Setting, build_result, compute_figures
from benchmarks.serving.page import page
from benchmarks.serving_overhead import SCHEMA, Effort, measure
from defensemble_export import ExportedMember
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.facts import assert_facts, raises
from tests.support.tiny_members import SEEDS, expected, members

ONE = ExportedMember("one", tiny.linear_onnx(4), tiny.SHAPE, 3, tiny.CLASSES, "digest-of-one")
SCRIPT = ROOT / "benchmarks" / "serving_overhead.py"


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
        assert len({form.name for form in forms}) == 5
        assert sum(form.spins for form in forms) == 1
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
    Form("gRPC", lambda images: images, protocol="grpc"),
    Form("HTTP", lambda images: images, protocol="http"),
    Form("FastAPI", lambda images: images, protocol="fastapi"),
    Form("sleeping", lambda images: images),
    Form("spinning", lambda images: images, spins=True),
]


def results(setting: Setting, rates: dict[str, list[float] | None], calls_ms: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    """Build a result; forms without stated rates have 100 images per second in each round."""
    rounds = max(len(form_rates) for form_rates in rates.values() if form_rates is not None)
    all_rates = {**{form.name: [100.0] * rounds for form in FORMS}, **rates}
    timings = {
        name: None if form_rates is None else [Timing(rate, calls_ms if name == "HTTP" else (1.0, 2.0)) for rate in form_rates]
        for name, form_rates in all_rates.items()
    }
    return {setting.key: build_result(setting, FORMS, timings)}


def test_ratios_are_within_a_round() -> None:
    assert round_ratios([1.0, 4.0], [2.0, 8.0]) == [0.5, 0.5]


def test_the_best_form_has_the_best_median() -> None:
    (result,) = results(
        Setting(8, 16, 0.9), {"HTTP": [90.0, 95.0, 50.0], "sleeping": [100.0, 100.0, 50.0], "spinning": [10.0, 10.0, 300.0]}
    ).values()
    assert result["best_in_process"] == "sleeping"
    assert result["ratios"]["http"]["to_best"] == {"median": 0.95, "min": 0.9, "max": 1.0, "rounds": [0.9, 0.95, 1.0]}


@pytest.mark.parametrize(("rate", "holds"), [(97.0, True), (96.9, False)])
def test_a_figure_may_equal_its_lower_goal(rate: float, holds: bool) -> None:
    setting = Setting(8, 16, 0.97, grpc=0.9)
    figures = compute_figures(results(setting, {"HTTP": [rate], "gRPC": [87.3], "FastAPI": [95.0]}), [setting])
    assert figures == {
        "8_callers_batch_16_http_to_in_process": {"value": round(rate / 100, 4), "goal": ">= 0.97", "holds": holds},
        "8_callers_batch_16_http_to_fastapi": {"value": round(rate / 95, 4), "goal": ">= 1.02", "holds": rate / 95 >= 1.02},
        "8_callers_batch_16_http_to_fastapi_p99": {"value": 1.0, "goal": "<= 1", "holds": True},
        "8_callers_batch_16_grpc_to_http": {"value": round(87.3 / rate, 4), "goal": ">= 0.9", "holds": True},
    }
    assert exit_status(figures) == (0 if holds and rate / 95 >= 1.02 else 1)


def test_the_99th_percentile_is_that_of_all_calls() -> None:
    setting = Setting(8, 16, 0.97)
    figures = compute_figures(results(setting, {"HTTP": [103.0, 103.0]}, (1.0,) * 99 + (3.0,)), [setting])
    assert figures["8_callers_batch_16_http_to_fastapi_p99"] == {"value": 1.5, "goal": "<= 1", "holds": False}


@pytest.mark.parametrize(("spinning", "value"), [(True, 0.5), (False, 0.8)])
def test_spinning_forms_count_only_if_the_setting_includes_them(spinning: bool, value: float) -> None:
    setting = Setting(1, 1, 0.6, spinning=spinning)
    figures = compute_figures(results(setting, {"HTTP": [80.0], "spinning": [160.0]}), [setting])
    assert figures["1_caller_batch_1_http_to_in_process"] == {"value": value, "goal": ">= 0.6", "holds": not spinning}


@pytest.mark.parametrize("failed", ["HTTP", "gRPC", "FastAPI"])
def test_a_failed_form_has_no_value_and_misses_its_goals(failed: str) -> None:
    setting = Setting(8, 1, 0.5, grpc=0.5)
    figures = compute_figures(results(setting, {"sleeping": [110.0], failed: None}), [setting])
    missed = {name for name, figure in figures.items() if figure["value"] is None and not figure["holds"]}
    of_http = {"http_to_in_process", "http_to_fastapi", "http_to_fastapi_p99", "grpc_to_http"}
    expected = {"HTTP": of_http, "gRPC": {"grpc_to_http"}, "FastAPI": {"http_to_fastapi", "http_to_fastapi_p99"}}
    assert missed == {f"8_callers_batch_1_{kind}" for kind in expected[failed]}
    assert exit_status(figures) == 1


def test_a_single_member_has_no_figure_of_fastapi() -> None:
    setting = Setting(8, 1, 0.7, one_member=True)
    forms = [form for form in FORMS if form.protocol != "fastapi"]
    result = build_result(setting, forms, {form.name: [Timing(100.0, (1.0,))] for form in forms})
    assert set(compute_figures({setting.key: result}, [setting])) == {"one_member_8_callers_batch_1_http_to_in_process"}


def test_a_result_without_figures_is_a_failure() -> None:
    assert exit_status({}) == 1
    assert exit_status({"first": {"holds": True}, "second": {"holds": True}}) == 0


# Results


def check_result(result: dict[str, Any], rounds: int) -> None:
    assert result["schema"] == SCHEMA == "defensemble.benchmark.serving_overhead/2"
    assert {"seed", "rounds", "hardware", "versions", "git_commit", "measured_at"} <= set(result)
    assert {"onnx", "onnxruntime", "numpy", "python"} <= set(result["versions"])
    assert result["server"] == {"name": "triton", "version": "2.51.0"}
    assert set(result["settings"]) == {setting.key for setting in SETTINGS}
    for key, setting in result["settings"].items():
        assert len(setting["forms"]) == (3 if key.startswith("one_member") else 8)
        for form in setting["forms"].values():
            assert len(form["images_per_s"]["rounds"]) == rounds
            assert 0 < form["images_per_s"]["min"] <= form["images_per_s"]["median"] <= form["images_per_s"]["max"]
    process = result["server_process"]
    for memory in (process["memory_idle"], process["memory_after_load"]):
        assert memory["triton_pss_bytes"] > memory["supervisor_pss_bytes"] > 1_000_000
    for duration in process["start"].values():
        assert 0 < duration["median"] < 60
    assert len(result["figures"]) == 3 * 4 + 1
    for figure in result["figures"].values():
        goal = float(figure["goal"].split()[1])
        assert figure["holds"] is (figure["value"] >= goal if ">=" in figure["goal"] else figure["value"] <= goal)
    assert result["failures"] == {}


@pytest.mark.slow
def test_a_complete_run_on_a_real_triton() -> None:
    images = tiny.images(128)
    messages: list[str] = []
    effort = Effort(rounds=2, seconds=0.05, warm_s=0.01, starts=2)
    result = measure(members(), ONE, images, expected(images), effort, on_progress=messages.append)
    check_result(json.loads(json.dumps(result, allow_nan=False)), rounds=2)
    assert result["largest_difference"] < 1e-5
    assert sum(line.startswith("round ") for line in messages) == 2 * len(SETTINGS)


def test_wrong_outputs_are_reported_before_timing() -> None:
    images = tiny.images(128)
    with pytest.raises(WrongAnswerError, match="Triton, gRPC"):
        measure(members(), ONE, images, expected(images) + 0.01, Effort(rounds=1, seconds=60.0, warm_s=0.0, starts=1))


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
    assert result["one_member"]["width"] == 8
    assert done.returncode == exit_status(result["figures"])
    assert out.with_suffix(".md").read_text() == page(result, out.name)
