"""`defensemble build-engine`: build TensorRT engines for the models of a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..options import EXISTING_PATH, PATH, DatasetLocation, NumberRange, dataset_option, repository_option
from ..verb import Verb

_GIB = 2**30


@cloup.command("build-engine", cls=Verb, short_help="Build TensorRT engines for the models of a repository.")
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@cloup.option_group(
    "Models",
    repository_option,
    click.option(
        "--version",
        "versions",
        multiple=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Version to build. Repeatable.  [default: all versions that are served]",
    ),
    click.option("--force", is_flag=True, help="Build engines again that are up to date."),
    click.option("--dry-run", is_flag=True, help="Print what would be built, and by which calls; needs neither TensorRT nor a GPU."),
)
@cloup.option_group(
    "Engine",
    click.option(
        "--opt-batch", type=click.IntRange(min=1), metavar="N", help="Batch size to optimise for.  [default: the model's max_batch_size]"
    ),
    click.option(
        "--level", "builder_level", type=click.IntRange(0, 5), default=3, metavar="N", help="0: builds fastest; 5: the engine runs fastest."
    ),
    click.option(
        "--workspace",
        type=NumberRange(0, 4096, min_open=True),
        metavar="GIB",
        help="GPU memory that a kernel may use as workspace.  [default: all of it]",
    ),
    click.option("--version-compatible", is_flag=True, help="Build an engine that newer TensorRT can run; larger, and possibly slower."),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Build an engine that other GPUs of compute capability 8.0 or newer can run; possibly slower.",
    ),
    click.option(
        "--timing-cache", type=PATH, metavar="FILE", help="File of kernel timings.  [default: one file per TensorRT version and GPU]"
    ),
    click.option("--log", "log_file", type=PATH, metavar="FILE", help="Append the messages of TensorRT to this file."),
)
@cloup.option_group(
    "Comparison with ONNX Runtime",
    click.option(
        "--images",
        "images_file",
        type=EXISTING_PATH,
        metavar="FILE",
        help="Real images to compare on, .npy: float32 (N,C,H,W) in [0, 1].  [default: test images of the dataset]",
    ),
    dataset_option("Dataset that the networks were trained on.  [default: found by the training record]"),
    click.option("--no-compare", is_flag=True, help="Do not compare the engines with ONNX Runtime."),
)
def command(
    repository: Path,
    models: tuple[str, ...],
    versions: tuple[int, ...],
    workspace: float | None,
    timing_cache: Path | None,
    images_file: Path | None,
    dataset: DatasetLocation | None,
    no_compare: bool,
    force: bool,
    log_file: Path | None,
    dry_run: bool,
    **engine: Any,
) -> None:
    r"""Build a TensorRT engine of each MODEL, or of all models that take images, and save it next to the ONNX file.

    An engine runs only on the TensorRT version and the kind of GPU that it was built on: build it on the machine that serves it, or in
    NVIDIA's TensorRT container of the same month as the server's. Its precision is that of the graph (`defensemble export --precision`).
    Each engine is compared with ONNX Runtime and deleted if it differs. model.plan.json records how it was built; `defensemble serve`
    checks that.

    \b
    Examples:
      defensemble build-engine
      defensemble build-engine --dry-run
      defensemble build-engine keep0.3 --version 2 --opt-batch 16 --level 5 --workspace 4
    """
    if no_compare and (images_file is not None or dataset is not None):
        raise click.UsageError("--images and --dataset are for the comparison, which --no-compare leaves out")
    from ..actions.engines import build, print_calls

    settings = {"workspace_bytes": None if workspace is None else int(workspace * _GIB), **engine}
    if dry_run:
        print_calls(repository, settings, models=models or None, versions=versions or None)
        return
    build(
        repository,
        settings,
        models=models or None,
        versions=versions or None,
        images_file=images_file,
        log_file=log_file,
        timing_cache=timing_cache,
        data_dir=None if dataset is None else dataset.folder,
        compare=not no_compare,
        force=force,
    )
