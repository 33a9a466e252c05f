"""`defensemble ensemble`: show ensembles, and edit them while they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from ..actions.ensemble_settings import TargetSettings
from ..choices import AVERAGES, CHECK_RUNTIMES
from ..ensemble_options import edit_options, edit_settings, target_options, writing_target_options
from ..options import EXISTING_PATH, json_option, repository_option, weights_option
from ..verb import VerbGroup

if TYPE_CHECKING:
    from ...ensembles import Applied, Ensembles

_MEMBERS = "MODEL[@VERSION]..."


def _edit(options: dict[str, Any], action: Callable[[Ensembles, dict[str, Any]], Applied | list[Applied]]) -> None:
    from ..actions.ensemble import edit

    edit(*edit_settings(options), action)


# Listed in this order: show, edit, undo.
@cloup.group("ensemble", cls=VerbGroup, short_help="Show ensembles, and edit them while they serve.")
def command() -> None:
    r"""Show the ensembles of a model repository, and edit them while they serve.

    An edit is checked before anything changes. Servers switch to it under full load without a failed request. If a step fails, the old
    state is restored; `rollback` undoes an edit later. Without --url, an edit goes to the servers that `defensemble serve` runs here on the
    folder; if none runs, only the files change.

    \b
    Examples:
      defensemble ensemble show
      defensemble ensemble weight ensemble keep0.3=2 -m "does best on the new camera"
      defensemble ensemble rollback ensemble
    """


@command.command("show", short_help="Show the members of an ensemble, their weights and accuracies, and whether they are served.")
@click.argument("name", required=False)
@cloup.option_group(
    "Output",
    click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "yaml", "json"]),
        default="table",
        help="Output format; `apply` reads yaml.",
    ),
    click.option("--json", "output_format", flag_value="json", help="The same as --format json."),
)
@target_options
def show(name: str | None, output_format: str, **targets: Any) -> None:
    r"""Show the ensemble NAME, or all: members, weights, precision, digest of the masks, and the accuracy in the training record.

    The column `served` shows whether every server serves the files on disk; the lines below the table give the reason if one does not. They
    also show how images of another size are resized (`preprocessing`).

    \b
    Examples:
      defensemble ensemble show
      defensemble ensemble show ensemble --format yaml
      defensemble ensemble show --url http://10.0.0.7:8000 --admin-key-file admin.key
    """
    from ..actions.ensemble import show_ensembles

    show_ensembles(name, output_format, TargetSettings(**targets))


@command.command("list", short_help="List the names of the ensembles.")
@repository_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(repository: Path, as_json: bool) -> None:
    r"""List the names of the ensembles of a repository, one per line.

    \b
    Examples:
      defensemble ensemble list
      defensemble ensemble list --repository models --json
    """
    from ..actions.ensemble import list_ensembles

    list_ensembles(repository, as_json=as_json)


@command.command("check", short_help="Check whether a repository can be served, and print fixes.")
@click.argument("name", required=False)
@cloup.option_group(
    "Check",
    click.option(
        "--runtime", type=click.Choice(CHECK_RUNTIMES), default="embedded", help="Triton that will serve it, as for `defensemble serve`."
    ),
    json_option,
)
@target_options
def check(name: str | None, runtime: str, as_json: bool, **targets: Any) -> None:
    r"""Check the ensemble NAME and its members, or all models of the repository, as they are on disk.

    The exit status is 1 if `defensemble serve` would refuse one of them.

    \b
    Examples:
      defensemble ensemble check
      defensemble ensemble check ensemble --runtime docker
    """
    from ..actions.ensemble import check_ensembles

    check_ensembles(name, runtime, TargetSettings(**targets), as_json=as_json)


@command.command("create", short_help="Create an ensemble from models of the repository.")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar=_MEMBERS)
@cloup.option_group(
    "Ensemble",
    click.option(
        "--weight",
        "weights",
        multiple=True,
        callback=weights_option,
        metavar="MODEL[@VERSION]=W",
        help="Weight of a member, above 0. Repeatable.  [default: 1]",
    ),
    click.option("--average", type=click.Choice(AVERAGES), default="probabilities", help="What the ensemble averages."),
)
@edit_options
def create(name: str, members: tuple[str, ...], weights: dict[str, float], average: str, **options: Any) -> None:
    r"""Create the ensemble NAME from models of the repository, each at its newest version unless one is given.

    The members must agree in input shape, class names and `preprocessing` (how images of another size are resized).

    \b
    Examples:
      defensemble ensemble create canary keep0.1 keep0.3@2
      defensemble ensemble create sharp keep0.1 keep0.3 --weight keep0.1=2 --average logits
    """
    _edit(options, lambda ensembles, edit: ensembles.create(name, members, weights=weights, average=average, **edit))


@command.command("add", short_help="Add members to an ensemble, or replace one.")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar=_MEMBERS)
@cloup.option_group(
    "Members",
    click.option(
        "--weight", type=float, metavar="W", help="Weight of each new member, above 0.  [default: 1, or the weight of the replaced member]"
    ),
    click.option("--in-place-of", metavar="MODEL[@VERSION]", help="Member to replace in the same edit."),
)
@edit_options
def add(name: str, members: tuple[str, ...], weight: float | None, in_place_of: str | None, **options: Any) -> None:
    r"""Add models of the repository to the ensemble NAME, each at its newest version unless one is given.

    They must agree with the members in input shape, class names and `preprocessing` (how images of another size are resized).

    \b
    Examples:
      defensemble ensemble add ensemble keep0.5
      defensemble ensemble add ensemble keep0.5 --weight 0.5 -m "try it with half the weight"
      defensemble ensemble add ensemble keep0.3@2 --in-place-of keep0.3@1
    """
    _edit(options, lambda ensembles, edit: ensembles.add(name, members, weight=weight, in_place_of=in_place_of, **edit))


@command.command("remove", short_help="Remove members from an ensemble.")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar=_MEMBERS)
@edit_options
def remove(name: str, members: tuple[str, ...], **options: Any) -> None:
    r"""Remove members from the ensemble NAME. Their files stay in the repository; `prune` deletes files that are no longer used.

    \b
    Examples:
      defensemble ensemble remove ensemble keep0.1
      defensemble ensemble remove ensemble keep0.3@1 keep0.5 --dry-run
    """
    _edit(options, lambda ensembles, edit: ensembles.remove(name, members, **edit))


@command.command("delete", short_help="Take an ensemble out of service and delete it.")
@click.argument("name")
@edit_options
def delete(name: str, **options: Any) -> None:
    r"""Take the ensemble NAME out of service and delete its folder. Its members stay in the repository, and `rollback` restores it.

    \b
    Examples:
      defensemble ensemble delete canary
      defensemble ensemble delete canary --dry-run
    """
    _edit(options, lambda ensembles, edit: ensembles.delete(name, **edit))


@command.command("weight", short_help="Change the weights of members.")
@click.argument("name")
@click.argument("weights", nargs=-1, required=True, callback=weights_option, metavar="MODEL[@VERSION]=W...")
@edit_options
def weight(name: str, weights: dict[str, float], **options: Any) -> None:
    r"""Change the weights of members of the ensemble NAME. A weight is above 0 and relative to the other weights.

    \b
    Examples:
      defensemble ensemble weight ensemble keep0.3=2
      defensemble ensemble weight ensemble keep0.1=1 keep0.3=3 --dry-run
    """
    _edit(options, lambda ensembles, edit: ensembles.weight(name, weights, **edit))


@command.command("average", short_help="Change what an ensemble averages: probabilities or logits.")
@click.argument("name")
@click.argument("average", type=click.Choice(AVERAGES))
@edit_options
def average(name: str, average: str, **options: Any) -> None:
    r"""Make the ensemble NAME average the probabilities of its members, or their logits.

    \b
    Examples:
      defensemble ensemble average ensemble logits
      defensemble ensemble average ensemble probabilities -m "calibrated better"
    """
    _edit(options, lambda ensembles, edit: ensembles.average(name, average, **edit))


@command.command("refresh", short_help="Load members again, from copies of their files.")
@click.argument("members", nargs=-1, required=True, metavar=_MEMBERS)
@edit_options
def refresh(members: tuple[str, ...], **options: Any) -> None:
    r"""Load members again: copy their files to new versions of their models, and switch all ensembles with them to these versions.

    It repairs models that answer wrongly although their files are correct, as the supervisor of `defensemble serve` does by itself. `prune`
    deletes the old versions later. Name all members of an ensemble that answer wrongly: the ensemble must answer correctly after its edit.

    \b
    Examples:
      defensemble ensemble refresh keep0.3
      defensemble ensemble refresh keep0.3@2 keep0.5 -m "answer NaN since noon"
    """
    _edit(options, lambda ensembles, edit: ensembles.refresh(members, **edit))


@command.command("apply", short_help="Make the repository and its servers equal to a YAML file.")
@click.argument("file", type=EXISTING_PATH, metavar="FILE.yaml")
@edit_options
def apply(file: Path, **options: Any) -> None:
    r"""Make the ensemble that FILE.yaml declares equal to the file, on disk and on the servers. Without differences, nothing is done.

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

    _edit(options, lambda ensembles, edit: ensembles.apply(read_declaration(file), **edit))


