"""What the verbs of `defensemble ensemble` do once their arguments are read."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from defensemble_repository.target import TARGETS

from ..._client.client import Client
from ..._exceptions import InputError
from ...ensembles import Applied, Ensembles, Replica
from ...ensembles.local_servers import find_local_server, find_local_servers
from ..interrupts import clean_up_on_sigint
from ..notes import print_note, print_progress, shows_progress
from ..shell import this_command
from .ensemble_settings import EditSettings, TargetSettings
from .ensemble_tables import (
    print_applied,
    print_edits,
    print_prunable,
    print_state,
    values_from_applied,
    values_from_finding,
    values_from_state,
)


@contextmanager
def open_ensembles(targets: TargetSettings, **timeouts: float) -> Iterator[Ensembles]:
    """Yield the ensembles of these folders, with clients of their servers; `timeouts` are `load_timeout_s` and `idle_timeout_s`."""
    clean_up_on_sigint()
    with ExitStack() as stack:

        def client(url: str, key: str | None) -> Client:
            return stack.enter_context(Client(url, timeout_s=targets.timeout_s, admin_key=key))

        yield Ensembles.over(
            _replicas(targets, client),
            wait_s=targets.wait_s,
            on_progress=lambda text: click.secho(f"  {text}", err=True, dim=True) if sys.stderr.isatty() and shows_progress() else None,
            on_warning=print_note,
            **timeouts,
        )


def edit(targets: TargetSettings, settings: EditSettings, action: Callable[[Ensembles, dict[str, Any]], Applied | list[Applied]]) -> None:
    """Carry out an edit and print the result; `action` gets the ensembles, and `message` and `dry_run` by name."""
    with open_ensembles(targets, load_timeout_s=settings.load_timeout_s, idle_timeout_s=settings.idle_timeout_s) as ensembles:
        # SIGTERM ends an edit as Ctrl-C does: at a step after which the edit can be undone.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        try:
            result = action(ensembles, {"message": settings.message, "dry_run": settings.dry_run})
        except KeyboardInterrupt:
            raise click.ClickException(
                "interrupted; the lines above state what was changed or undone, and without such lines nothing was changed. "
                "`defensemble ensemble history` lists the edits that took effect"
            ) from None
    results = [result] if isinstance(result, Applied) else result
    _warn_of_new_servers(targets, {url for applied in results for url in applied.servers})
    if settings.as_json:
        values = [values_from_applied(applied) for applied in results]
        click.echo(json.dumps(values[0] if isinstance(result, Applied) else values, indent=2))
        return
    for applied in results:
        print_applied(applied, targets.to_arguments())


def show_ensembles(name: str | None, output_format: str, targets: TargetSettings) -> None:
    """Print ensembles as a table, as the YAML that `apply` reads, or as JSON."""
    from defensemble_export.editing import yaml_from_ensemble
    from defensemble_server import dead_servers

    with open_ensembles(targets) as ensembles:
        if output_format == "yaml":
            names = ensembles.names()
            if name is None and len(names) != 1:
                raise InputError(
                    f"the repository has {len(names)} ensembles ({', '.join(names) or 'none'}), and a YAML file declares one: add its name"
                )
            click.echo(yaml_from_ensemble(ensembles.declared(name or names[0])), nl=False)
            return
        states = ensembles.show(name)
    if targets.finds_servers:
        for dead in dead_servers(targets.repository):
            print_note(f"the server on gRPC port {dead.grpc_port} {dead.text}; see {dead.log}")
    if output_format == "json":
        click.echo(json.dumps([values_from_state(state) for state in states], indent=2))
        return
    if not states:
        print_progress(f"no ensemble yet; create one: {this_command()} ensemble create NAME MODEL...")
    for state in states:
        print_state(state)


def list_ensembles(repository: Path, *, as_json: bool) -> None:
    """Print the names of the ensembles, one per line or as a JSON list."""
    names = Ensembles(repository).names()
    if as_json:
        click.echo(json.dumps(names))
    for name in () if as_json else names:
        click.echo(name)


def check_ensembles(name: str | None, runtime: str, targets: TargetSettings, *, as_json: bool) -> None:
    """Print the findings of the checks; exit with status 1 if one of them is an error."""
    with open_ensembles(targets) as ensembles:
        findings = ensembles.check(name, runtime=runtime)
        errors = sum(finding.is_error for finding in findings)
        names = [] if errors else [name] if name is not None else ensembles.names()
    if as_json:
        click.echo(json.dumps([values_from_finding(finding) for finding in findings], indent=2))
    for finding in () if as_json else findings:
        click.echo(f"{'' if finding.is_error else 'note: '}{finding}")
    if errors:
        raise click.ClickException(f"{errors} finding{'' if errors == 1 else 's'} to fix (checked for {TARGETS[runtime]})")
    if as_json:
        return
    unchecked = ", ".join(dict.fromkeys(finding.model for finding in findings if finding.unchecked))
    verdict = f"{TARGETS[runtime]} can load it, and its graphs compute what the configurations state"
    if unchecked:
        verdict = f"no finding keeps {TARGETS[runtime]} from loading it, but the files of {unchecked} were not checked"
    click.echo(f"{', '.join(names)}: {verdict}" if names else "no ensemble yet")


def show_differences(file: Path | None, targets: TargetSettings, *, as_json: bool) -> bool:
    """Print the differences between a YAML file and the repository, or between the repository and its servers.

    Returns:
        Whether there are differences.
    """
    with open_ensembles(targets) as ensembles:
        differences = _differences_of_servers(ensembles) if file is None else _differences_of_file(ensembles, file)
    if as_json:
        click.echo(json.dumps(differences))
    for difference in () if as_json else differences:
        click.echo(difference)
    if not differences:
        print_progress("no differences")
    return bool(differences)


def _differences_of_file(ensembles: Ensembles, file: Path) -> list[str]:
    """Return what `apply FILE` would change."""
    from defensemble_export.editing import read_declaration

    declared = read_declaration(file)
    applied = ensembles.apply(declared, dry_run=True)
    loads = [f"{url}: would load {', '.join(models)}" for url, models in applied.loaded.items()]
    return [*(f"{declared.name}: {change}" for change in applied.changes), *loads]


def _differences_of_servers(ensembles: Ensembles) -> list[str]:
    """Return what the servers serve differently from the files."""
    differences = []
    for state in ensembles.show():
        members = {f"{member.info.model}@{member.info.version}": member.served for member in state.members}
        for model, served in {f"'{state.name}'": state.served, **members}.items():
            differences += [f"{state.name}: {model} on {url}: {answer}" for url, answer in served.items() if answer != "yes"]
    return differences


def show_history(name: str | None, last: int, repository: Path, *, as_json: bool) -> None:
    """Print the edits of an ensemble, or of all."""
    from defensemble_export.editing import line_from_edit, undoable_edits

    ensembles = Ensembles(repository, on_warning=print_note)
    edits = ensembles.history(name)
    if name is not None and not edits and name not in ensembles.names():
        existing = ", ".join(ensembles.names()) or "none"
        raise InputError(f"'{name}' has no edit in the history and is no ensemble of {repository}; its ensembles: {existing}")
    undoable_ids = {edit.id for ensemble in {edit.ensemble for edit in edits} for edit in undoable_edits(edits, ensemble)}
    earlier = max(0, len(edits) - last) if last else 0
    edits = edits[earlier:]
    if as_json:
        for edit in edits:
            click.echo(line_from_edit(edit).decode())
        return
    if not edits:
        print_progress("no edit yet")
    if earlier:
        print_progress(f"{earlier} earlier edits are not shown; --last 0 shows all")
    print_edits(edits, undoable_ids)


def prune_repository(keep_edits: int, targets: TargetSettings, *, dry_run: bool, yes: bool) -> None:
    """List what can be deleted, ask, and delete it."""
    with open_ensembles(targets) as ensembles:
        prunable = ensembles.prune(keep_edits=keep_edits, dry_run=True)
        if not prunable:
            click.echo("nothing to prune")
            return
        print_prunable(prunable)
        if dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nothing was deleted: without a terminal to ask on, pass --yes, or --dry-run")
            click.confirm("delete these?", abort=True)
        deleted = ensembles.prune(keep_edits=keep_edits)
    click.echo(f"deleted {len(deleted)}, {sum(entry.bytes for entry in deleted):,} bytes")


def _warn_of_new_servers(targets: TargetSettings, edited_urls: Container[str]) -> None:
    """Warn of servers that started after the edit looked for them: an edit may wait for another one to finish."""
    if not targets.finds_servers:
        return
    for url, _ in find_local_servers(targets.repository, print_note):
        if url not in edited_urls:
            print_note(f"{url} started during the edit and may serve the old files; load the new ones: {this_command()} ensemble reload")


def _replicas(targets: TargetSettings, client: Callable[[str, str | None], Client]) -> Sequence[Replica]:
    """Return the folders with clients of their servers."""
    from defensemble_server import read_admin_key

    def noted_key(url: str) -> str | None:
        state = find_local_server(url)
        return None if state is None else state.admin_key

    key = None if targets.admin_key_file is None else read_admin_key(targets.admin_key_file, print_note)
    if targets.replicas:
        if targets.urls or targets.files_only:
            raise InputError("--replica names servers and their folders: use it without --url and --files-only")
        folders: dict[Path, list[Client]] = {}
        for url, folder in targets.replicas:
            folders.setdefault(folder, []).append(client(url, key or noted_key(url)))
        return [Replica(folder, tuple(clients)) for folder, clients in folders.items()]
    if targets.files_only:
        if targets.urls:
            raise InputError("--files-only contacts no server: use it without --url")
        return [Replica(targets.repository)]
    if targets.urls:
        return [Replica(targets.repository, tuple(client(url, key or noted_key(url)) for url in targets.urls))]
    local = find_local_servers(targets.repository, print_note)
    return [Replica(targets.repository, tuple(client(url, key or noted) for url, noted in local))]
