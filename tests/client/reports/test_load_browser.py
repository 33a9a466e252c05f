"""The HTML report on a load test in a real browser, as wide as a laptop and as a phone, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from defensemble.reports import write_load_report
from tests.client.reports.browser import LAPTOP, PHONE, Opened, axe_faults
from tests.support import load_results

pytestmark = pytest.mark.slow

RESULTS = {"open_loop": 6, "two_targets": 11, "hostile": 6}  # the charts of each


@pytest.fixture(scope="module", params=RESULTS)
def report(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path: Path = tmp_path_factory.mktemp("load") / "load.html"
    write_load_report(path, getattr(load_results, request.param)())
    return path, RESULTS[request.param]


@pytest.fixture(scope="module", params=["laptop", "phone"])
def opened(request: pytest.FixtureRequest, browser: Any, report: tuple[Path, int]) -> Iterator[Opened]:
    if request.param == "laptop":
        page = Opened(browser, report[0], LAPTOP, color_scheme="light")
    else:
        page = Opened(browser, report[0], PHONE, color_scheme="dark", is_mobile=True, has_touch=True)
    yield page
    page.context.close()


def test_the_page_is_silent_fits_the_screen_and_loads_nothing(opened: Opened, report: tuple[Path, int]) -> None:
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report[0].as_uri()]
    width = opened.page.viewport_size["width"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_chart_is_drawn_as_wide_as_its_place_and_none_of_its_text_is_cut(opened: Opened, report: tuple[Path, int]) -> None:
    charts = opened.page.evaluate(
        """[...document.querySelectorAll("figure.chart")].map((figure) => {
            const svg = figure.querySelector("svg").getBoundingClientRect(), own = figure.getBoundingClientRect();
            const texts = [...figure.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect());
            const cut = texts.filter((one) => one.left < svg.left - 1 || one.right > svg.right + 1 || one.bottom > svg.bottom + 1);
            return [svg.width, own.width, svg.height, figure.querySelectorAll("svg path").length, cut.length];
        })"""
    )
    assert len(charts) == report[1]
    for drawn, width, height, paths, cut in charts:
        assert 0.8 * width < drawn <= width + 1
        assert height > 60
        assert paths > 3
        assert cut == 0


def test_axe_finds_no_serious_fault(opened: Opened) -> None:
    faults, passed = axe_faults(opened.page)
    assert faults == []
    assert passed > 20
