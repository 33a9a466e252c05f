"""The options that `export`, `import-onnx` and `fuse` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import cloup

from .actions.export_settings import ExportSettings
from .choices import AVERAGES, MASK_AWARE_MODES, PRECISIONS
from .options import EXISTING_PATH, dataset_option, weights_option

DEFAULT_ENSEMBLE = "ensemble"

average_option = click.option(
    "--average",
    type=click.Choice(AVERAGES),
    help="What the ensemble averages.  [default: what an existing ensemble averages, else probabilities]",
)
weight_option = click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=weights_option,
    metavar="NAME=W",
    help="Weight of a member, above 0. Repeatable.  [default: the member's weight in an existing ensemble, else 1]",
)
max_batch_size_option = click.option(
    "--max-batch-size",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Largest batch of a request; must equal max_batch_size of an existing config.pbtxt.  [default: that value, else 64]",
)
replace_option = click.option(
    "--replace",
    is_flag=True,
    help="Add the next version of a model that exists. Its old versions stay on disk, and an existing ensemble keeps its other members.",
)
trained_dataset_option = dataset_option("Dataset that the networks were trained on.  [default: found by the training record]")
precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Precision in which the graph computes; input and output stay float32.",
)
mask_aware_option = click.option(
    "--mask-aware",
    type=click.Choice(MASK_AWARE_MODES),
    default="auto",
    help="Skip masked neurons on CPUs, in an fp32 file that runs anywhere: auto where that is faster, on wherever possible, off never.",
)


def images_option(default: str) -> Callable[[Any], Any]:
    """Return the option `--images`; `default` is what its help states as the default."""
    return click.option(
        "--images",
        "images_file",
        type=EXISTING_PATH,
        metavar="FILE",
        help=f"Real images to verify on, .npy: float32 (N,C,H,W) in [0, 1].  [default: {default}]",
    )


def calibration_options(default: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of the int8 calibration; `default` is what the help states about a missing `--calibration-images`."""
    images = click.option(
        "--calibration-images",
        "calibration_file",
        type=EXISTING_PATH,
        metavar="FILE",
        help=f"Images to calibrate int8 on, .npy: float32 (N,C,H,W) in [0, 1].  [{default}]",
    )
    count = click.option("--calibration-count", type=click.IntRange(1), metavar="N", help="Number of images to draw.  [default: 512]")
    seed = click.option("--calibration-seed", type=click.IntRange(0), metavar="N", help="Seed of the draw.  [default: 0]")
    return images, count, seed


ensemble_options = cloup.option_group(
    "Ensemble",
    click.option(
        "--ensemble",
        metavar="NAME",
        help=f"Ensemble to create or, with --replace, to extend.  [default: {DEFAULT_ENSEMBLE}]",
    ),
    click.option("--no-ensemble", is_flag=True, help="Add the members to the repository only, to no ensemble."),
    average_option,
    weight_option,
)
engine_option = click.option("--engine", is_flag=True, help="Build TensorRT engines of the members too: see `defensemble build-engine`.")


def member_settings(
    *, no_ensemble: bool, ensemble: str | None, average: str | None, weights: dict[str, float], **options: Any
) -> ExportSettings:
    """Return the options of `export` or `import-onnx` as settings.

    Raises:
        click.UsageError: The options contradict each other.
    """
    if no_ensemble and ensemble is not None:
        raise click.UsageError("--ensemble and --no-ensemble exclude each other: use one of them")
    if no_ensemble and (weights or average is not None):
        raise click.UsageError("--weight and --average set up an ensemble: use them without --no-ensemble")
    return export_settings(
        ensemble=None if no_ensemble else DEFAULT_ENSEMBLE if ensemble is None else ensemble, average=average, weights=weights, **options
    )


def export_settings(**options: Any) -> ExportSettings:
    """Return the options as settings.

    Raises:
        click.UsageError: Calibration options without int8, or `--mask-aware on` with another precision than fp32.
    """
    calibration = ("calibration_file", "calibration_count", "calibration_seed")
    names = [
        "--calibration-images" if name == "calibration_file" else f"--{name.replace('_', '-')}"
        for name in calibration
        if options[name] is not None
    ]
    if names and options["precision"] != "int8":
        raise click.UsageError(f"{', '.join(names)}: only for --precision int8")
    if options["mask_aware"] == "on" and options["precision"] != "fp32":
        raise click.UsageError(f"--mask-aware on is for --precision fp32, not {options['precision']}: leave one of them out")
    return ExportSettings(**options)
