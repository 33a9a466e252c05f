"""`defensemble export`: export checkpoints to ONNX and add them to a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from .. import export_options as shared
from ..options import EXISTING_PATH, DatasetLocation, new_repository_option
from ..verb import Verb


@cloup.command("export", cls=Verb, short_help="Export checkpoints to ONNX and add them to a model repository.")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING_PATH, metavar="CHECKPOINT...")
@cloup.option_group(
    "Model repository",
    new_repository_option,
    click.option("--name", metavar="NAME", help="Name of the member, for one checkpoint.  [default: the checkpoint's file name]"),
    shared.max_batch_size_option,
    shared.replace_option,
    shared.engine_option,
)
@shared.ensemble_options
@cloup.option_group(
    "Precision and verification",
    shared.precision_option,
    shared.mask_aware_option,
    shared.trained_dataset_option,
    shared.images_option("test images of the dataset"),
    *shared.calibration_options("default: training images of the dataset"),
)
def command(checkpoints: tuple[Path, ...], name: str | None, dataset: DatasetLocation | None, **options: Any) -> None:
    r"""Export each CHECKPOINT to ONNX, verify it against PyTorch, and add it to a model repository as a member of an ensemble.

    Members are named after their files. Nothing is written unless every checkpoint was exported and verified. A report is written next to
    each ONNX file: see `defensemble export-report`.

    --replace adds the next version of an existing member. The ensemble then uses that version, takes new members, and keeps its other
    members, weights, average and the values that you edited in config.pbtxt; comments there are lost.

    \b
    Examples:
      defensemble export checkpoints/keep*.safetensors
      defensemble export a.safetensors b.safetensors --ensemble pair --average logits --weight a=2
      defensemble export checkpoints/keep0.3.safetensors --replace --precision int8 --dataset cifar10=data/cifar10
    """
    if name is not None and len(checkpoints) != 1:
        raise click.UsageError(
            f"--name is the name of one member, got {len(checkpoints)} checkpoints: leave --name out, or run one command for each"
        )
    settings = shared.member_settings(data_dir=None if dataset is None else dataset.folder, **options)
    from ..actions.export import export_checkpoints

    export_checkpoints(checkpoints, name, settings, dataset=None if dataset is None else dataset.name)
