"""`defensemble demo`: run the whole flow on a small dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..datasets import DatasetLocation
from ..options import EXISTING_PATH, PATH, dataset_option
from ..verb import Verb


@cloup.command("demo", cls=Verb, short_help="Run the whole flow on a small dataset.")
@dataset_option(
    "digits: train the networks on handwritten digits, without a download; cifar10 or cifar10=FOLDER: use the networks of the zoo.",
    default="digits",
)
@click.option("--zoo", type=EXISTING_PATH, metavar="FOLDER", help="The project's folder zoo, for cifar10.  [default: this checkout's]")
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="Epochs to train on digits; fewer are faster and less accurate.  [default: 8]"
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Images to measure with.  [default: all test images of digits, 200 of cifar10]"
)
@click.option("--seed", type=click.IntRange(min=0), metavar="SEED", default=0, help="Seed of initial weights, masks and noise.")
@click.option("--folder", type=PATH, metavar="FOLDER", default=Path("runs/demo"), help="Folder in which each run creates its own folder.")
@click.option("--keep-serving", is_flag=True, help="Leave the server running, and print how to call and stop it.")
def command(dataset: DatasetLocation, zoo: Path | None, epochs: int | None, folder: Path, **settings: Any) -> None:
    r"""Train five defective CNNs and a standard one on handwritten digits, export and serve them, call them, and measure their robustness.

    With --dataset cifar10 nothing is trained: the networks of the project's zoo are served.

    \b
    Examples:
      defensemble demo
      defensemble demo --epochs 2 --keep-serving
      defensemble demo --dataset cifar10=data/cifar10
    """
    if dataset not in (DatasetLocation("digits"), DatasetLocation("cifar10", dataset.folder)):
        raise click.BadParameter("expected digits, cifar10 or cifar10=FOLDER", param_hint="--dataset")
    if dataset.name == "digits" and zoo is not None:
        raise click.UsageError("--zoo needs --dataset cifar10")
    if dataset.name == "cifar10" and epochs is not None:
        raise click.UsageError("--epochs needs --dataset digits: the networks of the zoo are trained already")
    from ..actions.demo import run_demo

    run_demo(folder, dataset=dataset, zoo=zoo, epochs=epochs, **settings)