@command.command("diff", short_help="Show differences between a file and the repository, or the repository and its servers.")
@click.argument("file", required=False, type=EXISTING_PATH, metavar="[FILE.yaml]")
@cloup.option_group(
    "Output",
    click.option("--exit-code", is_flag=True, help="Exit with status 1 if there are differences."),
    click.option("--json", "as_json", is_flag=True, help="Print a JSON list."),
)
@target_options
def diff(file: Path | None, exit_code: bool, as_json: bool, **targets: Any) -> None:
    r"""Show what `apply FILE.yaml` would change; without a file, where servers serve something other than the files on disk.

    \b
    Examples:
      defensemble ensemble diff ensemble.yaml
      defensemble ensemble diff --exit-code
    """
    from ..actions.ensemble import show_differences

    if show_differences(file, TargetSettings(**targets), as_json=as_json) and exit_code:
        raise click.exceptions.Exit(1)


@command.command("reload", short_help="Load configurations that were edited by hand.")
@click.argument("name", required=False)
@edit_options
def reload(name: str | None, **options: Any) -> None:
    r"""Check and load what was edited by hand in the config.pbtxt files of the ensemble NAME, or of all ensembles, and of their members.

    An averaging model whose parameters were edited is generated again under a new name. The two averaging models of an ensemble that an
    earlier version wrote become one.

    \b
    Examples:
      defensemble ensemble reload
      defensemble ensemble reload ensemble -m "weights edited by hand"
    """
    _edit(options, lambda ensembles, edit: ensembles.reload(name, **edit))


