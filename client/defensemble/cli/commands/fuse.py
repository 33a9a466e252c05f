"""`defensemble fuse`: write an ensemble as one ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from .. import export_options as shared
from ..choices import AVERAGES
from ..options import EXISTING_PATH, DatasetLocation, new_repository_option, weights_option
from ..paths import missing_path_message
from ..verb import Verb


@cloup.command("fuse", cls=Verb, short_help="Write an ensemble as one ONNX graph.")
@click.argument("name")
@click.argument("checkpoints", nargs=-1, type=EXISTING_PATH, metavar="[CHECKPOINT...]")
@cloup.option_group(
    "Model repository",
    new_repository_option,
    click.option("--ensemble", metavar="ENSEMBLE", help=f"Ensemble to fuse.  [default: {shared.DEFAULT_ENSEMBLE}]"),
    shared.max_batch_size_option,
    shared.replace_option,
)
@cloup.option_group("Verification", shared.trained_dataset_option, shared.images_option("test images of the dataset"))
@cloup.option_group(
    "With checkpoints",
    click.option("--average", type=click.Choice(AVERAGES), help="What the graph averages.  [default: probabilities]"),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        callback=weights_option,
        metavar="NAME=W",
        help="Weight of a network, above 0. Repeatable.  [default: 1]",
    ),
    shared.precision_option,
    shared.mask_aware_option,
    *shared.calibration_options("default: training images of the dataset"),
)
def command(name: str, checkpoints: tuple[Path, ...], ensemble: str | None, dataset: DatasetLocation | None, **options: Any) -> None:
    r"""Write one ONNX graph that computes what an ensemble computes, verify it, and add it to the repository as the model NAME.

    The graph is made of the members of --ensemble at their current versions, or of CHECKPOINTs, which are not added as members.

    \b
    Examples:
      defensemble fuse fused --ensemble pair
      defensemble fuse fused --replace                    # after an edit of the ensemble
      defensemble fuse fused keep0.3.safetensors keep0.5.safetensors --weight keep0.3=2
    """
    settings = shared.export_settings(data_dir=None if dataset is None else dataset.folder, **options)
    if checkpoints:
        if ensemble is not None:
            raise click.UsageError("--ensemble and CHECKPOINT exclude each other: a graph is made of one or the other")
        from ..actions.export import fuse_checkpoints

        fuse_checkpoints(name, checkpoints, settings, dataset=None if dataset is None else dataset.name)
        return
    if settings.weights or settings.average is not None or settings.precision != "fp32" or settings.mask_aware != "auto":
        raise click.UsageError(
            "--weight, --average, --precision and --mask-aware are for CHECKPOINTs; an ensemble of the repository is fused with its own "
            "values"
        )
    if not settings.repository.is_dir():
        raise click.BadParameter(missing_path_message(settings.repository), param_hint="--repository")
    from ..actions.export import fuse_ensemble

    fuse_ensemble(name, shared.DEFAULT_ENSEMBLE if ensemble is None else ensemble, settings)
