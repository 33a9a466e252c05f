"""The actions of `defensemble probe compare` and `probe merge`, and the lines of `--fail-under`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..._printable import printable
from ...probes.classes import probe_class
from ...probes.comparing import Comparison, RateDifference, TargetComparison, compare
from ...probes.limits import misses
from ...probes.merging import merge
from ...probes.outcome import ProbeOutcome
from ...probes.outcome_reader import read_outcome
from ...probes.setting_text import different_texts
from ...results.intervals import Rate
from ...results.result_file import check_writable, write_result
from ..cells import cell
from ..notes import print_note

_TITLES = {
    "accuracy": "accuracy",
    "defense_rate": "defense rate",
    "defense_rate_source_fooled": "defense rate, source fooled",
    "accuracy_on_common": "accuracy on common",
}


def compare_results(first: Path, second: Path, targets: Sequence[str], *, as_json: bool) -> None:
    """Print the comparison of two result files.

    Args:
        first: The first file.
        second: The second file.
        targets: `NAME` or `NAME=OTHER`; none: all names that both have.
        as_json: Whether to print JSON instead of tables.

    Raises:
        InputError: A file is no result, or there is no such target.
        OSError: A file cannot be read.
    """
    pairs = [(name, other or name) for name, _, other in (text.partition("=") for text in targets)]
    comparison = compare(read_outcome(first), read_outcome(second), pairs)
    if as_json:
        click.echo(json.dumps({"a": str(first), "b": str(second), **comparison.json()}, indent=2, allow_nan=False))
        return
    console = Console()
    console.print(printable(f"A: {first}\nB: {second}"), highlight=False, markup=False, soft_wrap=True)
    for key, one, other in comparison.settings:
        texts = different_texts(key, one, other)
        console.print(printable("{}: {} (A), {} (B)".format(key, *texts)), highlight=False, markup=False, soft_wrap=True)
    for note in comparison.notes:
        print_note(note)
    for target in comparison.targets:
        console.print()
        console.print(printable(_title(target)), highlight=False, markup=False, soft_wrap=True)
        console.print(_table(target, comparison))


def merge_results(files: Sequence[Path], out: Path) -> None:
    """Merge result files of all shards of one run, or of different targets, and write the result.

    Args:
        files: The files: shards in any order, or results in the order of their targets.
        out: Where to write; an earlier file is kept under another name.

    Raises:
        InputError: A file is no result, or the results do not belong together.
        OSError: A file cannot be read or written.
    """
    check_writable(out)
    outcomes = [read_outcome(path) for path in files]
    kind = probe_class(outcomes[0].probe)
    merged = merge(outcomes, [str(path) for path in files], kind.summary)
    merged = replace(merged, targets=tuple(replace(one, details=kind.conclude(one.details, merged.checks)) for one in merged.targets))
    earlier = write_result(out, merged.json(), keep_earlier=True)
    suffix = "" if earlier is None else f" (the earlier result is kept as {earlier})"
    parts = f"of {len(files)} shards" if outcomes[0].shard else f"and {len(merged.targets)} targets"
    click.echo(f"wrote {out}: {len(merged.rows):,} images {parts}{suffix}")


def print_misses(outcome: ProbeOutcome, limits: Mapping[str, float]) -> bool:
    """Print a line per rate that is below its limit, on standard error, and return whether there is one.

    Args:
        outcome: The outcome, after its result was written.
        limits: What `--fail-under` asks for: see `limits_from_texts`.

    Raises:
        InputError: The probe does not have such a rate.
    """
    found = misses(outcome, limits)
    for miss in found:
        click.echo(printable(f"--fail-under: {miss}"), err=True)
    return bool(found)


def _title(target: TargetComparison) -> str:
    name = target.a if target.a == target.b else f"{target.a} (A) and {target.b} (B)"
    return f"{name}, %" + (f"; the model differs: {', '.join(target.identity)}" if target.identity else "")


def _table(target: TargetComparison, comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("condition", overflow="fold")
    table.add_column("rate", overflow="fold")
    for header in ("A", "B", "B - A", "p" if comparison.n_same else "95 % interval"):
        table.add_column(header, justify="right", no_wrap=True)
    previous = None
    for one in target.rates:
        name = "" if one.condition == previous else cell(one.condition)
        difference = "-" if one.difference is None else f"{100 * one.difference:+.1f}"
        table.add_row(name, _TITLES[one.name], _percent(one.a), _percent(one.b), difference, _last_cell(one))
        previous = one.condition
    return table


def _last_cell(one: RateDifference) -> str:
    if one.test is not None:
        return f"{one.test.p:.2g}"
    return "" if one.low is None or one.high is None else f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"


def _percent(rate: Rate | None) -> str:
    return "-" if rate is None or rate.value is None else f"{100 * rate.value:.1f}"
