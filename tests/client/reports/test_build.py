"""What a report states: the verdict of adaptive attacks, failures, checks in order, the paper's figures, missing values."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from defensemble.results.packed import pack, unpack
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
    assert_facts(first.items[0], f"clean | attacked | defence rate {100 * (worst[0].value or 0):.1f} % | n = {worst[0].n}")


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
    assert "Defective CNN" not in paper
    assert_facts(accuracy.note, "Table 2 | width 64 | 350 epochs | Yuan & He, Defective CNN are missing")


def test_a_condition_without_a_figure_of_the_paper_is_missing_in_its_rows(tmp_path: Path) -> None:
    settings = report_results.transfer_settings("table2-pgd")
    conditions = [(Condition(name, 8.0, "1/255", "pgd"), 1.0) for name in ("random noise 8/255", "table2-pgd")]
    outcome = report_results.perturbed("transfer", "Transfer", conditions, n=N, settings=settings)
    rows = table(report_on(tmp_path, outcome), "Accuracy, %").rows
    assert ["95.03", "missing", "15.96"] in [[cell.text for cell in row.cells[1:]] for row in rows if row.kind == "paper"]


@pytest.mark.parametrize("make", [report_results.noise, report_results.transfer, report_results.boundary])
def test_a_result_on_other_images_has_nothing_of_the_paper(make: Callable[..., ProbeOutcome], tmp_path: Path) -> None:
    report = report_on(tmp_path, make(20, data={"name": "digits", "kind": "dataset, test split"}))
    tables = report.sections[0].tables
    assert not [one.title for one in tables if "paper" in one.note.lower() or any(row.kind == "paper" for row in one.rows)]
    assert not [figure for figure in report.figures if figure.role == "paper"]


def test_the_figures_that_the_paper_does_not_give_are_a_note_without_rows(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.noise(N, networks=TWO))
    accuracy = table(report, "Accuracy, %")
    assert_facts(accuracy.note, "missing | Figure 4 | sigma 8")
    assert [row.kind for row in accuracy.rows] == ["target"] * 2
    assert not [figure for figure in report.figures if figure.role == "paper"]


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("table2-pgd", 1.0, "15.96"),
        ("table2-pgd from surrogate-b", 1.0, "15.96"),
        ("table2-pgd", 0.5, None),
        ("table2-pgd at 4", 1.0, None),
        ("table2-pgd from averaged logits", 1.0, None),
        ("pgd16", 1.0, None),
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


def test_corruptions_have_their_mean_errors(tmp_path: Path) -> None:
    outcome = report_results.corruptions(N, networks=TWO)
    failed = replace(outcome.targets[1], failure="ConnectionFailedError", predicted={"clean": outcome.labels})
    report = report_on(tmp_path, replace(outcome, targets=(outcome.targets[0], failed)))
    errors = report.sections[0].tables[0]
    assert (errors.title, len(errors.rows), errors.rows[0].cells[0].text) == ("Mean corruption error, %", 16, "mean")
    wrong = np.array([outcome.targets[0].predicted[one.name] != outcome.labels for one in outcome.conditions])
    assert errors.rows[0].cells[1].key == pytest.approx(wrong.mean())
    assert [cell.text for cell in (row.cells[2] for row in errors.rows)] == ["missing"] * 16
    found = {one.condition: one for one in report.figures if (one.target, one.quantity) == ("ensemble", "mean_error")}
    assert found["frost"].value == pytest.approx(wrong[[one.group == "frost" for one in outcome.conditions]].mean())
    assert (found["frost"].low or 0) < (found["frost"].value or 0) < (found["frost"].high or 0)


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


def test_folders_have_the_shape_bias_and_no_pooled_accuracy(tmp_path: Path) -> None:
    outcome = report_results.folders(networks=TWO)
    outcome = replace(outcome, targets=tuple(replace(target, details={"folders": 5}) for target in outcome.targets))  # computed again
    report = report_on(tmp_path, outcome)
    first, *rest = report.sections[0].tables
    assert [one.title for one in rest] == ["Queries"]
    heads = ["conflict (cue conflict): shape bias", "shape (shape only): accuracy", "stylised (stylised): accuracy"]
    assert list(first.columns[4:]) == heads
    textures, predicted = unpack(outcome.data["folders"][0]["textures"], np.int64, (40,), ""), outcome.targets[0].predicted["clean"]
    is_conflict = textures != outcome.labels[:40]
    shapes = int((is_conflict & (predicted[:40] == outcome.labels[:40])).sum())
    either = shapes + int((is_conflict & (predicted[:40] == textures)).sum())
    found = {(one.condition, one.quantity): one for one in report.figures if one.target == "ensemble"}
    bias = found["conflict (cue conflict)", "shape_bias"]
    assert (bias.successes, bias.n, found["conflict (cue conflict)", "neither"].n) == (shapes, either, 36)
    assert found["shape (shape only)", "accuracy"].successes == (predicted == outcome.labels)[40:80].sum()
    assert ("clean", "accuracy") not in found
    assert not [one for one in report.figures if one.compared_with]
    assert_facts(report.overview.columns[1], "Texture against shape | shape bias")
    cell = report.overview.rows[0].cells[1]
    assert cell.key == bias.value
    assert_facts(" ".join(cell.details), f"[{100 * (bias.low or 0):.1f}, | n = {either}")


def test_the_overview_has_the_lowest_accuracy_of_folders_without_cue_conflicts(tmp_path: Path) -> None:
    outcome = report_results.folders(networks=TWO)
    report = report_on(tmp_path, replace(outcome, data={**outcome.data, "folders": outcome.data["folders"][1:]}))
    assert report.overview.columns[1] == report.sections[0].title
    accuracies = [one.value for one in report.figures if (one.target, one.quantity) == ("ensemble", "accuracy")]
    assert len(accuracies) == 2
    assert report.overview.rows[0].cells[1].key == min(value for value in accuracies if value is not None)


def test_the_folders_of_a_target_that_failed_are_missing(tmp_path: Path) -> None:
    outcome = report_results.folders(networks=TWO)
    failed = replace(outcome.targets[1], failure="ConnectionFailedError", predicted={}, entropy={}, mutual_information={})
    report = report_on(tmp_path, replace(outcome, targets=(outcome.targets[0], failed)))
    assert [cell.text for cell in report.sections[0].tables[0].rows[1].cells[1:]] == ["missing"] * 6
    assert report.overview.rows[1].cells[1].text == "missing"


@pytest.mark.parametrize(
    "change",
    [
        {"first_row": "x"},
        {"first_row": 10**30, "n_available": 40},
        {"n_available": 41},
        {"textures": None},
        {"kind": "other"},
        {"name": "a/shape", "kind": "shape only"},
    ],
)
def test_damaged_folders_are_an_error_that_names_the_file(change: dict[str, Any], tmp_path: Path) -> None:
    outcome = report_results.folders(networks=TWO)
    first, *rest = outcome.data["folders"]
    with raises(InputError, "0.json | data.folders"):
        report_on(tmp_path, replace(outcome, data={**outcome.data, "folders": [{**first, **change}, *rest]}))


def test_damaged_details_are_an_error_that_names_them(tmp_path: Path) -> None:
    path = report_results.write(report_results.folders(networks=TWO), tmp_path / "0.json")
    values = json.loads(path.read_text())
    values["targets"][0]["details"] = 5
    path.write_text(json.dumps(values))
    with raises(InputError, "0.json | details"):
        read_results([path])


def test_of_equally_hard_conditions_the_overview_has_the_strongest_and_of_a_suite_the_worst_case(tmp_path: Path) -> None:
    outcomes = []
    for probe, names in (("square", ("linf 8", "linf 16", "linf 4")), ("other", ("a", "b")), ("suite", ("square: linf 8", "worst case"))):
        values = [float(name.split()[1]) if name.startswith("linf") else None for name in names]
        conditions = [(Condition(name, value), 1.0) for name, value in zip(names, values, strict=True)]
        outcome = report_results.perturbed(probe, probe, conditions, n=N, networks=TWO)
        wrong = {name: (outcome.labels + 1) % 10 for name in names}
        predicted = [{**target.predicted, **wrong} for target in outcome.targets]
        targets = tuple(replace(target, predicted=one) for target, one in zip(outcome.targets, predicted, strict=True))
        outcomes.append(replace(outcome, targets=targets))
    cells = report_on(tmp_path, *outcomes).overview.rows[0].cells[1:]
    assert [cell.details[1] for cell in cells] == ["linf 16", "b", "worst case"]


@pytest.mark.parametrize(
    ("make", "answers", "expected"),
    [
        (report_results.boundary, "labels", "labels"),
        (report_results.boundary, "probabilities", "probabilities, of which only the class is used"),
        (report_results.square, "probabilities", "probabilities"),
    ],
)
def test_attacks_that_use_only_the_class_state_so(make: Callable[..., ProbeOutcome], answers: str, expected: str, tmp_path: Path) -> None:
    report = report_on(tmp_path, make(20, answers=answers))
    assert dict(report.sections[0].facts)["responses"] == expected


@pytest.mark.parametrize(("value", "text"), [(0.996, "1"), (3.98, "4"), (14.04, "14"), (123.4, "123"), (0.04, "0.04")])
def test_amplifications_are_rounded(value: float, text: str, tmp_path: Path) -> None:
    outcome = report_results.transfer(N, networks=TWO)
    report = report_on(tmp_path, replace(outcome, gallery=({**outcome.gallery[0], "amplification": value},)))
    assert report.sections[0].gallery[0].amplification == text


def test_the_overview_has_no_column_for_a_result_without_conditions(tmp_path: Path) -> None:
    empty = report_results.perturbed("other", "Other", [], n=N, networks=TWO)
    overview = report_on(tmp_path, empty, report_results.noise(N, networks=TWO)).overview
    assert [len(row.cells) for row in overview.rows] == [2, 2]
    assert len(overview.columns) == 2
