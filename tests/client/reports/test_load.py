"""Reports on load tests: the figures of the result in each format, no latency of an invalid step, and nothing unescaped."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from defensemble import InputError
from defensemble.cli import cli
from defensemble.load.result import Capacity, LoadResult, Slo, TimelineSecond, read_load_result
from defensemble.probes.outcome import Check
from defensemble.reports import Report, load_report
from defensemble.reports.csv_file import csv_from_report
from defensemble.reports.markdown_page import markdown_from_report
from tests.client.reports.pages import Tables, page_from_html, tables_from_html, tables_from_markdown
from tests.support import load_results, report_results
from tests.support.facts import assert_facts

VALID_RATES = ("20/s", "50/s", "100/s", "150/s", "200/s")


def html_of(report: Report) -> str:
    """The page without its charts, which take seconds; `test_load_browser.py` has those."""
    pytest.importorskip("altair")
    from defensemble.reports.html_page import html_from_report

    return html_from_report(report, {})


@pytest.fixture(scope="module")
def result() -> LoadResult:
    return load_results.open_loop()


@pytest.fixture(scope="module")
def tables(result: LoadResult) -> Tables:
    return tables_from_markdown(markdown_from_report(load_report(result), {}, ""))


@pytest.fixture(scope="module")
def page_text(result: LoadResult) -> str:
    return html_of(load_report(result))


@pytest.fixture(scope="module")
def specs(result: LoadResult) -> dict[str, Any]:
    """The charts by their id."""
    pytest.importorskip("altair")
    return {chart.id: chart.spec for own in load_report(result).draw_charts().values() for chart in own}


def table(tables: Tables, title: str) -> list[list[str]]:
    (found,) = [rows for name, rows in tables.items() if name.partition(" ")[2] == title]
    return found


def test_the_tables_have_the_quantiles_and_counts_of_each_step(result: LoadResult, tables: Tables) -> None:
    head, *rows = table(tables, "Latency, ms")
    assert head == ["load", "answered", "p50", "p90", "p99", "p99.9", "max", "mean", "within %"]
    for row, step in zip(rows[:5], result.targets[0].steps, strict=False):
        assert step.latency_ms is not None
        assert step.answered < 1000
        assert row[5] == "-"  # a p99.9 of fewer than 1,000 calls would be their maximum
        expected = [value for key, value in msgspec.to_builtins(step.latency_ms).items() if key != "p99_9"]
        assert [float(cell) for cell in (*row[1:5], *row[6:8])] == pytest.approx([step.answered, *expected], rel=0.005)
    counts = [[int(cell.replace(",", "")) for cell in row[2:7]] for row in table(tables, "Throughput")[1:]]
    assert counts == [[step.sent, step.answered, step.failed, step.unsent, step.images] for step in result.targets[0].steps]
    assert [row[:3] for row in table(tables, "Failures by kind")[1:]] == [
        ["200/s", "DeadlineExceededError", "7"],
        ["200/s", "ServerUnavailableError", "2"],
    ]


def test_an_invalid_step_has_its_problem_and_no_latency_in_tables_and_figures(result: LoadResult, tables: Tables) -> None:
    report = load_report(result)
    assert any("400/s: 12.3 %" in item for statement in report.statements if statement.is_alarm for item in statement.items)
    assert [item.status for item in report.checks if "schedule" in item.check.name] == ["FAIL"]
    for title in ("Overview", "Latency, ms", "Timeline"):
        (*_, last) = table(tables, title)
        assert "400/s" in last
        assert last.count("not reported") >= 2
    assert not [figure for figure in report.figures if figure.condition == "400/s" and figure.quantity.startswith("p")]


def test_an_invalid_step_is_in_no_chart_of_latencies(specs: dict[str, Any]) -> None:
    for name in ("overview-latency-1", "s1-times", "s1-histogram"):
        shown = {record["condition"] for record in _records(specs[name]) if "condition" in record}
        assert shown == set(VALID_RATES), name


def _records(spec: object) -> list[dict[str, object]]:
    """All records of a chart."""
    if isinstance(spec, dict):
        own = spec.get("values") if isinstance(spec.get("values"), list) else []
        return [*(one for one in own or [] if isinstance(one, dict)), *(one for value in spec.values() for one in _records(value))]
    return [one for value in spec for one in _records(value)] if isinstance(spec, list) else []


def test_the_histogram_has_every_answer_once_in_its_bin(result: LoadResult, specs: dict[str, Any]) -> None:
    for step, rate in zip(result.targets[0].steps, VALID_RATES, strict=False):
        bins = [record for record in _records(specs["s1-histogram"]) if record.get("condition") == rate]
        assert step.latency_ms is not None
        shares = [(float(str(one["low"])), float(str(one["high"])), float(str(one["share"]))) for one in bins]
        assert sum(share for *_, share in shares) == pytest.approx(100)
        below = sum(share for _, high, share in shares if high <= step.latency_ms.p50)
        assert below <= 50.01
        assert below + max(share for *_, share in shares) >= 49.99


def test_html_and_csv_have_the_same_numbers_as_markdown(result: LoadResult, tables: Tables, page_text: str) -> None:
    in_html = tables_from_html(page_from_html(page_text))
    assert [[row[0] for row in rows] for rows in in_html.values()] == [
        [row[0].replace(", ", " ") for row in rows] for rows in tables.values()
    ]
    rows = list(csv.DictReader(io.StringIO(csv_from_report(load_report(result)))))
    found = {(row["condition"], row["quantity"]): row["value"] for row in rows}
    for step, rate in zip(result.targets[0].steps, VALID_RATES, strict=False):
        assert step.latency_ms is not None
        assert float(found[rate, "p99_9_ms"]) == step.latency_ms.p99_9
        assert float(found[rate, "late_share"]) == 0
        assert int(found[rate, "server_keep0.5-a_images"]) == step.images
    assert float(found["", "capacity_per_s"]) == 100


def calls_counted(result: LoadResult) -> Check:
    (check,) = [one.check for one in load_report(result).checks if "counted" in one.check.name]
    return check


def test_client_and_server_are_compared(result: LoadResult) -> None:
    steps = [load_results.step(rate, 220) for rate in (20.0, 50.0)]
    check = calls_counted(load_results.result(load_results.target("http://a", steps)))
    assert (check.status, "350" in check.text) == ("PASS", True)
    check = calls_counted(result)
    assert (check.status, "200/s: 1,000 and 991" in check.text) == ("WARN", True)


@pytest.mark.parametrize(("more", "status"), [(6, "PASS"), (7, "WARN"), (-1, "WARN")])
def test_the_server_may_count_one_call_more_per_second(more: int, status: str) -> None:
    step = load_results.step(20.0, 220)  # of five seconds
    assert step.server_counters is not None
    counted = msgspec.structs.replace(step.server_counters.models["ensemble"], requests=step.sent + more)
    counters = msgspec.structs.replace(step.server_counters, models={"ensemble": counted})
    check = calls_counted(load_results.result(load_results.target("http://a", [msgspec.structs.replace(step, server_counters=counters)])))
    assert check.status == status
    assert "supervisor" in check.text


def test_the_highest_rate_that_holds_is_named_and_those_that_do_not_are_marked() -> None:
    steps = [
        load_results.step(20.0, 220),
        load_results.step(50.0, 220, failures={"ServerUnavailableError": 1}),
        load_results.step(200.0, 220),
    ]
    report = load_report(load_results.result(load_results.target("http://a", steps)))
    texts = {statement.is_alarm: statement.text for statement in reversed(report.statements)}
    assert_facts(texts[False], "http://a, ensemble | 20/s | p99=50ms")
    assert steps[2].attainment is not None
    missed = report.statements[1]
    assert missed.is_alarm
    assert_facts(missed.text, f"200/s ({100 * steps[2].attainment:.1f} %) | p99=50ms | 99 %")
    assert "20/s (" not in missed.text.replace("200/s", "")
    overview = table(tables_from_markdown(markdown_from_report(report, {}, "")), "Overview")
    assert [row[overview[0].index("holds")] for row in overview[1:]] == ["yes", "yes", "no"]


@pytest.mark.parametrize(("is_open", "slo"), [(True, load_results.SLO), (True, None), (False, None)])
def test_a_step_with_failures_is_never_the_best(is_open: bool, slo: Slo | None) -> None:
    steps = [
        load_results.step(4.0, 220, is_open=is_open),
        load_results.step(8.0, 220, is_open=is_open, failures={"ServerUnavailableError": 1}),
    ]
    first, *_ = load_report(load_results.result(load_results.target("http://a", steps), slo=slo)).statements
    assert not first.is_alarm
    assert ("4/s" if is_open else "4 callers") in first.text
    assert ("throughput" in first.text) is not is_open
    first, *_ = load_report(load_results.result(load_results.target("http://a", steps[1:]), slo=slo)).statements
    assert first.is_alarm


def test_a_second_without_answers_breaks_the_line_of_latencies() -> None:
    pytest.importorskip("altair")
    step = load_results.step(200.0, 220)
    stalled = TimelineSecond(2, 200, 0, 0, None, None, None)
    timeline = tuple(stalled if second.s == 2 else second for second in step.timeline)
    target = load_results.target("http://a", [msgspec.structs.replace(step, timeline=timeline)])
    (chart,) = [chart for chart in load_report(load_results.result(target)).draw_charts()["s1"] if chart.id == "s1-times"]
    values = {int(str(record["x"])): record["y"] for record in _records(chart.spec) if record.get("target") == "p50"}
    assert [second for second, value in values.items() if value is None] == [2]
    assert len(values) == 5


@pytest.mark.parametrize(
    ("capacity", "facts"),
    [
        (Capacity(100.0, (), (100.0, 150.0), None), ("100 calls/s", "150/s")),
        (Capacity(None, (), (None, 20.0), None), ("no rate", "20/s")),
        (Capacity(100.0, (), (100.0, None), "the generator cannot make 200/s"), ("cannot make 200/s",)),
    ],
)
def test_the_capacity_is_at_the_top(capacity: Capacity, facts: tuple[str, ...]) -> None:
    steps = [load_results.step(20.0, 220)]
    text = " ".join(one.text for one in load_report(load_results.result(load_results.target("http://a", steps, capacity))).statements)
    assert [fact for fact in facts if fact not in text] == []


def test_several_targets_have_the_same_colours_and_own_dashes_in_every_chart() -> None:
    pytest.importorskip("altair")
    charts = load_report(load_results.two_targets()).draw_charts()
    assert [chart.id for chart in charts["overview"]] == [
        *(f"overview-latency-{number}" for number in (1, 2, 3, 4)),
        "overview-throughput-1",
    ]
    scales = {
        json.dumps(
            [
                layer["encoding"][key]["scale"]
                for layer in chart.spec["layer"]
                for key in ("color", "strokeDash")
                if key in layer["encoding"]
            ]
        )
        for chart in charts["overview"]
    }
    assert len(scales) == 1
    assert {"http://127.0.0.1:8000, ensemble", "grpc://127.0.0.1:8001, ensemble"} <= set(json.loads(scales.pop())[0]["domain"])


def test_names_from_a_file_are_text() -> None:
    page = page_from_html(html_of(load_report(load_results.hostile())))
    assert len(page.named("script")) == 1
    assert load_results.HOSTILE in page.named("body")[0].text
    markdown = markdown_from_report(load_report(load_results.hostile()), {}, "")
    assert "<script" not in markdown


def test_a_result_that_was_read_makes_the_same_report(result: LoadResult, tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text(json.dumps(result.json()))
    again = load_report(read_load_result(tmp_path / "load.json"))
    assert markdown_from_report(again, {}, "") == markdown_from_report(load_report(result), {}, "")


def test_the_command_report_takes_one_load_test_and_no_other_file(result: LoadResult, tmp_path: Path) -> None:
    load, noise, out = tmp_path / "load.json", tmp_path / "noise.json", tmp_path / "load.md"
    load.write_text(json.dumps(result.json()))
    report_results.write(report_results.noise(20, networks=report_results.TWO), noise)
    done = CliRunner().invoke(cli, ["report", str(load), "-o", str(out)])
    assert (done.exit_code, done.stdout) == (0, f"wrote {out}\n")
    assert out.read_text().startswith("# Load test\n")
    for files in ([load, noise], [noise, load], [load, load]):
        done = CliRunner().invoke(cli, ["report", *map(str, files), "-o", str(tmp_path / "two.md")])
        assert done.exit_code == 1
        assert_facts(done.stderr, f"{load} | 2 files")
    values = result.json()
    values["targets"][0]["steps"][2]["sent"] = "many"
    load.write_text(json.dumps(values))
    done = CliRunner().invoke(cli, ["report", str(load), "-o", str(tmp_path / "two.md")])
    assert done.exit_code == 1
    assert_facts(done.stderr, f"{load} | sent")
    assert not (tmp_path / "two.md").exists()


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"answered": -5}, "answered"),
        ({"answered": 5000, "sent": 1}, "5000 | 1"),
        ({"sent": 10**400}, "damaged.json"),
        ({"seconds": -1.0}, "seconds"),
        ({"callers": 3}, "callers | 3"),
        ({"began_at": "yesterday"}, "yesterday"),
        ({"latency_ms": {"p50": -3.0, "p90": 1.0, "p99": 1.0, "p99_9": 1.0, "max": 1.0, "mean": 1.0}}, "-3.0"),
        ({"latency_ms": {"p50": 9.0, "p90": 1.0, "p99": 1.0, "p99_9": 1.0, "max": 1.0, "mean": 1.0}}, "9.0"),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(result: LoadResult, tmp_path: Path, changes: dict[str, Any], facts: str) -> None:
    values = json.loads(json.dumps(result.json()))
    values["targets"][0]["steps"][0] |= changes
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        read_load_result(file)
    assert_facts(str(caught.value), f"damaged.json | {facts}")


@pytest.mark.parametrize("histogram", ["!!!not base64", "", "HISTFAAAAB"])
def test_a_damaged_histogram_is_refused(result: LoadResult, tmp_path: Path, histogram: str) -> None:
    values = json.loads(json.dumps(result.json()))
    values["targets"][0]["steps"][0]["histogram"] = histogram
    file, page = tmp_path / "damaged.json", tmp_path / "page.html"
    file.write_text(json.dumps(values))
    done = CliRunner().invoke(cli, ["report", str(file), "-o", str(page)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert_facts(done.output, "histogram")
    assert not page.exists()