@command.command("history", short_help="List the edits: when, who, what and why.")
@click.argument("name", required=False)
@repository_option
@click.option("--last", type=click.IntRange(min=0), default=20, metavar="N", help="Number of edits to list; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Print each edit as a line of JSON, with the state before and after.")
def history(name: str | None, repository: Path, last: int, as_json: bool) -> None:
    r"""List the edits of the ensemble NAME, or of all ensembles, the latest last. Edits that were undone are marked.

    \b
    Examples:
      defensemble ensemble history
      defensemble ensemble history canary --last 5
    """
    from ..actions.ensemble import show_history

    show_history(name, last, repository, as_json=as_json)


@command.command("rollback", short_help="Undo the last edits of an ensemble.")
@click.argument("name", required=False)
@cloup.option_group(
    "Edits to undo",
    click.option("--count", type=click.IntRange(min=1), metavar="N", help="Number of edits to undo.  [default: 1]"),
    click.option("--to", metavar="ID", help="Restore the state that the edit ID left, earlier or later than the current one."),
)
@edit_options
def rollback(name: str | None, count: int | None, to: str | None, **options: Any) -> None:
    r"""Undo the last edits of the ensemble NAME, or of the ensemble that was edited last, as one edit.

    Files are restored byte for byte, except for the parameter `preprocessing`. Two rollbacks one after the other undo two edits.

    \b
    Examples:
      defensemble ensemble rollback ensemble
      defensemble ensemble rollback ensemble --count 3
      defensemble ensemble rollback ensemble --to 5f0c1d2e3a4b
    """
    if count is not None and to is not None:
        raise click.UsageError("--count N and --to ID exclude each other: use one of them")
    _edit(options, lambda ensembles, edit: ensembles.rollback(count or 1, name=name, to=to, **edit))


@command.command("prune", short_help="Delete models that no ensemble and no rollback uses.")
@cloup.option_group(
    "Models to delete",
    click.option(
        "--keep-edits", type=click.IntRange(min=0), metavar="N", default=10, help="Number of edits of each ensemble that stay undoable."
    ),
    click.option("--dry-run", is_flag=True, help="List the models, but delete nothing."),
    click.option("--yes", is_flag=True, help="Do not ask."),
)
@writing_target_options
def prune(keep_edits: int, dry_run: bool, yes: bool, **targets: Any) -> None:
    r"""Delete members and averaging models that neither an ensemble nor its last N edits (--keep-edits N) use. They are listed first.

    A network that was never a member is not deleted.

    \b
    Examples:
      defensemble ensemble prune --dry-run
      defensemble ensemble prune --keep-edits 3 --yes
    """
    from ..actions.ensemble import prune_repository

    prune_repository(keep_edits, TargetSettings(**targets), dry_run=dry_run, yes=yes)
