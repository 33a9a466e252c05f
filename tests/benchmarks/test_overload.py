"""The overload of a server: figures, the page, and the command. `tests/e2e/proxy/test_overload.py` has a real one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.common.figures import exit_status
from benchmarks.faulting.overload_figures import goodput_ratio, overload_figures
from benchmarks.faulting.overload_page import page
from benchmarks.faults import main
from tests.support.facts import assert_facts
from tests.support.measured import RUN


def row_with(factor: float, **values: Any) -> dict[str, Any]:
    return {
        "factor": factor,
        "rate_per_s": 40 * factor,
        "sent": 400,
        "unsent": 0,
        "answered": 150,
        "failures": {"NotReadyError": 250},
        "goodput_per_s": 38.0,
        "attainment": 0.9,
        "p50_ms": 100.0,
        "p99_ms": 240.0,
        "problem": None,
        "recovery_s": 0.3,
        "pss_before_bytes": 100_000_000,
        "pss_peak_bytes": 110_000_000,
        "pss_after_bytes": 105_000_000,
        "deaths": 0,
        **values,
    }


def records_with(**values: Any) -> list[dict[str, Any]]:
    """Two rounds over HTTP; `values` are those of the last row of the second one."""
    records = []
    for number in range(2):
        rows = [row_with(1.0, goodput_per_s=40.0), row_with(3.0, **(values if number else {}))]
        path = {"rows": rows, "goodput_ratio": goodput_ratio(rows)}
        record = {"round": number, "protocol": "http", "objective_ms": 250.0, "capacity_per_s": 40.0, "in_flight": 8}
        records.append({**record, "proxy": path, "direct": path})
    return records


def test_the_ratio_of_the_goodput() -> None:
    rows = [{"goodput_per_s": value} for value in (10.0, 20.0, 15.0)]
    assert goodput_ratio(rows) == 0.75
    assert goodput_ratio([*rows, {"goodput_per_s": None}]) is None
    assert goodput_ratio([{"goodput_per_s": 0.0}]) is None


@pytest.mark.parametrize(
    ("missed", "values"),
    [
        ([], {}),
        (["goodput_ratio"], {"goodput_per_s": 20.0}),
        (["goodput_ratio"], {"goodput_per_s": None}),
        (["p99_ms"], {"p99_ms": 501.0}),
        (["memory_gained_mb"], {"pss_peak_bytes": 133_000_000}),
        (["recovery_s"], {"recovery_s": 2.1}),
        (["recovery_s"], {"recovery_s": None}),
        (["unanswered"], {"failures": {"DeadlineExceededError": 1}}),
        (["deaths"], {"deaths": 1}),
    ],
)
def test_a_missed_goal_of_an_overload_ends_with_status_1(missed: list[str], values: dict[str, Any]) -> None:
    figures = json.loads(json.dumps(overload_figures(records_with(**values)), allow_nan=False))
    assert [name for name, figure in figures.items() if not figure["holds"]] == [f"http.{name}" for name in missed]
    assert exit_status(figures) == (1 if missed else 0)


def result_with(**values: Any) -> dict[str, Any]:
    records = records_with(**values)
    return {
        **RUN,
        "quick": True,
        "note": "Others worked.",
        "members": 3,
        "image_shape": [1, 4, 4],
        "rounds": 2,
        "objective_ms": 250.0,
        "batch_size": 8,
        "step_s": 5.0,
        "records": records,
        "figures": overload_figures(records),
    }


def test_the_page_of_an_overload_shows_the_result() -> None:
    text = page(result_with(), "overload.json")
    assert_facts(text, "[overload.json](overload.json) | faults.py --overload --json docs/results/overload.json | Others worked.")
    assert text.count("| 3 | 120.0 | 400 | 150 | 250 NotReadyError | 38.0 | 100 | 240 | 110 | 0.30 |") == 2
    assert text.count("| holds |") == 6
    bad = page(result_with(recovery_s=None, goodput_per_s=None, deaths=1), "overload.json")
    assert_facts(bad, "never | not measured | Triton died | **missed**")
    assert max(len(line) for shown in (text, bad) for line in shown.splitlines() if not line.startswith("|")) <= 250


@pytest.mark.parametrize("other", [["--only", "killed"], ["--soak", "1"]])
def test_an_overload_injects_no_faults(other: list[str]) -> None:
    refused = CliRunner().invoke(main, ["--overload", *other])
    assert (refused.exit_code, "--overload" in refused.stderr) == (2, True)
