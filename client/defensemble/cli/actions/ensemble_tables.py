"""Printing ensembles and their edits, as tables and as JSON."""

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
from ..notes import print_note
from ..shell import this_command

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Prunable, Snapshot
    from defensemble_repository.checks.finding import Finding

_WIDTH_WITHOUT_TERMINAL = 140
_DIGEST_LENGTH = 12
_MAX_LISTED_AVERAGES = 4


def print_applied(applied: Applied, target_arguments: str) -> None:
    """Print what an edit did, or would do, and the command that undoes it.

    Args:
        applied: The result of the edit.
        target_arguments: The options that make the command work on the same folders and servers.
    """
    for remark in applied.remarks:
        print_note(remark)
    if applied.dry_run:
        click.echo(f"{applied.ensemble}: would change:" if applied.changes else f"{applied.ensemble}: nothing would change on disk")
    elif not applied.changes and not applied.loaded and applied.edit is None:
        click.echo(f"{applied.ensemble}: no differences, nothing to do")
        return
    else:
        click.echo(
            f"{applied.ensemble}: changed:" if applied.changes else f"{applied.ensemble}: the servers now serve what is in the folder"
        )
    for change in applied.changes:
        click.echo(f"  {change}")
    for url, models in applied.loaded.items():
        click.echo(f"  {'would load' if applied.dry_run else 'loaded'} {_short_list(models)} on {url}")
    for url, models in applied.unloaded.items():
        click.echo(f"  unloaded {_short_list(models)} from {url}")
    for model, reason in applied.left_loaded.items():
        print_note(f"left loaded: {model}: {reason}")
    if applied.dry_run:
        return
    served = f"serving on {', '.join(applied.servers)}" if applied.servers else "changed files only: no server was contacted"
    click.echo(f"{served}, after {applied.seconds.get('total', 0.0):.2f} s")
    if applied.edit is None:
        return
    command = f"{this_command()} ensemble rollback {applied.ensemble}"
    if applied.edit.undoes:
        click.echo(f"redo it: {command} --to {applied.edit.undoes[0]}{target_arguments}    (edit {applied.edit.id})")
    else:
        click.echo(f"undo it: {command}{target_arguments}    (edit {applied.edit.id})")


def _short_list(models: Sequence[str]) -> str:
    """Return the names of models, and only the number of averaging models where there are many."""
    averaging = [model for model in models if is_averaging(model)]
    if len(averaging) <= _MAX_LISTED_AVERAGES:
        return ", ".join(models)
    return ", ".join([*(model for model in models if model not in averaging), f"{len(averaging)} averaging models"])


def values_from_applied(applied: Applied) -> dict[str, Any]:
    """Return the JSON values of an edit's result."""
    return {
        "schema": "defensemble.applied/1",
        "id": None if applied.edit is None else applied.edit.id,
        **{name: value for name, value in vars(applied).items() if name != "edit"},
        "seconds": {kind: round(seconds, 6) for kind, seconds in applied.seconds.items()},
    }


def values_from_finding(finding: Finding) -> dict[str, Any]:
    """Return the JSON values of a finding of `check`."""
    return {
        "model": finding.model,
        "error": finding.is_error,
        "text": finding.text,
        "file": None if finding.file is None else str(finding.file),
        "line": finding.line,
    }


def print_state(state: EnsembleState) -> None:
    """Print an ensemble as a table of its members, and its state on each server."""
    Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL).print(_member_table(state))
    click.echo(f"preprocessing: {'unknown' if state.preprocessing is None else json.dumps(dict(state.preprocessing))}")
    for url, answer in state.served.items():
        click.echo(f"served by {url}: {answer}{_restarts_of(url)}")
        for member in state.members:
            if member.served[url] != "yes":
                click.echo(f"  {member.info.model}@{member.info.version}: {member.served[url]}")
    member_problems = [
        f"{member.info.model}@{member.info.version}: {member.info.problem}" for member in state.members if member.info.problem
    ]
    for problem in (*state.problems, *member_problems):
        click.echo(problem)


def _member_table(state: EnsembleState) -> Table:
    average = f"averages {state.ensemble.average}" if state.ensemble is not None else "is not wired as an export wires it"
    shape = "x".join(map(str, state.input_shape))
    title = f"{escape(state.name)}: {average}; images {shape}, {state.num_classes} classes, up to {state.max_batch_size} images per call"
    table = Table(title=title, title_justify="left")
    for name in ("member", "weight", "share", "precision", "masks", "accuracy (checkpoint)"):
        table.add_column(name, justify="right" if name in ("weight", "share") else "left")
    if state.served:
        table.add_column("served")
    for member in state.members:
        info = member.info
        cells = [
            f"{info.model}@{info.version}",
            f"{info.weight:g}",
            f"{100 * info.share:.1f} %",
            f"{info.precision or '?'}{', mask-aware' if info.mask_aware else ''}",
            (info.mask_digest or "unknown")[:_DIGEST_LENGTH],
            _accuracy(member),
        ]
        if state.served:
            cells.append("yes" if set(member.served.values()) == {"yes"} else "no, see below")
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _restarts_of(url: str) -> str:
    """Return how often a server of this machine was restarted and why, else an empty text."""
    status = local_server_status(url)
    if status is None or not status.restarts:
        return ""
    return f"; restarted {status.restarts} time{'' if status.restarts == 1 else 's'}, last: {status.fault_text}"


def values_from_state(state: EnsembleState) -> dict[str, Any]:
    """Return the JSON values of an ensemble."""
    return {
        "schema": "defensemble.ensemble/1",
        "average": None if state.ensemble is None else state.ensemble.average,
        **{name: value for name, value in vars(state).items() if name != "ensemble"},
        "members": [{**asdict(member.info), "served": member.served} for member in state.members],
    }


def print_edits(edits: Sequence[Edit], undoable_ids: Container[str]) -> None:
    """Print the history, oldest edit first; `undoable_ids` are the ids of the edits that a rollback can undo."""
    for edit in edits:
        undone = f" (undoes {', '.join(edit.undoes)})" if edit.undoes else ""
        if edit.action != "rollback" and edit.id not in undoable_ids:
            undone += " (undone)"
        click.echo(f"{edit.id}  {edit.time}  {edit.who}  {edit.action} '{edit.ensemble}'{undone}")
        if edit.message is not None:
            for line in edit.message.splitlines():
                click.echo(f"    {_without_control_characters(line)}")
        for change in edit.changes:
            click.echo(f"  - {change}")
        click.echo(f"    config.pbtxt {_short_digest(edit.before)} -> {_short_digest(edit.after)}")


def print_prunable(prunable: Sequence[Prunable]) -> None:
    """Print what `prune` would delete."""
    for entry in prunable:
        version = "" if entry.version is None else f"@{entry.version}"
        click.echo(f"{entry.model}{version}  {entry.bytes:,} bytes: {entry.reason}")


def _without_control_characters(text: str) -> str:
    """Replace the characters of a user's text that would control the terminal."""
    return "".join("?" if unicodedata.category(character) == "Cc" else character for character in text)


def _accuracy(member: MemberState) -> str:
    """Return the accuracy that the member's checkpoint recorded, with n and the data set."""
    info = member.info
    if info.record_accuracy is None:
        return "unknown"
    n = "" if info.record_n is None else f", n = {info.record_n:,}"
    return f"{100 * info.record_accuracy:.2f} %{n}{'' if info.record_data is None else f', {info.record_data}'}"


def _short_digest(snapshot: Snapshot | None) -> str:
    return "none" if snapshot is None else snapshot.digests.get("config.pbtxt", "")[:_DIGEST_LENGTH]
