"""`defensemble profile`: what each network's configuration says on another kind of machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from defensemble_repository.names import PROFILES

from ..notes import print_progress
from ..options import repository_argument
from ..shell import this_command


@click.group("profile", short_help="List, write or remove what networks run on: cpu, gpu, gpu-ort-tensorrt, gpu-tensorrt.")
def command() -> None:
    r"""Write configs/PROFILE.pbtxt for every network of a repository, which `defensemble serve --profile PROFILE` then takes.

    A profile changes where and by what networks run, and nothing that a caller sees. Averaging models and ensembles have none.

    \b
    cpu               ONNX Runtime on the CPU
    gpu               ONNX Runtime's CUDA provider
    gpu-ort-tensorrt  ONNX Runtime, which builds TensorRT engines when a model is loaded, and keeps them
    gpu-tensorrt      TensorRT plans that `defensemble build-engine` has built

    \b
    Examples:
      defensemble profile list model_repository
      defensemble profile write gpu model_repository
      defensemble profile remove gpu model_repository
    """


@command.command("list", short_help="Each network and profile: written, out of date, edited, or what is missing.")
@repository_argument
def show(repository: Path) -> None:
    r"""Show how each network of REPOSITORY (default: model_repository) stands with each profile.

    "out of date" means that writing the profile again would change it: config.pbtxt was edited since, or has a version more.

    \b
    Examples:
      defensemble profile list
      defensemble profile list model_repository
    """
    from defensemble_export import profile_states

    states = profile_states(repository, on_progress=print_progress)
    profiles = list(dict.fromkeys(one.profile for one in states))
    cells = {(one.model, one.profile): one.state for one in states}
    rows = [["network", *profiles]]
    rows += [[model, *(cells[model, profile] for profile in profiles)] for model in dict.fromkeys(one.model for one in states)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("write", short_help="Write a profile for every network, all or none.")
@click.argument("profile", type=click.Choice(PROFILES))
@repository_argument
@click.option(
    "--cache-dir",
    metavar="FOLDER",
    help="Of gpu-ort-tensorrt: where Triton keeps engines, a folder that exists on the serving machine.  [default: /var/cache/defensemble]",
)
@click.option("--workspace", "workspace_mib", type=int, help="Of gpu-ort-tensorrt: MiB that building an engine may take.  [default: 1024]")
@click.option("--force", is_flag=True, help="Write files anew that were edited by hand; the edits are lost.")
def write(profile: str, repository: Path, cache_dir: str | None, workspace_mib: int | None, force: bool) -> None:
    r"""Write configs/PROFILE.pbtxt, derived from config.pbtxt, for every network of REPOSITORY (default: model_repository).

    All or none: where a file that the profile serves is missing for one network, or one was edited by hand, nothing is written. Write it
    again whenever a network, a version or a plan has come, or a config.pbtxt was edited.

    \b
    Examples:
      defensemble profile write cpu
      defensemble profile write gpu-ort-tensorrt model_repository --cache-dir /var/cache/engines
      defensemble profile write gpu-tensorrt model_repository        # after `defensemble build-engine model_repository`
      defensemble profile write gpu model_repository --force
    """
    if profile != "gpu-ort-tensorrt" and (cache_dir is not None or workspace_mib is not None):
        raise click.UsageError("--cache-dir and --workspace are of the profile gpu-ort-tensorrt")
    from defensemble_export import EngineCacheOptions, write_profile

    given: dict[str, Any] = {"cache_dir": cache_dir, "workspace_mib": workspace_mib}
    settings = EngineCacheOptions(**{name: value for name, value in given.items() if value is not None})
    written = write_profile(repository, profile, settings, force=force, on_progress=print_progress)
    click.echo(f"{repository}: wrote {', '.join(written)}" if written else f"{repository}: the profile '{profile}' is there already")
    click.echo(f"serve it: {this_command()} serve {repository} --profile {profile}{'' if profile == 'cpu' else ' --runtime docker'}")


@command.command("remove", short_help="Remove a profile from every network, all or nothing.")
@click.argument("profile", metavar="PROFILE")
@repository_argument
@click.option("--force", is_flag=True, help="Remove files too that were edited by hand.")
def remove(profile: str, repository: Path, force: bool) -> None:
    r"""Remove configs/PROFILE.pbtxt from every network of REPOSITORY (default: model_repository), which is then as before it was written.

    \b
    Examples:
      defensemble profile remove gpu
      defensemble profile remove gpu-tensorrt model_repository
    """
    from defensemble_export import remove_profile

    removed = remove_profile(repository, profile, force=force)
    click.echo(f"{repository}: removed {', '.join(removed)}")
