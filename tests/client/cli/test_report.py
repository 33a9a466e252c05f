"""`defensemble report`: formats, charts, and files that are no results."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from tests.support import report_results
from tests.support.facts import assert_facts

N = 40


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, words)])


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return report_results.write(report_results.noise(N, networks=report_results.TWO), tmp_path / "noise.json")


def test_the_suffix_or_the_option_names_the_format(noise: Path, tmp_path: Path) -> None:
    for name, options in (("a.md", ()), ("b.txt", ("--format", "md"))):
        done = run(noise, "-o", tmp_path / name, "--title", "My robustness", *options)
        assert done.exit_code == 0, done.output
        assert done.stdout == f"wrote {tmp_path / name}\n"
        assert (tmp_path / name).read_text().startswith("# My robustness\n")
    assert run(noise, "-o", tmp_path / "c.CSV").exit_code == 0
    with (tmp_path / "c.CSV").open() as file:
        assert {row["probe"] for row in csv.DictReader(file)} == {"noise-gaussian-float32"}


def test_an_earlier_report_is_replaced(noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    out.write_text("<old>")
    assert run(noise, "-o", out).exit_code == 0
    assert "<old>" not in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.json", "report.md"]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", "bad.json"),
        (b"\xff\xfe", "bad.json"),
        (b"{", "bad.json"),
        (b"[1]", "bad.json | defensemble.probe/2"),
        (b'{"schema": "defensemble.probe.noise/1"}', "bad.json | defensemble.probe.noise/1 | defensemble.probe/2"),
        (b'{"schema": "defensemble.export/1"}', "bad.json | 'defensemble.export/1'"),
        (b'{"schema": "defensemble.probe/2"}', "bad.json"),
    ],
)
def test_a_file_that_is_no_result_is_named(content: bytes, facts: str, noise: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    done = run(noise, tmp_path / "bad.json", "-o", tmp_path / "report.md")
    assert done.exit_code == 1
    assert_facts(done.stderr, facts)
    assert not (tmp_path / "report.md").exists()


def test_a_result_with_a_damaged_array_is_refused(noise: Path, tmp_path: Path) -> None:
    values = json.loads(noise.read_text())
    values["images"]["label"]["zlib"] = values["images"]["label"]["zlib"][:-8]
    noise.write_text(json.dumps(values))
    done = run(noise, "-o", tmp_path / "report.md")
    assert done.exit_code == 1
    assert_facts(done.stderr, "noise.json | images.label")


def test_edited_rates_are_computed_again(noise: Path, tmp_path: Path) -> None:
    assert run(noise, "-o", tmp_path / "a.csv").exit_code == 0
    values = json.loads(noise.read_text())
    values["targets"][0]["clean"]["value"] = 0.999
    noise.write_text(json.dumps(values))
    assert run(noise, "-o", tmp_path / "b.csv").exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_same_file_twice_is_refused(noise: Path, tmp_path: Path) -> None:
    assert_facts(run(noise, noise, "-o", tmp_path / "report.md").stderr, "noise.json | twice")
    copy = tmp_path / "copy.json"
    copy.write_bytes(noise.read_bytes())
    done = run(noise, copy, "-o", tmp_path / "report.md")
    assert done.exit_code == 1
    assert_facts(done.stderr, "copy.json | noise.json | same content")


def test_wrong_names_of_files_are_errors(noise: Path, tmp_path: Path) -> None:
    assert run("-o", tmp_path / "report.md").exit_code == 2
    missing = run(tmp_path / "nosie.json", "-o", tmp_path / "report.md")
    assert missing.exit_code == 2
    assert_facts(missing.stderr, "noise.json")
    assert_facts(run(noise, "-o", tmp_path / "report.pdf").stderr, "'.pdf' | .html, .md or .csv")
    assert_facts(run(noise, "-o", tmp_path / "report").stderr, "no suffix | --format")
    assert_facts(run(noise, "--format", "csv", "-o", noise).stderr, "--out | noise.json")
    assert json.loads(noise.read_text())["schema"] == "defensemble.probe/2"


def test_a_title_has_a_text_and_no_chart_replaces_the_report(noise: Path, tmp_path: Path) -> None:
    for title in ("", " "):
        assert run(noise, "-o", tmp_path / "a.md", "--title", title).exit_code == 2
    assert run(noise, "-o", tmp_path / "a.md", "--charts", tmp_path / "charts").exit_code == 0
    chart = sorted((tmp_path / "charts").iterdir())[0]
    before = chart.read_bytes()
    done = run(noise, "--format", "md", "-o", chart, "--charts", tmp_path / "charts")
    assert done.exit_code == 1
    assert_facts(done.stderr, f"{chart} | chart")
    assert chart.read_bytes() == before


@pytest.mark.parametrize("out", ["folder.md", "noise.json/report.md", "/proc/report.md"])
def test_a_report_that_cannot_be_written_is_an_error_that_names_it(out: str, noise: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    done = run(noise, "-o", tmp_path / out)
    assert done.exit_code == 1
    assert_facts(done.stderr, str(tmp_path / out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.md", "noise.json"]


def test_markdown_and_csv_need_no_extra_and_html_names_it(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("altair", "jinja2", "vl_convert"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("report.md", "report.csv"):
        assert run(noise, "-o", tmp_path / name).exit_code == 0
    for words in (("report.html",), ("other.md", "--charts", tmp_path / "charts")):
        done = run(noise, "-o", tmp_path / words[0], *words[1:])
        assert done.exit_code == 1
        assert_facts(done.stderr, "defensemble[probes] | .md | .csv")
        assert not (tmp_path / words[0]).exists()
