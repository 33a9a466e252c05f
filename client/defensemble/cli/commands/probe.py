"""`defensemble probe`: how served models hold up, seen from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import PATH, call_options, numbers, reading_options


@click.group("probe", short_help="How served models hold up, seen from outside.")
def command() -> None:
    r"""Measure how served models hold up, asking them as any caller can.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --data digits
    """


@command.command("noise", short_help="Gaussian noise of growing strength.")
@click.argument("url")
@click.option(
    "--data",
    required=True,
    metavar="NAME|FOLDER|FILE.npz",
    help="Labelled images: a dataset's test part (digits, cifar10, ...), a folder of class folders (CLASS/IMAGE), or arrays `images`, "
    "`labels` and, where labels are not the model's own indices, `class_names`.",
)
@click.option(
    "--data-dir",
    type=PATH,
    metavar="FOLDER",
    help="Folder of the dataset that --data names. With `--data folder`, the test part is the one of `train`.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="A model to probe; repeat for more.  [default: the ensembles, their members, and every other model that classifies images]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use a random sample of this many images.  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the noise and of the sample.")
@click.option(
    "--sigmas",
    callback=numbers(float, "4,8,16"),
    metavar="A,B,...",
    help="Standard deviations in 1/255.  [default: 1,2,4,8,12,16,20,24,28,32]",
)
@call_options
@reading_options
@click.option(
    "--out", type=PATH, default=Path("noise.json"), help="Where the JSON goes; an earlier file is kept as NAME.1.json, NAME.2.json, ..."
)
def noise(
    url: str,
    data: str,
    targets: tuple[str, ...],
    timeout_s: float,
    resize: str | None,
    skip_damaged: bool,
    max_memory: int | None,
    out: Path,
    **settings: Any,
) -> None:
    r"""Add Gaussian noise of growing strength to labelled images, and see how accuracy falls, model beside model.

    Every model sees the same noisy images. The table counts the images that all of them get right without noise; the JSON holds all rates.
    Classes of the data and of the models are matched by name. Image files are read as in training.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --data digits
      defensemble probe noise http://localhost:8000 --data digits --target ensemble --target standard --limit 100
      defensemble probe noise http://localhost:8000 --data test.npz --sigmas 8,16,32 --seed 1 --out noise.json
      defensemble probe noise http://localhost:8000 --data cifar10 --data-dir cifar10/ --limit 1000
      defensemble probe noise http://localhost:8000 --data photos/test/ --resize crop --max-memory 2G
    """
    from ... import Client
    from ..._image_files import ReadOptions
    from ..actions.probe import probe_noise_and_report

    with Client(url, timeout_s=timeout_s) as client:
        options = ReadOptions(resize, skip_damaged, max_memory)
        failures = probe_noise_and_report(client, data, out, targets, options=options, **settings)
    if failures:
        told = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise click.ClickException(f"{len(failures)} of the models failed, their rates are null from there on: {told}")
