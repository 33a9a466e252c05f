"""`defensemble probe compare` and `defensemble probe merge`: result files of probes, without new queries."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from ..options import EXISTING_PATH, PATH, json_option
from ..verb import Verb


@cloup.command("compare", cls=Verb, short_help="Compare two results: rates side by side, with tests.")
@click.argument("first", type=EXISTING_PATH, metavar="A.json")
@click.argument("second", type=EXISTING_PATH, metavar="B.json")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME[=OTHER]",
    help="Target of A.json, and its counterpart in B.json if that has another name. Repeatable.  [default: all names that both have]",
)
@json_option
def compare(first: Path, second: Path, targets: tuple[str, ...], as_json: bool) -> None:
    r"""Compare the rates of two results of probes, A.json and B.json, target by target.

    Where both have the same images, McNemar's exact test compares the accuracies. Where they have none in common, the differences have 95 %
    intervals. Settings that differ are listed. Nothing is sent to a server.

    \b
    Examples:
      defensemble probe compare before.json after.json
      defensemble probe compare noise.json noise.json --target ensemble=standard
      defensemble probe compare before.json after.json --json
    """
    from ..actions.probe_results import compare_results

    compare_results(first, second, targets, as_json=as_json)


@cloup.command("merge", cls=Verb, short_help="Merge the results of --shard, or of different targets.")
@click.argument("files", nargs=-1, required=True, type=EXISTING_PATH, metavar="FILE...")
@click.option(
    "--out", type=PATH, metavar="FILE", required=True, help="Result to write; an earlier file is kept as NAME.1.json, NAME.2.json, ..."
)
def merge(files: tuple[Path, ...], out: Path) -> None:
    r"""Merge the results of all shards of one run, FILE..., into the result of the whole.

    All shards must have the same settings, images and models. Results that are no shards must have the same settings and images, and
    different targets, so that a model that is measured later is added to their tables and tests. Nothing is sent to a server.

    \b
    Examples:
      defensemble probe merge noise-*.json --out noise.json
      defensemble probe merge noise.json new-model.json --out both.json
    """
    from ..actions.probe_results import merge_results

    merge_results(files, out)
