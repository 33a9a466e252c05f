"""A report as one HTML page that loads nothing: styles, scripts, charts and pictures are within it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._printable import printable
from .._version import __version__
from .charts import require_charts, svg_from_chart, vega_bundle
from .model import Chart, Report, Section, Table

_FOLDER = Path(__file__).parent


def html_from_report(report: Report, charts: Mapping[str, Sequence[Chart]]) -> str:
    """Return the page.

    Args:
        report: The report.
        charts: The charts by the id of their section, or of the overview. Without any, the page does not contain Vega.

    Raises:
        MissingExtraError: The extra `probes` or `load` is not installed.
    """
    require_charts()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not `Markup`: names and texts only
    )
    parts: list[Table | Section] = [report.overview, *report.sections]
    has_charts = any(charts.values())
    script = _file("page.js")
    bundle = vega_bundle() if has_charts else ""
    scripts = [text for text in (bundle, script) if text]
    for text in scripts:
        # Either would end the element, or change the text that is hashed.
        if "</script" in text.lower() or "<!--" in text or "\r" in text:
            raise ValueError("a script of the page has text that HTML does not allow within a script")
    return environment.get_template("page.html.jinja").render(
        report=report,
        version=__version__,
        css=Markup(_file("page.css")),
        script=Markup(script),
        bundle=Markup(bundle),
        script_hashes=Markup(" ".join(map(_csp_hash, scripts))),
        notices=_file("notices.txt"),
        specs={chart.id: chart.spec for own in charts.values() for chart in own},
        charts={
            part.id: [(chart, base64.b64encode(svg_from_chart(chart).encode()).decode()) for chart in charts.get(part.id, ())]
            for part in parts
        },
    )


def _file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
