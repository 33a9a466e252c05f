"""What the verbs of `defensemble ensemble` do once their arguments are read."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from defensemble_repository.target import TARGETS

from ..._client.client import Client
from ..._exceptions import InputError
from ...ensembles import Applied, Ensembles, Replica
from ...ensembles.local_servers import find_local_server, find_local_servers
from ..notes import print_progress
from ..shell import this_command
from .ensemble_tables import print_applied, print_edits, print_prunable, print_state, values_from_applied, values_from_state


@contextmanager
def opened(where: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Iterator[Ensembles]:
    """The ensembles that the options of `target_options` name, with the clients of their servers."""
    with ExitStack() as stack:

        def client(url: str, key: str | None) -> Client:
            return stack.enter_context(Client(url, timeout_s=where["timeout_s"], admin_key=key))

        yield Ensembles.over(
            _replicas(where, client),
            wait_s=where["wait_s"],
            on_progress=lambda text: click.secho(f"  {text}", err=True, dim=True) if sys.stderr.isatty() else None,
            on_warning=print_progress,
            **(settings or {}),
        )


def edit(rest: Mapping[str, Any], act: Callable[[Ensembles, dict[str, Any]], Applied | list[Applied]]) -> None:
    """Carry out an edit, and print what was done; `rest` are the options of `edit_options`."""
    given = {key: rest[key] for key in ("message", "dry_run")}
    with opened(rest, {key: rest[key] for key in ("load_timeout_s", "drain_s")}) as ensembles:
        # What ends it, too, has to be undone, and waits where Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        try:
            done = act(ensembles, given)
        except KeyboardInterrupt:
            raise click.ClickException(
                "interrupted: what became of it is told above, else nothing had been changed (`defensemble ensemble history` tells too)"
            ) from None
    applied = [done] if isinstance(done, Applied) else done
    _tell_of_new_servers(rest, {url for one in applied for url in one.servers})
    if rest["as_json"]:
        values = [values_from_applied(one) for one in applied]
        click.echo(json.dumps(values[0] if isinstance(done, Applied) else values, indent=2))
        return
    for one in applied:
        print_applied(one, _typed_again(rest))


def show_ensembles(name: str | None, form: str, where: Mapping[str, Any]) -> None:
    """Prints ensembles as a table, as YAML that `apply` reads, or as JSON."""
    from defensemble_export.editing import yaml_from_ensemble
    from defensemble_server import dead_servers

    with opened(where) as ensembles:
        if form == "yaml":
            known = ensembles.names()
            if name is None and len(known) != 1:
                raise InputError(
                    f"the repository holds {len(known)} ensembles ({', '.join(known) or 'none'}), and a file declares one: name it"
                )
            click.echo(yaml_from_ensemble(ensembles.declared(name or known[0])), nl=False)
            return
        states = ensembles.show(name)
    if not (where["urls"] or where["replicas"] or where["files_only"]):
        for dead in dead_servers(where["repository"]):
            print_progress(f"the server on gRPC port {dead.grpc_port} {dead.text}; see {dead.log}")
    if form == "json":
        click.echo(json.dumps([values_from_state(state) for state in states], indent=2))
        return
    if not states:
        click.echo(f"no ensemble yet: {this_command()} ensemble create NAME MODEL...", err=True)
    for state in states:
        print_state(state)


def check_ensembles(name: str | None, runtime: str, where: Mapping[str, Any]) -> None:
    """Prints what the checks found; exit status 1 where one of them refuses."""
    with opened(where) as ensembles:
        findings = ensembles.check(name, runtime=runtime)
        refused = 0
        for finding in findings:
            refused += finding.is_error
            click.echo(f"{'' if finding.is_error else 'remark: '}{finding}")
        if refused:
            raise click.ClickException(f"{refused} finding{'' if refused == 1 else 's'} to mend (judged for {TARGETS[runtime]})")
        looked_at = [name] if name is not None else ensembles.names()
    unchecked = ", ".join(dict.fromkeys(finding.model for finding in findings if finding.unchecked))
    judged = f"{TARGETS[runtime]} can load it, and it computes what it says"
    if unchecked:
        judged = f"nothing was found that keeps {TARGETS[runtime]} from loading it, and the files of {unchecked} were not checked"
    click.echo(f"{', '.join(looked_at)}: {judged}" if looked_at else "no ensemble yet")


def show_differences(file: Path | None, where: Mapping[str, Any]) -> bool:
    """Prints what differs, between file and disk, or between disk and servers; returns whether anything does."""
    from defensemble_export.editing import read_declaration

    with opened(where) as ensembles:
        if file is not None:
            wanted = read_declaration(file)
            applied = ensembles.apply(wanted, dry_run=True)
            for change in applied.changes:
                click.echo(f"{wanted.name}: {change}")
            for url, models in applied.loaded.items():
                click.echo(f"{url}: would load {', '.join(models)}")
            differs = bool(applied.changes or applied.loaded)
        else:
            differs = False
            for state in ensembles.show():
                served = {f"{one.info.model}@{one.info.version}": one.served for one in state.members}
                for what, by_server in {f"'{state.name}'": state.served, **served}.items():
                    for url, answer in by_server.items():
                        if answer != "yes":
                            differs = True
                            click.echo(f"{state.name}: {what} on {url}: {answer}")
    if not differs:
        click.echo("nothing differs", err=True)
    return differs


def show_history(name: str | None, last: int, as_json: bool, where: Mapping[str, Any]) -> None:
    """Prints the edits."""
    from defensemble_export.editing import line_from_edit, undoable_edits

    with opened({**where, "files_only": not where["replicas"], "urls": ()}) as ensembles:
        edits = ensembles.history(name)
        if name is not None and not edits and name not in ensembles.names():
            raise InputError(
                f"no edit of '{name}' is in the history, and there is no such ensemble: {', '.join(ensembles.names())} there are"
            )
    standing = {edit.id for one in {edit.ensemble for edit in edits} for edit in undoable_edits(edits, one)}
    earlier = max(0, len(edits) - last) if last else 0
    edits = edits[earlier:]
    if as_json:
        for one in edits:
            click.echo(line_from_edit(one).decode())
        return
    if not edits:
        click.echo("no edit yet", err=True)
    if earlier:
        click.echo(f"{earlier} earlier edits: --last 0 shows them all", err=True)
    print_edits(edits, standing)


def prune_repository(keep: int, dry_run: bool, yes: bool, where: Mapping[str, Any]) -> None:
    """Lists what can be deleted, asks, and deletes it."""
    with opened(where) as ensembles:
        found = ensembles.prune(keep=keep, dry_run=True)
        if not found:
            click.echo("nothing to prune")
            return
        print_prunable(found)
        if dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nothing was deleted: nobody is there to be asked, so say --yes, or --dry-run")
            click.confirm("delete these?", abort=True)
        gone = ensembles.prune(keep=keep)
    click.echo(f"deleted {len(gone)}, {sum(one.bytes for one in gone):,} bytes")


def _tell_of_new_servers(rest: Mapping[str, Any], told: Container[str]) -> None:
    """Servers that were looked for before the edit, which may have waited for another, are looked for once more."""
    if rest["urls"] or rest["replicas"] or rest["files_only"]:
        return
    for url, _ in find_local_servers(rest["repository"], print_progress):
        if url not in told:
            click.echo(f"{url} has started meanwhile, and may serve what was there before: {this_command()} ensemble reload", err=True)


def _typed_again(where: Mapping[str, Any]) -> str:
    """The options that said where, for another command there."""
    words = [] if where["replicas"] or where["repository"] == Path("model_repository") else ["--repository", str(where["repository"])]
    words += [word for url in where["urls"] for word in ("--url", url)]
    words += [word for url, folder in where["replicas"] for word in ("--replica", f"{url}={folder}")]
    words += ["--files-only"] if where["files_only"] else []
    words += ["--admin-key-file", str(where["admin_key_file"])] if where["admin_key_file"] is not None else []
    return f" {shlex.join(words)}" if words else ""


def _replicas(where: Mapping[str, Any], client: Callable[[str, str | None], Client]) -> Sequence[Replica]:
    from defensemble_server import read_admin_key

    def noted_key(url: str) -> str | None:
        state = find_local_server(url)
        return None if state is None else state.admin_key

    key = None if where["admin_key_file"] is None else read_admin_key(where["admin_key_file"], print_progress)
    if where["replicas"]:
        if where["urls"] or where["files_only"]:
            raise InputError("--replica names servers and folders together: give it without --url and --files-only")
        folders: dict[Path, list[Client]] = {}
        for url, folder in where["replicas"]:
            folders.setdefault(folder, []).append(client(url, key or noted_key(url)))
        return [Replica(folder, tuple(clients)) for folder, clients in folders.items()]
    repository = where["repository"]
    if where["files_only"]:
        if where["urls"]:
            raise InputError("--files-only tells no server: give it without --url")
        return [Replica(repository)]
    if where["urls"]:
        return [Replica(repository, tuple(client(url, key or noted_key(url)) for url in where["urls"]))]
    return [Replica(repository, tuple(client(url, key or noted) for url, noted in find_local_servers(repository, print_progress)))]
