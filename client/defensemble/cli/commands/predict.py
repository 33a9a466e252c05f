"""`defensemble predict`: classify images with a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..choices import COMPRESSIONS, OUTPUTS
from ..options import (
    EXISTING_PATH,
    IMAGE_SOURCE,
    PATH,
    SERVER_URL,
    SERVER_VARIABLE,
    ChoiceList,
    call_options,
    json_option,
    reading_options,
    tls_files,
    tls_options,
)
from ..verb import Verb


@cloup.command("predict", cls=Verb, short_help="Classify images with a served model.")
@cloup.argument(
    "files",
    nargs=-1,
    type=IMAGE_SOURCE,
    metavar="[FILE]...",
    help="Images, .npy files of images, folders, patterns in quotes such as 'photos/**/*.png', or - for standard input.",
)
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
    "Server",
    click.option(
        "--url",
        "urls",
        type=SERVER_URL,
        multiple=True,
        metavar="URL",
        envvar=SERVER_VARIABLE,
        show_envvar=True,
        help="Server: http://HOST:PORT, https://, grpc:// or grpcs://. Repeat it for several equal servers, which share the images.  "
        "[default: the server that `defensemble serve` runs on this machine]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        metavar="N",
        default=5,
        help="Retries of a request after a lost connection or an overload.",
    ),
    click.option("--compression", type=click.Choice(COMPRESSIONS), help="Compress requests and responses, for slow networks."),
    *tls_options,
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
    click.option("--jsonl", "as_jsonl", is_flag=True, help="Print a JSON object per line, as the predictions come."),
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header, as the predictions come."),
    click.option(
        "--contact-sheet",
        type=PATH,
        metavar="FILE",
        help="Also write an HTML page with the images, the most uncertain first, up to 2,000; an earlier file is kept as NAME.1.html.",
    ),
)
@call_options
@reading_options
def command(
    files: tuple[str, ...],
    model: str | None,
    labelled: Path | None,
    urls: tuple[str, ...],
    retries: int,
    compression: str | None,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    outputs: list[str],
    top: int,
    as_json: bool,
    as_jsonl: bool,
    as_csv: bool,
    contact_sheet: Path | None,
    batch_size: int | None,
    timeout_s: float,
    **reading: Any,
) -> None:
    r"""Classify images with a served model; print labels, probabilities and entropy.

    FILE is an image (.png, .jpg, ...), read as in training, or a .npy file of images with the shape (N, C, H, W) or (C, H, W): floats in
    [0, 1], uint8 (divided by 255) or uint16 (divided by 65,535). A folder stands for all images in it and in its subfolders; hidden files
    and files that are not images are skipped and counted. With --jsonl and --csv, memory does not grow with the number of images.

    \b
    Examples:
      defensemble predict three.png seven.png --top 3
      defensemble predict 'photos/*.png' --contact-sheet sheet.html
      defensemble predict photos images.npy --url http://10.0.0.7:8000 --url http://10.0.0.8:8000 --csv > predictions.csv
      defensemble predict --labelled photos/test
    """
    forms = {"json": as_json, "jsonl": as_jsonl, "csv": as_csv}
    if sum(forms.values()) > 1:
        raise click.UsageError("--json, --jsonl and --csv exclude each other: use one of them")
    if not files and labelled is None:
        raise click.UsageError("images are missing: pass FILE..., a folder, or --labelled FOLDER")
    from ... import Client, RetryPolicy
    from ..._image_files import ReadOptions
    from ...ensembles.local_servers import find_only_local_url
    from ..actions.predict import predict_files
    from ..notes import print_note

    urls = urls or (find_only_local_url(print_note, "--url URL"),)
    tls = tls_files(urls, ca_file, cert_file, key_file)
    with Client(urls, model, timeout_s=timeout_s, retry=RetryPolicy(max_retries=retries), tls=tls, compression=compression) as client:
        predict_files(
            client,
            files,
            outputs,
            labelled,
            top=top,
            batch_size=batch_size,
            options=ReadOptions(**reading),
            form=next((form for form, is_chosen in forms.items() if is_chosen), "table"),
            contact_sheet=contact_sheet,
        )
