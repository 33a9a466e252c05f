"""The soak: slopes, figures, the page, and a short real one."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.aborting.giving_up import ABORTED, PLAIN, REFUSED, Outcome
from benchmarks.common.figures import exit_status
from benchmarks.editing.answers import Verdict
from benchmarks.faulting import soak_page
from benchmarks.faulting.soak_result import BOUNDS, build_soak_result, gain
from benchmarks.faulting.soaking import Sample, SoakRun
from benchmarks.faults import SOAK_SCHEMA, main, soak_members
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.measured import RUN

TIMES = [float(second) for second in range(0, 400, 2)]


def test_a_gain_is_the_slope_of_the_second_half() -> None:
    noise = np.random.default_rng(1).normal(0, 1, len(TIMES))
    warm_up = [50.0 if time < 200 else 0.0 for time in TIMES]
    grows = gain(TIMES, [before + 0.1 * time + error for before, time, error in zip(warm_up, TIMES, noise, strict=True)], 1.0)
    assert grows is not None
    assert grows["low"] < 0.1 * grows["duration_s"] < grows["high"]
    assert grows["high"] - grows["low"] < 3
    flat = gain(TIMES, [1e8 + 1e6 * error for error in noise], 1e6)
    assert flat is not None
    assert flat["low"] < 0 < flat["high"]
    assert flat["mean"] == pytest.approx(100, abs=1)
    assert gain(TIMES[:20], [1.0] * 20, 1.0) is None


def run_with(gained_files: int = 0, **values: Any) -> SoakRun:
    files = [60 + int(gained_files * time / 400) for time in TIMES]
    samples = [Sample(time, 7, 10**8, open_files, 40, 10**7, 0) for time, open_files in zip(TIMES, files, strict=True)]
    outcomes = [Outcome("grpc", "cancel", ABORTED, 0.1), Outcome("grpc", PLAIN, PLAIN, 0.1), Outcome("grpc", PLAIN, REFUSED, 0.1)]
    known: dict[str, Any] = {"ended": 400.0, "samples": samples, "edits": 3, "verdict": Verdict(calls=9), "aborts": outcomes}
    return SoakRun(0.0, **{**known, "probes": [(8, "")], **values})


@pytest.mark.parametrize(
    ("missed", "run"),
    [
        ([], run_with()),
        (["wrong_answers"], run_with(verdict=Verdict(calls=9, stale=["call 2"]))),
        (["failed_calls"], run_with(verdict=Verdict(calls=9, failed=["call 2"]))),
        (["failed_edits"], run_with(failed_edits=["add"])),
        (["lost_edits"], run_with(lost_edits=1)),
        (["failed_probes"], run_with(probes=[(8, "ConnectionFailedError")])),
        (["left_behind"], run_with(left=["port 1"])),
        (["open_files_gained"], run_with(gained_files=100)),
        ([f"{name}_gained" for name in BOUNDS], run_with(samples=[])),
    ],
)
def test_a_missed_goal_of_a_soak_ends_with_status_1(missed: list[str], run: SoakRun) -> None:
    result = json.loads(json.dumps(build_soak_result(run), allow_nan=False))
    assert [name for name, figure in result["figures"].items() if not figure["holds"]] == missed
    assert exit_status(result["figures"]) == (1 if missed else 0)
    assert (result["aborts"], result["refused_aborts"]) == (1, 1)


def complete(result: dict[str, Any]) -> dict[str, Any]:
    """Add the description of the machine, which the page needs."""
    return {
        **RUN,
        "quick": True,
        "note": None,
        "members": 3,
        "image_shape": [1, 4, 4],
        "tolerance": 1e-5,
        **result,
    }


def test_the_page_of_a_soak_shows_the_result() -> None:
    text = soak_page.page(complete(build_soak_result(run_with())), "soak.json")
    assert_facts(text, "[soak.json](soak.json) | faults.py --soak --json docs/results/soak.json | 6.7 minutes")
    assert text.count("| holds |") == 12
    bad = soak_page.page(complete(build_soak_result(run_with(samples=[], failed_edits=["add: refused"]))), "soak.json")
    assert_facts(bad, "too short | add: refused | **missed**")
    assert max(len(line) for shown in (text, bad) for line in shown.splitlines() if not line.startswith("|")) <= 250


def test_a_soak_injects_no_faults() -> None:
    refused = CliRunner().invoke(main, ["--soak", "1", "--only", "killed"])
    assert (refused.exit_code, "--only" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_a_short_soak() -> None:
    """Edits, probes and aborted calls of a real server for 15 s: nothing is wrong, fails, or is left behind."""
    threads_before = threading.enumerate()
    members = [tiny.member(f"m{seed}", seed) for seed in range(5)]
    later = [tiny.member("m9", 9), tiny.member("m0", 8, mask_digest="another")]
    result = soak_members(members, later, tiny.images(32), 15.0, seed=2)
    assert json.loads(json.dumps(result, allow_nan=False))["schema"] == SOAK_SCHEMA
    counts = {name: figure["value"] for name, figure in result["figures"].items() if not name.endswith("_gained")}
    assert counts == dict.fromkeys(counts, 0)
    assert min(result[key] for key in ("calls", "edits", "aborts", "probe_rounds")) > 0
    assert [thread.name for thread in threading.enumerate() if thread not in threads_before] == []
