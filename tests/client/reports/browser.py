"""HTML reports in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def launched_browser() -> Iterator[Any]:
    """Start a browser, or skip the test without one."""
    for package in ("altair", "vl_convert", "jinja2", "playwright"):
        pytest.importorskip(package)
    from playwright.sync_api import sync_playwright

    found = next((path for name in BROWSERS if (path := shutil.which(name)) is not None), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found)
        yield launched
        launched.close()


class Opened:
    """A page, with what it wrote to the console and asked for."""

    def __init__(self, browser: Any, file: Path, viewport: dict[str, int], **options: Any) -> None:
        self.context = browser.new_context(viewport=viewport, **options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.messages.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            # Vega draws asynchronously; the policy of the page forbids `wait_for_function`, which evaluates a text.
            self.page.locator("figure.is-live").first.wait_for()
            count = self.page.locator("figure.chart").count()
            self.page.locator(".live svg").nth(count - 1).wait_for()


def axe_faults(page: Any) -> tuple[list[str], int]:
    """Return the serious faults of a page's accessibility that axe finds, and how many rules it passed."""
    pytest.importorskip("axe_playwright_python")
    import axe_playwright_python

    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    # Through the protocol of the browser's developer tools, since the policy of the page allows no other script.
    script = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    page.evaluate(script)
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    faults = [
        f"{fault['id']} ({fault['impact']}): {[node['html'][:160] for node in fault['nodes'][:3]]}"
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    return faults, len(result["passes"])
