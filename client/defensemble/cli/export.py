"""`defensemble export`: checkpoints to entries of a model repository."""

from __future__ import annotations

from pathlib import Path

import click

from defensemble.cli._invocation import this_command


@click.command("export", short_help="Checkpoints to ONNX members, and an ensemble of them, in a model repository.")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CHECKPOINT...")
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True, help="Folder that Triton loads."
)
@click.option("--ensemble", help="Name of the ensemble that these checkpoints form or, with --replace, join.  [default: ensemble]")
@click.option("--no-ensemble", is_flag=True, help="Export the networks alone, each served under its own name.")
@click.option(
    "--average",
    type=click.Choice(["probabilities", "logits"]),
    help="What is averaged.  [default: what an existing ensemble averages, else probabilities]",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=W",
    help="A member's weight, above 0. Repeatable.  [default: what it has in an existing ensemble, else 1]",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1, 4096),
    help="Largest batch that a request may have; an existing config.pbtxt must say the same.  [default: what that says, else 64]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Add the next version of a member that exists, beside the old ones; let it vote in an ensemble that exists, whose others stay.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data that the networks were trained on.")
@click.option(
    "--images", "images_file", type=click.Path(path_type=Path), metavar="FILE.npy", help="Real images to verify on, in their place."
)
def command(
    checkpoints: tuple[Path, ...],
    repository: Path,
    ensemble: str | None,
    no_ensemble: bool,
    average: str | None,
    weights: tuple[str, ...],
    max_batch_size: int | None,
    replace: bool,
    data_dir: Path | None,
    images_file: Path | None,
) -> None:
    r"""Export CHECKPOINT... to ONNX, each verified against torch, and write them and an ensemble of them into a model repository.

    Members are named after their files. Nothing is written unless every checkpoint was exported and verified.

    With --replace, an existing ensemble votes with the versions exported now, and with those members that did not vote yet; it keeps its
    other members, its weights, its average and what was edited in its config.pbtxt, but for comments, which are lost there and in the
    members' config.pbtxt.

    \b
    Examples:
      defensemble export checkpoints/keep*.safetensors --repository model_repository
      defensemble export standard.safetensors --no-ensemble
      defensemble export zoo/cifar10/keep*.safetensors --data-dir data/cifar10
      defensemble export keep0.3.safetensors keep0.5.safetensors --ensemble pair --average logits --weight keep0.3=2
      defensemble export checkpoints/keep0.3.safetensors --replace                   # its next version votes, the others stay
      defensemble export new.safetensors --replace --ensemble pair --weight new=2    # joins the pair
    """
    from rich.console import Console
    from rich.progress import Progress

    from defensemble._images import npy_images

    given = dict(_weight(text) for text in weights)
    if len(given) < len(weights):
        raise click.UsageError("--weight names a member twice")
    if no_ensemble and (given or average is not None or ensemble is not None):
        raise click.UsageError("--ensemble, --weight and --average are about an ensemble, and --no-ensemble asks for none")
    name = None if no_ensemble else "ensemble" if ensemble is None else ensemble
    images = None if images_file is None else npy_images(images_file)
    # After the cheap checks: this imports torch, onnx and ONNX Runtime.
    from defensemble_export import export_checkpoints

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("exporting", total=len(checkpoints))

        def say(text: str) -> None:
            progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

        def on_exported(checkpoint: Path) -> None:
            progress.advance(task)
            say(f"exported and verified {checkpoint}")

        written = export_checkpoints(
            checkpoints,
            repository,
            ensemble=name,
            average=average,
            weights=given,
            max_batch_size=max_batch_size,
            replace=replace,
            images=images,
            data_dir=data_dir,
            on_exported=on_exported,
            say=say,
        )
    models = sorted({path.split("/")[0] for path in written})
    click.echo(f"{repository}: wrote {', '.join(models)}")
    if name is not None:
        click.echo(_described(repository, name))
    click.echo(f"serve it: {this_command()} serve {repository}")


def _described(repository: Path, name: str) -> str:
    """What an ensemble consists of now, as its configurations say."""
    from defensemble_export import read_config, read_ensemble

    ensemble = read_ensemble(repository, name)
    votes = ", ".join(f"{vote.model}@{vote.version} (weight {vote.weight:g})" for vote in ensemble.members)
    batch = read_config(repository / name).max_batch_size
    return f"{name}: {votes}; average of {ensemble.average}, batches of up to {batch}"


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"expected NAME=NUMBER, got {text!r}", param_hint="--weight") from None
