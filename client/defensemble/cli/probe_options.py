"""The options that all probes have, and the decorator that adds them to a verb."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from .choices import PROBE_ANSWERS, PROBE_INPUTS
from .datasets import DatasetLocation
from .options import PATH, SERVER_URL, call_options, dataset_option, json_option, reading_options, tls_files, tls_options, with_options

if TYPE_CHECKING:
    from .actions.probe import ProbeArguments

_DATASET_HELP = (
    "Labelled images. NAME: the test part of a dataset, such as digits or cifar10; FOLDER: all images of a folder with one folder per "
    "class; NAME=FOLDER: the test part of a dataset in FOLDER (folder=FOLDER: of your own images, as in train); FILE.npz: arrays "
    "`images`, `labels` and, if labels are not the model's own indices, `class_names`."
)
target_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Model to measure. Repeatable.  [default: the ensembles, their members, and all other image classifiers]",
)


def budget_option(default: str) -> Callable[[Any], Any]:
    """Return the option `--budget`.

    Args:
        default: What an attack does without it.
    """
    text = f"Most queries for one image; at the budget, the best example found stands.  [default: {default}]"
    return click.option("--budget", type=click.IntRange(min=1), metavar="N", help=text)


def parse_shard(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse K/N (a click callback)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value.strip(), re.ASCII)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise click.BadParameter(f"expected K/N with K from 1 to N, such as 3/16, got {value!r:.120}")
    return shard


def parse_limits(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Parse RATE=VALUE, each rate once (a click callback)."""
    if not values:
        return {}
    from .._exceptions import InputError
    from ..probes.limits import limits_from_texts

    try:
        return limits_from_texts(values)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def _output_options(default: Path) -> Callable[[Any], Any]:
    return cloup.option_group(
        "Output",
        click.option(
            "--out",
            type=PATH,
            metavar="FILE",
            default=default,
            help="Result to write, as JSON; an earlier file is kept as NAME.1.json, NAME.2.json, ... A run keeps its ledger in the folder "
            "NAME.ledger until it is complete.",
        ),
        click.option("--resume", is_flag=True, help="Continue the interrupted run whose ledger is next to --out, with the same options."),
        json_option,
        click.option(
            "--fail-under",
            multiple=True,
            callback=parse_limits,
            metavar="RATE=VALUE",
            help="Exit with status 1 if a rate of a measured model is below VALUE under one condition, such as defense_rate=0.7. RATE: "
            "accuracy, defense_rate, defense_rate_source_fooled, accuracy_on_common or clean. The rate is compared, not its interval.",
        ),
    )


_image_options = (
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use a random sample of N images.  [default: all]"),
    click.option("--seed", type=click.IntRange(min=0), metavar="SEED", default=0, help="Seed of the probe and of the sample."),
    click.option(
        "--shard",
        callback=parse_shard,
        metavar="K/N",
        help="Measure the K-th of N parts of the images, on this machine; join the results with `probe merge`.",
    ),
)
_target_options = (
    click.option("--input", type=click.Choice(PROBE_INPUTS), default="float32", help="What models receive; 8bit: rounded to k/255."),
    click.option(
        "--answers",
        type=click.Choice(PROBE_ANSWERS),
        default="probabilities",
        help="What models respond with; labels: only the class is used; top-1: the server only sends the class.",
    ),
)


def probe_options(name: str, *, has_dataset: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the shared options to a probe's verb, and passes them to it as `ProbeArguments`.

    Args:
        name: Name of the probe, for the default of `--out`.
        has_dataset: Whether `--dataset` has the images.
    """
    dataset = [dataset_option(_DATASET_HELP, archives=True, required=True)] if has_dataset else []
    options = with_options(
        cloup.argument("url", type=SERVER_URL, help="Server: http://HOST:PORT or grpc://HOST:PORT."),
        cloup.option_group("Models and images", *dataset, target_option, *_image_options, *_target_options),
        _output_options(Path(f"{name}.json")),
        call_options,
        cloup.option_group("TLS", *tls_options),
        reading_options,
    )

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(verb)
        def with_arguments(**values: Any) -> Any:
            shared = {key: values.pop(key) for key in _SHARED if key in values}
            return verb(_arguments(**shared), **values)

        decorated: Callable[..., Any] = options(with_arguments)
        return decorated

    return decorate


_SHARED = (
    *("url", "dataset", "targets", "limit", "seed", "shard", "input", "answers", "budget", "out", "resume", "as_json", "fail_under"),
    *("batch_size", "timeout_s", "ca_file", "cert_file", "key_file", "resize", "skip_damaged", "max_memory"),
)


def _arguments(
    url: str,
    dataset: DatasetLocation | None = None,
    *,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    resize: str | None,
    skip_damaged: bool,
    max_memory: int | None,
    **values: Any,
) -> ProbeArguments:
    from .._image_files import ReadOptions
    from .._transport.base import ConnectionOptions
    from .actions.probe import ProbeArguments

    return ProbeArguments(
        url,
        "" if dataset is None else str(dataset.archive or dataset.name or dataset.folder),
        data_dir=None if dataset is None or dataset.name is None else dataset.folder,
        reading=ReadOptions(resize, skip_damaged, max_memory),
        connection=ConnectionOptions(tls=tls_files([url], ca_file, cert_file, key_file)),
        **values,
    )
