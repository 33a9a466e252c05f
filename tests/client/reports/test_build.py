"""What a report states: the verdict of adaptive attacks, failures, checks in order, the paper's figures, missing values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError
from defensemble.probes.base import Condition
from defensemble.probes.outcome import Check, ProbeOutcome
from defensemble.reports import Report, build_report, read_results
from defensemble.reports.model import Table
from defensemble.results.packed import pack
from tests.support import report_results
from tests.support.facts import assert_facts, raises
from tests.support.report_results import TWO

N = 60


def report_on(folder: Path, *outcomes: ProbeOutcome) -> Report:
    return build_report(read_results([report_results.write(one, folder / f"{index}.json") for index, one in enumerate(outcomes)]))


def table(report: Report, title: str, section: int = 0) -> Table:
    (found,) = [one for one in report.sections[section].tables if one.title == title]
    return found


def test_a_defence_that_fell_is_the_first_statement(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.noise(N, networks=TWO), report_results.adaptive(N))
    first = report.statements[0]
    assert first.is_alarm
    assert_facts(first.text, "fell | 4 of 5 targets")
    assert any(item.startswith("ensemble (ensemble): ") for item in first.items)
    worst = [figure for figure in report.figures if (figure.condition, figure.quantity) == ("worst case", "defense_rate")]
    assert len(worst) == 5
    assert_facts(first.items[0], f"{100 * (worst[0].value or 0):.1f} % | n = {worst[0].n}")


def test_a_defence_that_held_is_no_alarm(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.adaptive(400, strength=0.0))
    assert [statement.is_alarm for statement in report.statements] == [False]
    assert_facts(report.statements[0].text, "held | 5 of 5 targets")


def test_a_report_without_an_adaptive_attack_states_so(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.noise(N, networks=TWO))
    assert_facts(report.statements[0].text, "adaptive")
    assert not report.statements[0].is_alarm


def test_a_failed_target_is_named_with_the_reason_and_its_rates_are_missing(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.square(20))
    (alarm,) = [statement for statement in report.statements if statement.is_alarm]
    assert_facts(alarm.text, "standard | connection refused")
    (row,) = [row for row in table(report, "Attack").rows if row.cells[0].text == "standard"]
    assert [cell.text for cell in row.cells[1:]] == ["missing"] * 6


def test_failed_checks_come_first(tmp_path: Path) -> None:
    checks = tuple(Check(name, status, "text") for name, status in (("a", "PASS"), ("b", "WARN"), ("c", "FAIL")))  # type: ignore[arg-type]
    report = report_on(tmp_path, report_results.noise(N, networks=TWO), report_results.transfer(N, networks=TWO, checks=checks))
    assert [item.status for item in report.checks] == ["FAIL", "WARN", "PASS", "PASS", "PASS"]
    assert_facts(report.checks[0].result, "Transferred examples")


def test_the_papers_table_2_is_below_the_targets(tmp_path: Path) -> None:
    accuracy = table(report_on(tmp_path, report_results.transfer(N, networks=TWO)), "Accuracy, %")
    paper = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in accuracy.rows if row.kind == "paper"}
    assert accuracy.columns == ("target", "clean", "table2-fgsm", "table2-pgd")
    assert paper["standard"] == ["95.03", "55.92", "15.96"]
    assert paper["adversarial training"] == ["87.14", "77.10", "78.10"]
    assert paper["Defective CNN"] == ["missing"] * 3
    assert_facts(accuracy.note, "Table 2 | width 64 | 350 epochs | 8 or 12 epochs")


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("table2-pgd", 1.0, "15.96"),
        ("table2-pgd from surrogate-b", 1.0, "15.96"),
        ("table2-pgd", 0.5, None),
        ("table2-pgd at 4", 1.0, None),
        ("table2-pgd from averaged logits", 1.0, None),
        ("pgd16", 1.0, "missing"),
        ("my own", 1.0, None),
    ],
)
def test_the_papers_figures_belong_to_its_own_settings_only(name: str, keep: float, expected: str | None, tmp_path: Path) -> None:
    settings = report_results.transfer_settings(name, keep=keep)
    outcome = report_results.perturbed("transfer", "Transfer", [(Condition(name, 8.0, "1/255", "pgd"), 1.0)], n=N, settings=settings)
    rows = table(report_on(tmp_path, outcome), "Accuracy, %").rows
    found = [row.cells[-1].text for row in rows if row.kind == "paper" and row.cells[0].text == "standard"]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "change",
    [
        {"surrogates": 5},
        {"surrogates": [{"name": "a", "spec": 5}]},
        {"surrogates": [{"spec": {}}]},
        {"attacks": None},
        {"attacks": [{"name": "a"}]},
        {"attacks": [{"name": 1, "surrogates": []}]},
    ],
)
def test_damaged_settings_of_transferred_examples_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with raises(InputError, f"transfer | settings | {next(iter(change))}"):
        report_on(tmp_path, report_results.transfer(N, networks=TWO, settings=change))


def test_the_papers_score_is_below_that_of_the_boundary_attack_only(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.boundary(20), report_results.square(20))
    scores = {row.cells[0].text: row.cells[4].text for row in table(report, "Attack").rows if row.kind == "paper"}
    assert (scores["standard"], scores["Defective CNN, keep 0.1"]) == ("7.3e-06", "3.5e-05")
    assert all(row.kind == "target" for row in table(report, "Attack", 1).rows)


def test_many_conditions_become_rows_and_their_groups_have_a_mean(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.corruptions(N, networks=TWO))
    accuracy, means = table(report, "Accuracy, %"), table(report, "Mean accuracy, %")
    assert (len(accuracy.rows), accuracy.columns[:2]) == (76, ("condition", "ensemble"))
    assert accuracy.is_long
    frost = [row.cells[1].key for row in accuracy.rows if row.cells[0].text.startswith("frost ")]
    (mean,) = [row.cells[1].key for row in means.rows if row.cells[0].text == "frost"]
    assert mean == pytest.approx(sum(float(str(value)) for value in frost) / 5)


def test_two_results_of_one_probe_have_the_name_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [
        report_results.write(report_results.noise(N + number, networks=TWO), tmp_path / name)
        for number, name in enumerate(("0.json", "1.json", "other/1.json"))
    ]
    titles = [section.title.partition(": ")[2] for section in build_report(read_results(files)).sections]
    assert titles == ["0", str(files[1]), str(files[2])]


def test_settings_seeds_versions_and_digests_are_there(tmp_path: Path) -> None:
    result = report_results.noise(N, networks=TWO)
    result = replace(result, data={**result.data, "folders": [{"textures": pack(np.arange(40))}]})
    settings = dict(report_on(tmp_path, result).sections[0].settings)
    assert {"settings", "seed", "versions", "data", "server", "git_commit", "identity of each target"} <= set(settings)
    assert json.loads(settings["identity of each target"])["ensemble"]["mask_digest"] == "0a" * 32
    assert json.loads(settings["data"])["sha256"]
    assert_facts(json.loads(settings["data"])["folders"][0]["textures"], "[40]")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"clean_png": "bm8="}, "gallery | PNG | image 0"),
        ({"clean_png": "?"}, "gallery | base64"),
        ({"row": "x"}, "gallery | row"),
    ],
)
def test_a_damaged_gallery_is_an_error_that_names_the_file(changes: dict[str, object], facts: str, tmp_path: Path) -> None:
    outcome = report_results.transfer(N, networks=TWO)
    damaged = replace(outcome, gallery=({**outcome.gallery[0], **changes},))
    with raises(InputError, f"0.json | {facts}"):
        report_on(tmp_path, damaged)


def test_the_overview_has_no_column_for_a_result_without_conditions(tmp_path: Path) -> None:
    folders = report_results.perturbed("folders", "Folders", [], n=N, networks=TWO)
    overview = report_on(tmp_path, folders, report_results.noise(N, networks=TWO)).overview
    assert [len(row.cells) for row in overview.rows] == [2, 2]
    assert len(overview.columns) == 2
