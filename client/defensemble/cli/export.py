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
@click.option("--ensemble", default="ensemble", show_default=True, help="Name of the ensemble of these checkpoints.")
@click.option("--no-ensemble", is_flag=True, help="Export the networks alone, each served under its own name.")
@click.option(
    "--average", type=click.Choice(["probabilities", "logits"]), default="probabilities", show_default=True, help="What is averaged."
)
@click.option("--weight", "weights", multiple=True, metavar="NAME=W", help="A member's weight, above 0; 1 where none is given. Repeatable.")
@click.option(
    "--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True, help="Largest batch that a request may have."
)
@click.option(
    "--replace", is_flag=True, help="Where a member exists, add its next version and keep the old; point the ensemble to the new one."
)
def command(
    checkpoints: tuple[Path, ...],
    repository: Path,
    ensemble: str,
    no_ensemble: bool,
    average: str,
    weights: tuple[str, ...],
    max_batch_size: int,
    replace: bool,
) -> None:
    r"""Export CHECKPOINT... to ONNX, each verified against torch, and write them and an ensemble of them into a model repository.

    Members are named after their files. Nothing is written unless every checkpoint was exported and verified.

    \b
    Examples:
      defensemble export checkpoints/keep*.safetensors --repository model_repository
      defensemble export standard.safetensors --no-ensemble
      defensemble export keep0.3.safetensors keep0.5.safetensors --ensemble pair --average logits --weight keep0.3=2
      defensemble export checkpoints/keep0.3.safetensors --replace
    """
    from rich.console import Console
    from rich.progress import Progress

    given = dict(_weight(text) for text in weights)
    if len(given) < len(weights):
        raise click.UsageError("--weight names a member twice")
    if no_ensemble and (given or average != "probabilities"):
        raise click.UsageError("--weight and --average are about an ensemble, and --no-ensemble asks for none")
    # After the cheap checks: this imports torch, onnx and ONNX Runtime.
    from defensemble_export import export_checkpoints

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("exporting", total=len(checkpoints))

        def on_exported(checkpoint: Path) -> None:
            progress.advance(task)
            progress.console.print(f"exported and verified {checkpoint}", highlight=False, markup=False)

        written = export_checkpoints(
            checkpoints,
            repository,
            ensemble=None if no_ensemble else ensemble,
            average=average,
            weights=given,
            max_batch_size=max_batch_size,
            replace=replace,
            on_exported=on_exported,
        )
    models = sorted({path.split("/")[0] for path in written})
    click.echo(f"{repository}: wrote {', '.join(models)}")
    click.echo(f"serve it: {this_command()} serve {repository}")


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"expected NAME=NUMBER, got {text!r}", param_hint="--weight") from None
