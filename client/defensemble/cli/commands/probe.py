"""`defensemble probe`: measure the robustness of served models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..datasets import DatasetLocation
from ..options import PATH, SERVER_URL, call_options, dataset_option, json_option, numbers, reading_options
from ..verb import VerbGroup


@cloup.group("probe", cls=VerbGroup, short_help="Measure the robustness of served models.")
def command() -> None:
    r"""Measure the robustness of served models over the network, as any client can.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --dataset digits
    """


@command.command("noise", short_help="Measure robustness to Gaussian noise.")
@cloup.argument("url", type=SERVER_URL, help="Server: http://HOST:PORT or grpc://HOST:PORT.")
@cloup.option_group(
    "Models and images",
    dataset_option(
        "Labelled images. NAME: the test part of a dataset, such as digits or cifar10; FOLDER: all images of a folder with one folder per "
        "class; NAME=FOLDER: the test part of a dataset in FOLDER (folder=FOLDER: of your own images, as in train); FILE.npz: arrays "
        "`images`, `labels` and, if labels are not the model's own indices, `class_names`.",
        archives=True,
        required=True,
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="NAME",
        help="Model to measure. Repeatable.  [default: the ensembles, their members, and all other image classifiers]",
    ),
)
@cloup.option_group(
    "Noise",
    click.option(
        "--sigmas",
        callback=numbers(float, "4,8,16"),
        metavar="A,B,...",
        help="Standard deviations of the noise, in 1/255.  [default: 1,2,4,8,12,16,20,24,28,32]",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use a random sample of N images.  [default: all]"),
    click.option("--seed", type=click.IntRange(min=0), metavar="SEED", default=0, help="Seed of the noise and of the sample."),
)
@cloup.option_group(
    "Output",
    click.option(
        "--out",
        type=PATH,
        metavar="FILE",
        default=Path("noise.json"),
        help="Result to write, as JSON; an earlier file is kept as NAME.1.json, NAME.2.json, ...",
    ),
    json_option,
)
@call_options
@reading_options
def noise(
    url: str,
    dataset: DatasetLocation,
    targets: tuple[str, ...],
    timeout_s: float,
    resize: str | None,
    skip_damaged: bool,
    max_memory: int | None,
    out: Path,
    **settings: Any,
) -> None:
    r"""Add Gaussian noise to labelled images, and print the accuracy of each model at each noise level.

    Every model gets the same noisy images. The table counts the images that all models classify correctly without noise; the JSON has all
    rates. Classes of the data and of the models are matched by name. Image files are read as in training.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --dataset digits
      defensemble probe noise http://localhost:8000 --dataset photos/test
      defensemble probe noise http://localhost:8000 --dataset test.npz --limit 100
    """
    from ... import Client
    from ..._image_files import ReadOptions
    from ..actions.probe import probe_noise_and_report

    with Client(url, timeout_s=timeout_s) as client:
        options = ReadOptions(resize, skip_damaged, max_memory)
        source = str(dataset.archive or dataset.name or dataset.folder)
        folder = None if dataset.name is None else dataset.folder
        failures = probe_noise_and_report(client, source, out, targets, data_dir=folder, options=options, **settings)
    if failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise click.ClickException(f"{len(failures)} of the models failed; their rates are null from there on: {reasons}")
