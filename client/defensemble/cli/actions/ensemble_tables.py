"""How ensembles and their edits are printed."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...ensembles import Applied, EnsembleState, MemberState
from ...ensembles.local_servers import local_server_status
from ...ensembles.server_models import is_averaging
from ..shell import this_command

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Prunable, Snapshot

_WIDTH_OF_A_FILE = 140
_DIGEST = 12
_MOST_NAMED = 4


def print_applied(applied: Applied, options: str) -> None:
    """Says what an edit did, or would do, and how it is undone by a command with the `options` that say where."""
    for remark in applied.remarks:
        click.echo(f"remark: {remark}", err=True)
    if applied.dry_run:
        click.echo(f"{applied.ensemble}: would change:" if applied.changes else f"{applied.ensemble}: nothing would change on disk")
    elif not applied.changes and not applied.loaded and applied.edit is None:
        click.echo(f"{applied.ensemble}: nothing differs, nothing was done")
        return
    else:
        click.echo(f"{applied.ensemble}: changed:" if applied.changes else f"{applied.ensemble}: brought in line with its folder")
    for change in applied.changes:
        click.echo(f"  {change}")
    for url, models in applied.loaded.items():
        click.echo(f"  {'would load' if applied.dry_run else 'loaded'} {_few(models)} on {url}")
    for url, models in applied.unloaded.items():
        click.echo(f"  unloaded {_few(models)} from {url}")
    for model, why in applied.left_loaded.items():
        click.echo(f"left loaded: {model}: {why}", err=True)
    if applied.dry_run:
        return
    served = f"serving on {', '.join(applied.servers)}" if applied.servers else "files alone: no server was told"
    seconds = applied.seconds.get("total", 0.0)
    click.echo(f"{served}, after {seconds:.2f} s")
    if applied.edit is None:
        return
    again = f"{this_command()} ensemble rollback"
    if applied.edit.undoes:
        click.echo(f"go forward again: {again} --to {applied.edit.undoes[0]}{options}    (edit {applied.edit.id})")
    else:
        click.echo(f"undo it: {again} --ensemble {applied.ensemble}{options}    (edit {applied.edit.id})")


def _few(models: Sequence[str]) -> str:
    """Names of models; of many averaging models, how many."""
    averaging = [model for model in models if is_averaging(model)]
    if len(averaging) <= _MOST_NAMED:
        return ", ".join(models)
    return ", ".join([*(model for model in models if model not in averaging), f"{len(averaging)} averaging models"])


def values_from_applied(applied: Applied) -> dict[str, Any]:
    """What an edit did, as JSON."""
    return {
        "schema": "defensemble.applied/1",
        "id": None if applied.edit is None else applied.edit.id,
        **{name: value for name, value in vars(applied).items() if name != "edit"},
        "seconds": {kind: round(seconds, 6) for kind, seconds in applied.seconds.items()},
    }


def print_state(state: EnsembleState) -> None:
    """A table of an ensemble's members."""
    what = f"averages {state.ensemble.average}" if state.ensemble is not None else "not wired as an export wires it"
    shape = "x".join(map(str, state.input_shape))
    title = f"{escape(state.name)}: {what}; images {shape}, {state.num_classes} classes, up to {state.max_batch_size} a call"
    table = Table(title=title, title_justify="left")
    for name in ("member", "weight", "share", "precision", "masks", "accuracy (checkpoint)"):
        table.add_column(name, justify="right" if name in ("weight", "share") else "left")
    if state.served:
        table.add_column("served")
    for member in state.members:
        one = member.info
        cells = [
            f"{one.model}@{one.version}",
            f"{one.weight:g}",
            f"{100 * one.share:.1f} %",
            one.precision or "?",
            (one.mask_digest or "none known")[:_DIGEST],
            _accuracy(member),
        ]
        if state.served:
            cells.append("yes" if set(member.served.values()) == {"yes"} else "no, see below")
        table.add_row(*(escape(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(table)
    rule = "unknown" if state.preprocessing is None else json.dumps(dict(state.preprocessing))
    click.echo(f"preprocessing: {rule}")
    for url, answer in state.served.items():
        restarts = ""
        if (status := local_server_status(url)) is not None and status.restarts:
            restarts = f"; restarted {status.restarts} time{'' if status.restarts == 1 else 's'}, last: {status.fault_text}"
        click.echo(f"served by {url}: {answer}{restarts}")
        for member in state.members:
            if member.served[url] != "yes":
                click.echo(f"  {member.info.model}@{member.info.version}: {member.served[url]}")
    of_members = [f"{one.info.model}@{one.info.version}: {one.info.problem}" for one in state.members if one.info.problem]
    for problem in (*state.problems, *of_members):
        click.echo(problem)


def values_from_state(state: EnsembleState) -> dict[str, Any]:
    """An ensemble as JSON."""
    return {
        "schema": "defensemble.ensemble/1",
        "average": None if state.ensemble is None else state.ensemble.average,
        **{name: value for name, value in vars(state).items() if name != "ensemble"},
        "members": [{**asdict(one.info), "served": one.served} for one in state.members],
    }


def print_edits(edits: Sequence[Edit], standing: Container[str]) -> None:
    """The history, an edit after the other; `standing` are the ids of those that a rollback can undo."""
    for edit in edits:
        undone = f" (undoes {', '.join(edit.undoes)})" if edit.undoes else ""
        if edit.action != "rollback" and edit.id not in standing:
            undone += " (undone)"
        click.echo(f"{edit.id}  {edit.time}  {edit.who}  {edit.action} '{edit.ensemble}'{undone}")
        if edit.message is not None:
            for line in edit.message.splitlines():
                click.echo(f"    {_printable(line)}")
        for change in edit.changes:
            click.echo(f"  - {change}")
        click.echo(f"    config.pbtxt {_digest(edit.before)} -> {_digest(edit.after)}")


def print_prunable(found: Sequence[Prunable]) -> None:
    """What `prune` would delete."""
    for one in found:
        version = "" if one.version is None else f"@{one.version}"
        click.echo(f"{one.model}{version}  {one.bytes:,} bytes: {one.why}")


def _printable(text: str) -> str:
    """A person's words without what would steer a terminal."""
    return "".join("?" if unicodedata.category(letter) == "Cc" else letter for letter in text)


def _accuracy(member: MemberState) -> str:
    one = member.info
    if one.record_accuracy is None:
        return "not known"
    n = "" if one.record_n is None else f", n = {one.record_n:,}"
    return f"{100 * one.record_accuracy:.2f} %{n}{'' if one.record_data is None else f', {one.record_data}'}"


def _digest(snapshot: Snapshot | None) -> str:
    return "none" if snapshot is None else snapshot.digests.get("config.pbtxt", "")[:_DIGEST]
