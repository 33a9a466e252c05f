"""`defensemble report`: write a report on results of probes or of a load test."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from ..choices import REPORT_FORMATS
from ..options import EXISTING_PATH, PATH
from ..verb import Verb


@cloup.command("report", cls=Verb, short_help="Write a report on results of probes or of a load test.")
@click.argument("files", nargs=-1, required=True, type=EXISTING_PATH, metavar="FILE...")
@click.option("-o", "--out", type=PATH, metavar="FILE", default=Path("report.html"), help="Report to write; an earlier file is replaced.")
@click.option(
    "--format",
    "form",
    type=click.Choice(REPORT_FORMATS),
    help="Format of the report.  [default: by the suffix of --out]",
    show_default=False,
)
@click.option(
    "--title",
    metavar="TITLE",
    help="Title of the report.  [default: Robustness report, or Load test]",
    show_default=False,
)
@click.option("--charts", type=PATH, metavar="FOLDER", help="Also write each chart as an SVG file; a report in Markdown shows them.")
def command(files: tuple[Path, ...], out: Path, form: str | None, title: str | None, charts: Path | None) -> None:
    r"""Write one report on result files of probes, or on that of a load test.

    HTML is one page that needs no network, with tables, charts, examples, sanity checks and settings. Markdown has the same tables, and CSV
    has one row for each figure. HTML and charts need the extra `probes`, or `load` for a load test.

    \b
    Examples:
      defensemble report noise.json -o noise.html
      defensemble report noise.json transfer.json square.json -o robustness.html --title "Robustness on CIFAR-10"
      defensemble report noise.json -o noise.md --charts charts
      defensemble report load.json -o load.html
    """
    from ..actions.report import report_and_print

    if title is not None and not title.strip():
        raise click.BadParameter("the title is empty", param_hint="--title")
    report_and_print(files, out, form, title, charts)
