"""The page of the benchmark of the client, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.calling.figures import P50, RATE, TITLES
from benchmarks.common.markdown import (
    figures_table,
    format_measurement,
    format_spread,
    note_paragraph,
    quick_warning,
    served_members_lines,
    table,
)


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    one, many, imports, effort = result["one_caller"], result["many_callers"], result["imports"], result["effort"]
    return f"""# Cost of the client compared with bare callers
{quick_warning(result)}
{_how(result, json_name)}

## Figures

Ratios are within a round: median of {effort["rounds"]} rounds, with minimum and maximum. For p50, lower is better; for throughput, higher.

{_figures(result)}

## One caller with one image

`Client` with one and with two servers (the same one, over two connections), our transport without a client, and bare callers: tritonclient
as its documents show it, and stubs and sockets with requests that were made before. The forms take turns after every {effort["calls"]}
calls, {one["calls"]:,} calls of each in all. Processor time is that of the caller's process, without the server.

{table(("form", "p50 in ms", "processor time in µs"), _one_caller(one))}

## Many callers with {many["batch"]} images each

{many["threads"]} threads share a form; {many["tasks"]} tasks of one event loop share an `AsyncClient`. The forms take turns in random
order, {effort["turns"]} in a round, each of {effort["seconds"]:g} s.

{table(("form", "images per second", "calls"), _many_callers(many))}

## Imports

Seconds in a new process, without the start of the interpreter; {len(imports["import_s"]["rounds"])} runs of each.

{table(("", "median (minimum to maximum)"), _imports(imports))}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    versions = result["versions"]
    how = (
        f"{format_measurement(result, json_name, 'client')}tritonclient {versions['tritonclient']}, grpcio {versions['grpcio']}, "
        f"httptools {versions['httptools']}, "
    )
    return "\n".join([how, *served_members_lines(result), *note_paragraph(result)])


def _figures(result: Mapping[str, Any]) -> str:
    spreads = result["ratios"] | {"import_s": result["imports"]["import_s"]}
    return figures_table(result["figures"], TITLES, spreads)


def _one_caller(one: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, format_spread(form[P50]), format_spread(form["cpu_us"], ".0f")) for name, form in one["forms"].items()]


def _many_callers(many: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, format_spread(form[RATE], ".0f"), f"{form['calls']:,}") for name, form in many["forms"].items()]


def _imports(imports: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(TITLES[key], format_spread(imports[key], ".3f")) for key in ("import_s", "first_http_call_s")]
    return [*rows, (TITLES["unwanted_modules"], ", ".join(imports["unwanted_modules"]) or "none")]
