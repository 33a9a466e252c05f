"""An HTML report in a real browser: no errors, no requests, charts that are seen, sorting, keyboard, colours, print, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from defensemble.reports import build_report, read_results, write_report
from tests.client.reports.browser import LAPTOP, PHONE, Opened, axe_faults
from tests.support import report_results

pytestmark = pytest.mark.slow

N = 80


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    outcomes = {
        "noise": report_results.noise(N),
        "transfer": report_results.transfer(N, networks=report_results.TWO),
        "adaptive": report_results.adaptive(N, networks=report_results.TWO),
        "square": report_results.square(20),
        "hostile": report_results.hostile(N),
        "folders": report_results.folders(networks=report_results.TWO),
    }
    files = [report_results.write(outcome, folder / f"{name}.json") for name, outcome in outcomes.items()]
    write_report(build_report(read_results(files)), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[dict[str, Opened]]:
    pages = {
        "laptop": Opened(browser, report, LAPTOP, color_scheme="light"),
        "phone, dark": Opened(browser, report, PHONE, color_scheme="dark", is_mobile=True, has_touch=True),
    }
    yield pages
    for one in pages.values():
        one.context.close()


KINDS = ["laptop", "phone, dark"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_silent_and_asks_for_nothing_but_itself(kind: str, opened: dict[str, Opened], report: Path) -> None:
    assert opened[kind].messages == []
    assert [url for url in opened[kind].requests if not url.startswith("data:")] == [report.as_uri()]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_charts_are_seen(kind: str, opened: dict[str, Opened]) -> None:
    page = opened[kind].page
    pictures = page.evaluate("[...document.images].map((image) => [image.complete, image.naturalWidth, image.alt.length])")
    assert len(pictures) > 30
    assert all(complete and width > 0 and alt > 0 for complete, width, alt in pictures)
    charts = page.evaluate(
        """[...document.querySelectorAll("figure.chart")].map((figure) => {
            const svg = figure.querySelector("svg").getBoundingClientRect(), own = figure.getBoundingClientRect();
            return [svg.width, own.width, svg.height, figure.querySelectorAll("svg path").length];
        })"""
    )
    assert len(charts) > 10
    for drawn, width, height, paths in charts:
        assert 0.8 * width < drawn <= width + 1
        assert height > 100
        assert paths > 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_as_wide_as_the_screen(kind: str, opened: dict[str, Opened]) -> None:
    width = (PHONE if kind == "phone, dark" else LAPTOP)["width"]
    assert opened[kind].page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_table_that_is_scrolled_keeps_its_rules_and_shows_that_there_is_more(opened: dict[str, Opened]) -> None:
    page = opened["phone, dark"].page
    style = "(element) => ({ ...getComputedStyle(element) })"
    name = page.locator("#s1-accuracy tbody tr:nth-child(2) th").evaluate(style)
    assert (name["position"], name["borderTopWidth"]) == ("sticky", "1px")
    assert page.locator(".scroll:has(#s1-accuracy)").evaluate(style)["backgroundAttachment"] == "local, scroll"
    assert page.locator(".pictures img:last-child").first.evaluate(style)["borderTopWidth"] == "1px"


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_serious_fault(kind: str, opened: dict[str, Opened]) -> None:
    faults, passed = axe_faults(opened[kind].page)
    assert faults == []
    assert passed > 20


def test_tables_are_sorted_by_mouse_and_by_keyboard(opened: dict[str, Opened]) -> None:
    page = opened["laptop"].page
    table = page.locator("#s1-accuracy")
    heading = table.locator("thead th").nth(1)
    values = "(table) => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.number))"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = table.evaluate(values)
    assert ascending == sorted(ascending)
    assert len(set(ascending)) > 1
    page.keyboard.press("Enter")  # the button has the focus
    assert heading.get_attribute("aria-sort") == "descending"
    assert table.evaluate(values) == ascending[::-1]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert table.locator("thead th").nth(2).get_attribute("aria-sort") == "ascending"


def test_rows_of_the_paper_stay_below_the_others(opened: dict[str, Opened]) -> None:
    table = opened["laptop"].page.locator("#s2-accuracy")
    names = "(table) => [...table.tBodies].map((body) => [...body.rows].map((row) => row.cells[0].firstChild.textContent))"
    before = table.evaluate(names)
    for _ in range(2):
        table.locator("thead th").nth(1).get_by_role("button").click()
        targets, paper = table.evaluate(names)
        assert (sorted(targets), paper) == (sorted(before[0]), before[1])
    assert paper[0] == "standard"


def test_missing_values_are_sorted_last(opened: dict[str, Opened]) -> None:
    table = opened["laptop"].page.locator("#s4-attack")
    button = table.locator("thead th").nth(1).get_by_role("button")
    for _ in range(2):
        button.click()
        names = table.evaluate("(table) => [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent)")
        assert names[-1] == "standard"


@pytest.fixture(scope="module")
def still(browser: Any, report: Path) -> Iterator[Opened]:
    """A page that no test has clicked on before."""
    opened = Opened(browser, report, LAPTOP, reduced_motion="reduce")
    yield opened
    opened.context.close()


def test_the_skip_link_is_first_and_the_focus_is_seen(still: Opened) -> None:
    page = still.page
    page.keyboard.press("Tab")
    focused = "[document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle]"
    assert page.evaluate(focused) == ["skip", "solid"]
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_nothing_moves_if_the_user_asks_for_reduced_motion(still: Opened) -> None:
    assert still.page.evaluate("document.getAnimations().length") == 0
    durations = still.page.evaluate("[...document.querySelectorAll('*')].map((one) => getComputedStyle(one).transitionDuration)")
    assert set(durations) == {"0s"}


def test_dark_pages_have_light_text_and_other_colours_of_lines(opened: dict[str, Opened]) -> None:
    colours = {
        kind: opened[kind].page.evaluate(
            """[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector(".live svg .mark-line path")).stroke]"""
        )
        for kind in KINDS
    }
    assert all(light != dark for light, dark in zip(*colours.values(), strict=True))


def test_print_shows_the_static_charts_and_everything_that_is_folded(opened: dict[str, Opened]) -> None:
    page = opened["laptop"].page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('.chart .static')].every((image) => image.getBoundingClientRect().width > 300)")
    assert page.evaluate("[...document.querySelectorAll('.chart .live')].every((chart) => getComputedStyle(chart).display === 'none')")
    assert page.locator("main details:not([open])").count() == 0
    assert len(page.pdf()) > 100_000
    page.emulate_media(media="screen")


def test_without_scripts_the_charts_are_pictures(browser: Any, report: Path) -> None:
    plain = Opened(browser, report, LAPTOP, java_script_enabled=False)
    count = plain.page.locator("figure.chart").count()
    assert count > 10
    assert all(plain.page.locator("figure.chart .static").nth(index).is_visible() for index in range(count))
    assert plain.messages == []
    plain.context.close()


def test_the_charts_of_the_page_are_those_of_the_svg_files(report: Path, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    source = build_report(read_results([report.with_name("noise.json")]))
    written = write_report(source, tmp_path / "report.md", charts_folder=tmp_path / "charts")
    text = (tmp_path / "report.md").read_text()
    files = [path for path in written if path.suffix == ".svg"]
    assert len(files) == 3
    for file in files:
        assert f"(<charts/{file.name}>)" in text
        content = file.read_text()
        assert ElementTree.fromstring(content).attrib["width"].isdigit()
        assert "var(" not in content
        assert "currentColor" not in content
