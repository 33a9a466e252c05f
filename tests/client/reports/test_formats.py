"""The formats of a report: the same tables in HTML and Markdown, the same numbers in CSV, and nothing unescaped."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble.probes.base import CLEAN
from defensemble.probes.outcome import ProbeOutcome
from defensemble.reports import Report, build_report, read_results
from defensemble.reports.csv_file import csv_from_report
from defensemble.reports.markdown_page import escaped, markdown_from_report
from tests.client.reports.pages import Page, page_from_html, plain, tables_from_html, tables_from_markdown
from tests.support import report_results
from tests.support.report_results import HOSTILE

N = 60


def report_on(folder: Path, *outcomes: ProbeOutcome) -> Report:
    return build_report(read_results([report_results.write(one, folder / f"{index}.json") for index, one in enumerate(outcomes)]))


def html_of(report: Report) -> str:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from defensemble.reports.html_page import html_from_report

    return html_from_report(report, {})


@pytest.fixture(scope="module")
def outcomes() -> list[ProbeOutcome]:
    return [
        report_results.noise(N),
        report_results.transfer(N),
        report_results.adaptive(N),
        report_results.boundary(20),
        report_results.square(20),
        report_results.folders(networks=report_results.TWO),
    ]


@pytest.fixture(scope="module")
def report(outcomes: Sequence[ProbeOutcome], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_on(tmp_path_factory.mktemp("results"), *outcomes)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return page_from_html(html_of(report))


@pytest.fixture(scope="module")
def rows(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_from_report(report))))


def test_html_and_markdown_have_the_same_tables(report: Report, page: Page) -> None:
    in_html = tables_from_html(page)
    in_markdown = tables_from_markdown(markdown_from_report(report, {}, ""))
    assert len(in_html) > 30
    flat = {
        title: [[" ".join(re.sub(r"[(),;]", " ", cell).split()) for cell in row] for row in rows] for title, rows in in_markdown.items()
    }
    assert flat == in_html


def test_the_csv_has_the_rates_that_follow_from_the_predictions(outcomes: Sequence[ProbeOutcome], rows: list[dict[str, str]]) -> None:
    noise = outcomes[0]
    for target in noise.targets:
        clean = target.predicted[CLEAN] == noise.labels
        for condition in noise.conditions:
            correct = target.predicted[condition.name] == noise.labels
            found = {
                row["quantity"]: row
                for row in rows
                if (row["source"].endswith("/0.json"), row["target"], row["condition"]) == (True, target.name, condition.name)
            }
            assert float(found["accuracy"]["value"]) == pytest.approx(correct.mean())
            assert int(found["accuracy"]["successes"]) == correct.sum()
            assert float(found["defense_rate"]["value"]) == pytest.approx(correct[clean].mean())
            assert int(found["defense_rate"]["n"]) == clean.sum()
            assert found["defense_rate_source_fooled"]["value"] == ""
            assert float(found["accuracy"]["low"]) < correct.mean() < float(found["accuracy"]["high"])


def test_each_cell_of_the_first_table_is_the_rounded_value_of_the_csv(page: Page, rows: list[dict[str, str]]) -> None:
    tables = tables_from_html(page)
    head, *body = tables["1 Accuracy, %"]
    assert head[1:3] == ["clean", "sigma 1"]
    values = {(row["target"], row["condition"]): row for row in rows if row["source"].endswith("/0.json") and row["quantity"] == "accuracy"}
    for cells in body[:5]:
        for condition, cell in zip(head[1:], cells[1:], strict=True):
            row = values[cells[0].split(" ")[0], condition]
            assert cell.split() == [
                f"{100 * float(row['value']):.1f}",
                f"[{100 * float(row['low']):.1f}",
                f"{100 * float(row['high']):.1f}]",
            ]


def test_the_books_balance_and_the_statistics_of_an_attack_follow_from_its_images(
    outcomes: Sequence[ProbeOutcome], rows: list[dict[str, str]]
) -> None:
    boundary = outcomes[3]
    for target in boundary.targets:
        found = {row["quantity"]: row for row in rows if (row["source"].endswith("/3.json"), row["target"]) == (True, target.name)}
        assert target.attack is not None
        attacked = target.attack.is_attacked
        assert int(found["sent"]["value"]) == sum(
            int(found[name]["value"]) for name in ("counted", "verification", "sanity", "retried", "repeated")
        )
        assert int(found["skipped"]["value"]) == (~attacked).sum()
        mean_square = np.where(np.isnan(target.attack.mean_square), np.inf, target.attack.mean_square)[attacked]
        assert float(found["s_m"]["value"]) == pytest.approx(np.median(mean_square))


def test_text_from_files_is_neither_markup_nor_script_nor_formula(tmp_path: Path) -> None:
    report = report_on(tmp_path, report_results.hostile(N))
    page = page_from_html(html_of(report))
    assert len(page.named("script")) == 1
    assert HOSTILE in page.named("body")[0].text
    assert any(HOSTILE in (element.attributes.get("alt") or "") for element in page.named("img"))
    markdown = markdown_from_report(report, {}, "")
    assert "<script" not in markdown
    assert {len(row) for row in tables_from_markdown(markdown)["1 Accuracy, %"]} == {12}
    assert any(HOSTILE in row[0] for row in tables_from_markdown(markdown)["1 Accuracy, %"])
    cells = [cell for row in csv.reader(io.StringIO(csv_from_report(report))) for cell in row]
    assert "'=HYPERLINK(1)" in cells
    assert HOSTILE in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


def test_chart_specifications_cannot_end_their_script_element(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    from jinja2 import Environment

    report = report_on(tmp_path, report_results.hostile(N))
    specs = {chart.id: chart.spec for chart in report.draw_charts()["s1"]}
    text = Environment(autoescape=True).from_string("{{ specs | tojson }}").render(specs=specs)
    assert "<" not in text
    assert HOSTILE in str(json.loads(text))


def test_charts_have_no_characters_that_xml_forbids(tmp_path: Path) -> None:
    """With one, vl-convert ends the process."""
    pytest.importorskip("altair")
    networks = {"\x1b[31mred": ("other", 0.8, 0.5), "one\x00\uffff": ("other", 0.7, 0.9)}
    report = report_on(tmp_path, report_results.noise(N, networks=networks))
    text = json.dumps([chart.spec for chart in report.draw_charts()["s1"]], ensure_ascii=False)
    assert "\\\\x1b[31mred" in text
    assert not [found for found in ("\\u001b", "\\u0000", "\uffff") if found in text]


def test_curves_along_the_edge_of_a_chart_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    outcome = report_results.noise(N, networks=report_results.TWO)
    wrong = [replace(one, predicted={**one.predicted, "sigma 32": (outcome.labels + 1) % 10}) for one in outcome.targets]
    for targets, expected in ((wrong, 0), ([*wrong[:1], outcome.targets[1]], 1)):
        report = report_on(tmp_path, replace(outcome, targets=tuple(targets)))
        charts = report.draw_charts()["s1"]
        assert len([chart for chart in charts if "rejection-entropy" in chart.id]) == expected


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_escaped_markdown_reads_as_the_text_and_has_no_markup(text: str) -> None:
    result = escaped(text)
    assert plain(result) == " ".join(re.split(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+", text)).strip()
    assert not re.search(r"(?<!\\)[`*_\[\]{}]|[<>|\n]|^[#+=-]+(\s|$)|://", re.sub(r"\\\\", "", result))


def test_the_page_loads_nothing_and_its_scripts_are_those_that_the_policy_names(page: Page) -> None:
    (policy,) = [element.attributes["content"] for element in page.named("meta") if "http-equiv" in element.attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    digests = [
        "'sha256-" + base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode() + "'" for script in page.named("script")
    ]
    assert re.findall(r"'sha256-[^']+'", policy) == digests
    assert "unsafe-eval" not in policy
    sources = [
        value for element in page.elements for name, value in element.attributes.items() if name in ("src", "href", "srcset", "action")
    ]
    assert sources
    assert all(value is not None and value.startswith(("data:", "#")) for value in sources)
    assert "url(" not in page.named("style")[0].text
    assert "@import" not in page.named("style")[0].text


def test_headings_are_in_order_and_every_picture_has_a_text(report: Report, page: Page) -> None:
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch(r"h\d", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.named("img")) == 3 * sum(len(section.gallery) for section in report.sections)
    assert all(element.attributes["alt"] for element in page.named("img"))
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    assert [element.attributes["lang"] for element in page.named("html")] == ["en"]
