"""`defensemble predict`: images to labels, probabilities and uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import PATH, call_options, reading_options


@click.command("predict", short_help="Images to labels, probabilities and uncertainty.")
@click.argument("url")
@click.argument("files", nargs=-1, type=PATH)
@click.option("--model", help="The model to ask.  [default: the only ensemble that is served]")
@click.option(
    "--outputs",
    default="probabilities",
    help="What to ask of an ensemble, separated by commas: probabilities, member_probabilities, entropy, mutual_information.",
)
@click.option(
    "--labelled",
    type=PATH,
    metavar="FOLDER",
    help="A folder of class folders (CLASS/IMAGE), matched by name: prints the accuracy with its Wilson 95 % interval.",
)
@click.option("--top", type=click.IntRange(min=1), default=1, help="Classes to show for each image.")
@call_options
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    url: str,
    files: tuple[Path, ...],
    model: str | None,
    outputs: str,
    labelled: Path | None,
    top: int,
    batch_size: int | None,
    timeout_s: float,
    as_json: bool,
    **reading: Any,
) -> None:
    r"""Ask a served model about image files (.png, .jpg, ...) and .npy files of images, (N, C, H, W) or (C, H, W).

    Image files are read as in training. A .npy file holds floats in [0, 1], uint8 (divided by 255) or uint16 (divided by 65,535). In a
    labelled folder, hidden files and files that are not images are skipped and counted, and folders below a class are read.

    \b
    Examples:
      defensemble predict http://localhost:8000 three.png seven.png
      defensemble predict http://localhost:8000 images.npy --top 3 --json
      defensemble predict http://localhost:8000 --labelled test_images/ --model alpha
      defensemble predict http://localhost:8000 --labelled photos/test/ --resize crop --skip-damaged --max-memory 2G
      defensemble predict http://localhost:8000 a.png --outputs probabilities,entropy,mutual_information
    """
    if not files and labelled is None:
        raise click.UsageError("Give files of images, or --labelled FOLDER.")
    from ... import Client
    from ..._image_files import ReadOptions
    from ..actions.predict import predict_files

    asked = [name.strip() for name in outputs.split(",") if name.strip()]
    with Client(url, model, timeout_s=timeout_s) as client:
        options = ReadOptions(**reading)
        predict_files(client, files, asked, labelled, top=top, batch_size=batch_size, options=options, as_json=as_json)
