"""`defensemble predict`: classify images with a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..choices import OUTPUTS
from ..options import EXISTING_PATH, SERVER_URL, ChoiceList, call_options, json_option, reading_options
from ..verb import Verb


@cloup.command("predict", cls=Verb, short_help="Classify images with a served model.")
@cloup.argument("url", type=SERVER_URL, help="Server: http://HOST:PORT or grpc://HOST:PORT.")
@cloup.argument("files", nargs=-1, type=EXISTING_PATH, metavar="[FILE]...", help="Image files, and .npy files of images.")
@cloup.option_group(
    "Model and images",
    click.option("--model", metavar="NAME", help="Model to call.  [default: the only ensemble of the server]"),
    click.option(
        "--labelled",
        type=EXISTING_PATH,
        metavar="FOLDER",
        help="Folder with one folder per class (CLASS/IMAGE): classify its images, and print the accuracy with its Wilson 95 % interval.",
    ),
)
@cloup.option_group(
    "Output",
    click.option(
        "--outputs",
        type=ChoiceList(OUTPUTS),
        metavar="NAME,...",
        default="probabilities",
        help=f"Outputs to request from an ensemble: {', '.join(OUTPUTS)}.",
    ),
    click.option("--top", type=click.IntRange(min=1), metavar="N", default=1, help="Classes to print per image."),
    json_option,
)
@call_options
@reading_options
def command(
    url: str,
    files: tuple[Path, ...],
    model: str | None,
    outputs: list[str],
    labelled: Path | None,
    top: int,
    batch_size: int | None,
    timeout_s: float,
    as_json: bool,
    **reading: Any,
) -> None:
    r"""Classify images with a served model; print labels, probabilities and entropy.

    FILE is an image (.png, .jpg, ...), read as in training, or a .npy file of images with the shape (N, C, H, W) or (C, H, W): floats in
    [0, 1], uint8 (divided by 255) or uint16 (divided by 65,535). In a labelled folder, hidden files and files that are not images are
    skipped and counted, and folders below a class are read.

    \b
    Examples:
      defensemble predict http://localhost:8000 three.png seven.png
      defensemble predict grpc://localhost:8001 images.npy --top 3 --json
      defensemble predict http://localhost:8000 --labelled photos/test
    """
    if not files and labelled is None:
        raise click.UsageError("images are missing: pass FILE... or --labelled FOLDER")
    from ... import Client
    from ..._image_files import ReadOptions
    from ..actions.predict import predict_files

    with Client(url, model, timeout_s=timeout_s) as client:
        options = ReadOptions(**reading)
        predict_files(client, files, outputs, labelled, top=top, batch_size=batch_size, options=options, as_json=as_json)
