"""`defensemble demo`: all of it, small, on data that needs no download."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo", short_help="All of it, small, on data that needs no download.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Each run writes a folder of its own into it.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Fewer are faster and less accurate.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of initialisation, masks and noise.")
@click.option("--keep-serving", is_flag=True, help="Leave the server running, and print how to call and stop it.")
def command(folder: Path, epochs: int | None, seed: int, keep_serving: bool) -> None:
    r"""Train five defective CNNs and a standard one on handwritten digits, serve them, call them, and probe them with noise.

    \b
    Examples:
      defensemble demo
      defensemble demo --keep-serving
      defensemble demo --epochs 2 --folder /tmp/look
    """
    from defensemble.demo import run_demo

    run_demo(folder, epochs=epochs, seed=seed, keep_serving=keep_serving)
