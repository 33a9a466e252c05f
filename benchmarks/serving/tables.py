"""What was measured, to be read by people: made of the JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the tables of a result of `serving_overhead`."""
    console.print(_rates(result["settings"]))
    console.print(_ratios(result["settings"], result["figures"]))
    server = result["server_process"]
    idle, loaded, starts = server["memory_idle"], server["memory_after_load"], server["start"]
    console.print(
        f"memory (PSS): Triton {_mb(idle, 'triton')} idle, {_mb(loaded, 'triton')} after load; its supervisor {_mb(loaded, 'supervisor')}",
        highlight=False,
    )
    console.print(
        f"start (median of {len(starts['serve_s']['rounds'])}): Triton answers after {starts['triton_answers_s']['median']:.2f} s, "
        f"`serve` has compared its answers after {starts['serve_s']['median']:.2f} s",
        highlight=False,
    )
    for name, text in result["failures"].items():
        console.print(f"[red]{name} failed:[/red] {text}", highlight=False)


def _rates(settings: Mapping[str, Any]) -> Table:
    table = Table(
        title="images a second: median (smallest-largest round)", box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False
    )
    table.add_column("callers x batch", overflow="fold")
    for setting in settings.values():
        table.add_column(f"{setting['callers']} x {setting['batch']}", justify="right", no_wrap=True)
    for name in next(iter(settings.values()))["forms"]:
        cells = []
        for setting in settings.values():
            cell = _with_spread(setting["forms"][name]["images_per_s"], ".0f")
            cells.append(f"[bold]{cell}[/bold]" if name == setting["best_in_process"] else cell)
        table.add_row(name, *cells)
    table.caption = "bold: the best form in the caller's process"
    return table


def _ratios(settings: Mapping[str, Any], figures: Mapping[str, Any]) -> Table:
    table = Table(
        title="Triton's images a second by those of the best form in the caller's process",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for header in ("of all", "not spinning", "a call", "goal", ""):
        table.add_column(header, justify="right", no_wrap=True)
    for key, setting in settings.items():
        for protocol, ratios in setting["ratios"].items():
            figure = figures[f"{protocol}_{key}"]
            call = next(form["call_ms"] for form in setting["forms"].values() if form["protocol"] == protocol)
            table.add_row(
                f"{setting['callers']} x {setting['batch']} {protocol}",
                *(_with_spread(ratios and ratios[kind], ".2f") for kind in ("to_best", "to_best_without_spinning")),
                "-" if call is None else f"{call['p50']:.1f} ms",
                figure["goal"],
                "[green]holds[/green]" if figure["holds"] else "[red]missed[/red]",
            )
    table.caption = "the goal of one caller is set against forms that do not spin"
    return table


def _with_spread(values: Mapping[str, float] | None, form: str) -> str:
    if values is None:
        return "failed"
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def _mb(memory: Mapping[str, int] | None, whose: str) -> str:
    return "-" if memory is None else f"{memory[f'{whose}_pss_bytes'] / 1e6:.0f} MB"
