"""`defensemble demo`: all of it, small, on data that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import PATH


@click.command("demo", short_help="All of it, small, on data that needs no download.")
@click.option("--folder", type=PATH, default=Path("runs/demo"), help="Each run writes a folder of its own into it.")
@click.option("--dataset", type=click.Choice(["digits", "cifar10"]), default="digits", help="cifar10 takes the zoo's networks.")
@click.option("--data-dir", type=PATH, help="Folder with CIFAR-10.  [default: downloaded once from the hub]")
@click.option("--zoo", type=PATH, help="The project's folder zoo.  [default: this checkout's]")
@click.option("--limit", type=click.IntRange(min=1), help="Images to probe with.  [default: all digits; 200 of CIFAR-10]")
@click.option("--epochs", type=click.IntRange(min=1), help="Fewer are faster and less accurate.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of initialisation, masks and noise.")
@click.option("--keep-serving", is_flag=True, help="Leave the server running, and print how to call and stop it.")
def command(folder: Path, dataset: str, data_dir: Path | None, zoo: Path | None, epochs: int | None, **settings: Any) -> None:
    r"""Train five defective CNNs and a standard one on handwritten digits, serve them, call them, and probe them with noise.

    With --dataset cifar10 nothing is trained: the networks of the zoo that ships with the project are served.

    \b
    Examples:
      defensemble demo
      defensemble demo --keep-serving
      defensemble demo --dataset cifar10 --data-dir data/cifar10
      defensemble demo --epochs 2 --folder /tmp/look
    """
    if dataset == "digits" and (data_dir is not None or zoo is not None):
        raise click.UsageError("--data-dir and --zoo belong to --dataset cifar10; digits need no data")
    if dataset == "cifar10" and epochs is not None:
        raise click.UsageError("--epochs is for digits: the zoo's networks are trained already")
    from ..actions.demo import run_demo

    run_demo(folder, dataset=dataset, data_dir=data_dir, zoo=zoo, epochs=epochs, **settings)
