"""`defensemble ensemble`: who votes, with which weight, averaged how; edited while it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..ensemble_options import edit_options, target_options
from ..options import AVERAGE, PATH, GroupInOrder, weights_option

if TYPE_CHECKING:
    from ...ensembles import Applied, Ensembles


def _edit(options: dict[str, Any], act: Callable[[Ensembles, dict[str, Any]], Applied | list[Applied]]) -> None:
    from ..actions.ensemble import edit

    edit(options, act)


# Listed in this order: to look, to edit, to go back.
@click.group("ensemble", cls=GroupInOrder, short_help="Edit an ensemble while it serves: who votes, with which weight, averaged how.")
def command() -> None:
    r"""Look at the ensembles of a model repository, and edit them while they serve.

    An edit is checked before anything changes, takes effect under full load without a failed request, and is undone by `rollback`. Where
    a step of it fails, the old state is put back. Without --url, servers that `defensemble serve` runs here on the folder are told; where
    none runs, the files alone are edited.

    \b
    Examples:
      defensemble ensemble show
      defensemble ensemble weight ensemble keep0.3=2 -m "does best on the new camera"
      defensemble ensemble rollback
    """


@command.command("show", short_help="Show members, their weights and accuracies, and whether they are served.")
@click.argument("name", required=False)
@target_options
@click.option("--format", "form", type=click.Choice(["table", "yaml", "json"]), default="table", help="yaml: for `apply`.")
def show(name: str | None, form: str, **where: Any) -> None:
    r"""Show the ensemble NAME, or all: members, weights, precision, digest of the masks, accuracy that the checkpoint records.

    A line below the table shows how images of another size are resized (`preprocessing`). The column `served` shows whether all servers
    serve the files on disk; where one does not, a line below gives the reason.

    \b
    Examples:
      defensemble ensemble show
      defensemble ensemble show ensemble --format yaml        # a file that `apply` reads
      defensemble ensemble show --url http://10.0.0.7:8000 --admin-key-file admin.key
    """
    from ..actions.ensemble import show_ensembles

    show_ensembles(name, form, where)


@command.command("list", short_help="The names of the ensembles.")
@target_options
def names(**where: Any) -> None:
    r"""List the ensembles of the repository, one a line.

    \b
    Examples:
      defensemble ensemble list
      defensemble ensemble list --repository models
    """
    from ..actions.ensemble import opened

    with opened(where) as ensembles:
        for name in ensembles.names():
            click.echo(name)


@command.command("check", short_help="What `serve` would refuse, and what else is wrong.")
@click.argument("name", required=False)
@click.option(
    "--runtime",
    type=click.Choice(["embedded", "docker"]),
    default="embedded",
    help="Which Triton is to serve it, as for `defensemble serve`.",
)
@target_options
def check(name: str | None, runtime: str, **where: Any) -> None:
    r"""Check the ensemble NAME, or all models of the repository, as they are on disk; exit status 1 where `serve` would refuse one.

    \b
    Examples:
      defensemble ensemble check
      defensemble ensemble check ensemble --repository models
      defensemble ensemble check --runtime docker
    """
    from ..actions.ensemble import check_ensembles

    check_ensembles(name, runtime, where)


@command.command("create", short_help="Create an ensemble from models of the repository.")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar="MODEL[@VERSION]...")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=weights_option,
    metavar="MODEL[@VERSION]=W",
    help="Weight of a member, above 0. Repeatable.  [default: 1]",
)
@click.option("--average", type=AVERAGE, default="probabilities", help="What is averaged.")
@edit_options
def create(name: str, members: tuple[str, ...], weights: dict[str, float], average: str, **rest: Any) -> None:
    r"""Create the ensemble NAME from models of the repository; without a version, the newest of each.

    The members must agree in input shape, class names and `preprocessing` (how images of another size are resized).

    \b
    Examples:
      defensemble ensemble create canary keep0.1 keep0.3@2
      defensemble ensemble create sharp keep0.1 keep0.3 --weight keep0.1=2 --average logits
    """
    _edit(rest, lambda ensembles, settings: ensembles.create(name, members, weights=weights, average=average, **settings))


@command.command("add", short_help="Add members, or replace one by another.")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar="MODEL[@VERSION]...")
@click.option(
    "--weight", type=float, metavar="W", help="Weight of each new member, above 0.  [default: 1, or that of the member that it replaces]"
)
@click.option("--in-place-of", metavar="MODEL[@VERSION]", help="Member that is removed in the same edit.")
@edit_options
def add(name: str, members: tuple[str, ...], weight: float | None, in_place_of: str | None, **rest: Any) -> None:
    r"""Add models of the repository to the ensemble NAME; without a version, the newest of each.

    They must agree with the members in input shape, class names and `preprocessing` (how images of another size are resized).

    \b
    Examples:
      defensemble ensemble add ensemble keep0.5
      defensemble ensemble add ensemble keep0.5 --weight 0.5 -m "try it with half a vote"
      defensemble ensemble add ensemble keep0.3@2 --in-place-of keep0.3@1
    """
    _edit(rest, lambda ensembles, settings: ensembles.add(name, members, weight=weight, in_place_of=in_place_of, **settings))


@command.command("remove", short_help="Let members vote no more, or take a whole ensemble out of service.")
@click.argument("name")
@click.argument("members", nargs=-1, metavar="[MODEL[@VERSION]]...")
@click.option("--all", "whole", is_flag=True, help="The ensemble itself, in the place of members: its folder goes, its members stay.")
@edit_options
def remove(name: str, members: tuple[str, ...], whole: bool, **rest: Any) -> None:
    r"""Let members of the ensemble NAME vote no more. Their files stay (`prune` deletes what nobody uses).

    \b
    Examples:
      defensemble ensemble remove ensemble keep0.1
      defensemble ensemble remove canary --all
    """
    if whole == bool(members):
        raise click.UsageError("name the members to remove, or, to take the whole ensemble out of service, --all")
    if whole:
        _edit(rest, lambda ensembles, settings: ensembles.delete(name, **settings))
    else:
        _edit(rest, lambda ensembles, settings: ensembles.remove(name, members, **settings))


@command.command("weight", short_help="Give votes other weights.")
@click.argument("name")
@click.argument("weights", nargs=-1, required=True, callback=weights_option, metavar="MODEL[@VERSION]=W...")
@edit_options
def weight(name: str, weights: dict[str, float], **rest: Any) -> None:
    r"""Give votes of the ensemble NAME other weights: above 0, and counted relative to each other.

    \b
    Examples:
      defensemble ensemble weight ensemble keep0.3=2
      defensemble ensemble weight ensemble keep0.1=1 keep0.3=3 --dry-run
    """
    _edit(rest, lambda ensembles, settings: ensembles.weight(name, weights, **settings))


@command.command("average", short_help="Average probabilities, or logits.")
@click.argument("name")
@click.argument("average", type=AVERAGE)
@edit_options
def average(name: str, average: str, **rest: Any) -> None:
    r"""Let the ensemble NAME average its members' probabilities, or their logits.

    \b
    Examples:
      defensemble ensemble average ensemble logits
      defensemble ensemble average ensemble probabilities
    """
    _edit(rest, lambda ensembles, settings: ensembles.average(name, average, **settings))


@command.command("apply", short_help="Make repository and servers equal to a YAML file.")
@click.argument("file", type=PATH)
@edit_options
def apply(file: Path, **rest: Any) -> None:
    r"""Make the ensemble that FILE declares what it says there, on disk and in the servers; nothing happens where nothing differs.

    \b
      name: ensemble
      average: probabilities
      members:
        - model: keep0.1
          version: 1
          weight: 1
        - model: keep0.3
          version: 2
          weight: 0.5

    `show NAME --format yaml` prints such a file.

    \b
    Examples:
      defensemble ensemble apply ensemble.yaml --dry-run
      defensemble ensemble apply ensemble.yaml -m "as agreed on Monday"
    """
    from defensemble_export.editing import read_declaration

    _edit(rest, lambda ensembles, settings: ensembles.apply(read_declaration(file), **settings))


@command.command("diff", short_help="What differs: between file and disk, and between disk and servers.")
@click.argument("file", required=False, type=PATH)
@target_options
@click.option("--exit-code", is_flag=True, help="Exit with status 1 where something differs.")
def diff(file: Path | None, exit_code: bool, **where: Any) -> None:
    r"""Say what `apply FILE` would change; without FILE, where the servers serve something else than lies on disk.

    \b
    Examples:
      defensemble ensemble diff ensemble.yaml
      defensemble ensemble diff --exit-code
    """
    from ..actions.ensemble import show_differences

    if show_differences(file, where) and exit_code:
        raise SystemExit(1)


@command.command("reload", short_help="Take up hand edits of configurations.")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All ensembles of the repository, as without NAME.")
@edit_options
def reload(name: str | None, everything: bool, **rest: Any) -> None:
    r"""Take up what was edited by hand in the config.pbtxt files of the ensemble NAME, or of all, and of their members.

    An averaging model whose parameters were edited is generated again, under its new name. Ensembles that an earlier version wrote with
    two averaging models get one. Servers load what has changed.

    \b
    Examples:
      defensemble ensemble reload --all
      defensemble ensemble reload ensemble -m "two instances of keep0.1"
    """
    if name is not None and everything:
        raise click.UsageError("give either NAME or --all")
    _edit(rest, lambda ensembles, settings: ensembles.reload(name, **settings))


@command.command("history", short_help="All edits: when, who, what and why.")
@click.argument("name", required=False)
@click.option("--last", type=click.IntRange(min=0), default=20, metavar="N", help="The last N alone; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Print the edits as JSON, one a line, with all that was kept.")
@target_options
def history(name: str | None, last: int, as_json: bool, **where: Any) -> None:
    r"""Show the edits of the ensemble NAME, or of all, the latest last; those that were undone are marked.

    \b
    Examples:
      defensemble ensemble history
      defensemble ensemble history canary --last 5
    """
    from ..actions.ensemble import show_history

    show_history(name, last, as_json, where)


@command.command("rollback", short_help="Undo the last edits of an ensemble.")
@click.argument("count", type=click.IntRange(min=1), required=False, metavar="[N]")
@click.option("--ensemble", "name", metavar="NAME", help="Of this ensemble.  [default: the one that was edited last]")
@click.option("--to", metavar="ID", help="Go to what the edit ID left, in the place of N: back, or forward again.")
@edit_options
def rollback(count: int | None, name: str | None, to: str | None, **rest: Any) -> None:
    r"""Undo the last N edits (default: 1) of an ensemble, as one edit; it is again what it was, to the byte.

    Two rollbacks in a row go back two edits.

    \b
    Examples:
      defensemble ensemble rollback
      defensemble ensemble rollback 3 --ensemble ensemble
      defensemble ensemble rollback --to 5f0c1d2e3a4b
    """
    if count is not None and to is not None:
        raise click.UsageError("give either N or --to ID: both say how far to go back")
    _edit(rest, lambda ensembles, settings: ensembles.rollback(count or 1, name=name, to=to, **settings))


@command.command("prune", short_help="Delete what no ensemble and no way back uses.")
@click.option("--keep", type=click.IntRange(min=0), default=10, help="Edits of each ensemble that can still be undone.")
@click.option("--dry-run", is_flag=True, help="List it, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_options
def prune(keep: int, dry_run: bool, yes: bool, **where: Any) -> None:
    r"""Delete members and averaging models that no ensemble uses, nor any of its last --keep edits; they are listed first.

    A network that never voted is left alone.

    \b
    Examples:
      defensemble ensemble prune --dry-run
      defensemble ensemble prune --keep 3 --yes
    """
    from ..actions.ensemble import prune_repository

    prune_repository(keep, dry_run, yes, where)
