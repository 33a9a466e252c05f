"""`defensemble profile`: manage serving profiles."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import cloup

from ..choices import PROFILES
from ..notes import print_progress
from ..options import json_option, repository_option
from ..shell import this_command
from ..verb import VerbGroup


@cloup.group("profile", cls=VerbGroup, short_help="Manage serving profiles: cpu, gpu, gpu-ort-tensorrt, gpu-tensorrt.")
def command() -> None:
    r"""Manage the serving profiles of a repository: files configs/PROFILE.pbtxt that `defensemble serve --profile PROFILE` uses.

    A profile sets the device and the backend of each network; clients see no difference. Averaging models and ensembles have none.

    \b
    cpu               ONNX Runtime on the CPU
    gpu               ONNX Runtime with its CUDA provider
    gpu-ort-tensorrt  ONNX Runtime, which builds and caches TensorRT engines when it loads a model
    gpu-tensorrt      TensorRT engines from `defensemble build-engine`

    \b
    Examples:
      defensemble profile list
      defensemble profile write gpu
      defensemble profile remove gpu
    """


@command.command("list", short_help="List the state of each network and profile.")
@repository_option
@json_option
def list_(repository: Path, as_json: bool) -> None:
    r"""List for each network and profile whether it is written, out of date, edited, or what is missing.

    "out of date" means that writing the profile again would change it: config.pbtxt was edited since then, or the
    network has a new version.

    \b
    Examples:
      defensemble profile list
      defensemble profile list --repository models --json
    """
    from defensemble_export import profile_states

    states = profile_states(repository, on_progress=print_progress)
    if as_json:
        click.echo(json.dumps([asdict(state) for state in states], indent=2))
        return
    profiles = list(dict.fromkeys(state.profile for state in states))
    cells = {(state.model, state.profile): state.state for state in states}
    rows = [["network", *profiles]]
    rows += [[model, *(cells[model, profile] for profile in profiles)] for model in dict.fromkeys(state.model for state in states)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("write", short_help="Write a profile for all networks.")
@click.argument("profile", type=click.Choice(PROFILES))
@cloup.option_group(
    "Model repository",
    repository_option,
    click.option("--force", is_flag=True, help="Overwrite files that were edited by hand; the edits are lost."),
)
@cloup.option_group(
    "cpu",
    click.option(
        "--op-library",
        metavar="FILE",
        help="Library of the mask-aware operator, by its path in NVIDIA's container (not tried there). "
        "`defensemble serve` does not need it.",
    ),
)
@cloup.option_group(
    "gpu-ort-tensorrt",
    click.option(
        "--cache-dir",
        metavar="FOLDER",
        help="Existing folder on the serving machine where Triton caches engines.  [default: /var/cache/defensemble]",
    ),
    click.option("--workspace", "workspace_mib", type=int, metavar="MIB", help="Memory that building an engine may use.  [default: 1024]"),
)
def write(profile: str, repository: Path, force: bool, op_library: str | None, cache_dir: str | None, workspace_mib: int | None) -> None:
    r"""Write configs/PROFILE.pbtxt, derived from config.pbtxt, for all networks of a repository.

    If one network lacks a file that the profile serves, or has a profile that was edited by hand, nothing is written. Write the profile
    again after a network, a version or an engine is added, or a config.pbtxt is edited.

    \b
    Examples:
      defensemble profile write gpu
      defensemble profile write gpu-tensorrt --force             # after `defensemble build-engine`
      defensemble profile write gpu-ort-tensorrt --cache-dir /var/cache/engines
    """
    if profile != "gpu-ort-tensorrt" and (cache_dir is not None or workspace_mib is not None):
        raise click.UsageError("--cache-dir and --workspace are for the profile gpu-ort-tensorrt only")
    if profile != "cpu" and op_library is not None:
        raise click.UsageError("--op-library is for the profile cpu only: the operator runs on CPUs")
    from defensemble_export import EngineCacheOptions, write_profile

    values: dict[str, Any] = {"cache_dir": cache_dir, "workspace_mib": workspace_mib}
    settings = EngineCacheOptions(**{name: value for name, value in values.items() if value is not None})
    written = write_profile(repository, profile, settings, op_library=op_library, force=force, on_progress=print_progress)
    click.echo(f"{repository}: wrote {', '.join(written)}" if written else f"{repository}: the profile '{profile}' is up to date")
    runtime = "" if profile == "cpu" and op_library is None else " --runtime docker"
    click.echo(f"serve it: {this_command()} serve --repository {shlex.quote(str(repository))} --profile {profile}{runtime}")


@command.command("remove", short_help="Remove a profile from all networks.")
@click.argument("profile", metavar="PROFILE")
@repository_option
@click.option("--force", is_flag=True, help="Remove files that were edited by hand, too.")
def remove(profile: str, repository: Path, force: bool) -> None:
    r"""Remove configs/PROFILE.pbtxt from all networks of a repository.

    \b
    Examples:
      defensemble profile remove gpu
      defensemble profile remove gpu-tensorrt --repository models
    """
    from defensemble_export import remove_profile

    removed = remove_profile(repository, profile, force=force)
    click.echo(f"{repository}: removed {', '.join(removed)}")
