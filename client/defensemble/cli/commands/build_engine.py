"""`defensemble build-engine`: TensorRT plans for what lies in a model repository."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..notes import print_progress
from ..options import PATH, repository_argument
from ..shell import this_command

_GIB = 2**30


@click.command("build-engine", short_help="TensorRT plans for the models of a repository, on the GPU that will serve them.")
@repository_argument
@click.option("--model", "models", multiple=True, metavar="NAME", help="This model. Repeatable.  [default: all that take images]")
@click.option(
    "--version", "versions", multiple=True, type=click.IntRange(min=1), help="This version. Repeatable.  [default: all that are served]"
)
@click.option("--opt-batch", type=click.IntRange(min=1), help="Batch that it is fastest at.  [default: the model's max_batch_size]")
@click.option("--level", "builder_level", type=click.IntRange(0, 5), default=3, help="0: built fast; 5: built for long, runs fastest.")
@click.option(
    "--workspace",
    type=click.FloatRange(0, 4096, min_open=True),
    metavar="GIB",
    help="GPU memory that a kernel may take for itself.  [default: all there is]",
)
@click.option("--version-compatible", is_flag=True, help="Let the plan run on newer TensorRT too; it can be slower, and is larger.")
@click.option("--hardware-compatible", is_flag=True, help="Let it run on other GPUs, of compute capability 8.0 or newer; it can be slower.")
@click.option("--timing-cache", type=PATH, help="File of kernel timings.  [default: one for this TensorRT and GPU]")
@click.option("--images", "images_file", type=PATH, metavar="FILE.npy", help="Real images to compare plans on.")
@click.option("--data-dir", type=PATH, help="Folder of the data that the networks were trained on, for the same.")
@click.option("--no-compare", is_flag=True, help="Do not compare the plans with ONNX Runtime.")
@click.option("--force", is_flag=True, help="Build plans anew that are up to date.")
@click.option("--log", "log_file", type=PATH, help="Append what TensorRT says to this file.")
@click.option("--dry-run", is_flag=True, help="Say what would be built, and by which calls; needs neither TensorRT nor a GPU.")
def command(
    repository: Path,
    models: tuple[str, ...],
    versions: tuple[int, ...],
    workspace: float | None,
    timing_cache: Path | None,
    images_file: Path | None,
    data_dir: Path | None,
    no_compare: bool,
    force: bool,
    log_file: Path | None,
    dry_run: bool,
    **engine: Any,
) -> None:
    r"""Build a TensorRT plan of every model in REPOSITORY (default: model_repository) that takes images, beside its ONNX file.

    A plan is bound to the TensorRT and the kind of GPU that it is built on: build it where it will be served, or in NVIDIA's container of
    the same month as the server's. The precision is the graph's (`defensemble export --precision`). Its answers are compared with ONNX
    Runtime's, and a plan that differs is not kept. What it was built with is written beside it, in model.plan.json, and checked by
    `defensemble serve`.

    \b
    Examples:
      defensemble build-engine model_repository
      defensemble build-engine model_repository --dry-run
      defensemble build-engine --model keep0.3 --version 2 --opt-batch 16 --level 5 --workspace 4
      defensemble build-engine --hardware-compatible --version-compatible --images test.npy
      defensemble build-engine --no-compare --force --log tensorrt.log
    """
    from ..._image_files import read_npy_images

    if no_compare and (images_file is not None or data_dir is not None):
        raise click.UsageError("--images and --data-dir are about the comparison, and --no-compare asks for none")
    images = None if images_file is None else read_npy_images(images_file)
    # After the cheap checks: this imports onnx and ONNX Runtime.
    from defensemble_export import EngineOptions, build_engines, planned_engines

    options = EngineOptions(workspace_bytes=None if workspace is None else int(workspace * _GIB), **engine)
    if dry_run:
        for one in planned_engines(
            repository, models=models or None, versions=versions or None, options=options, on_message=print_progress
        ):
            click.echo(f"{one.name}: {one.graph} ({one.request.precision}) to model.plan and model.plan.json, by")
            for call in one.calls:
                click.echo(f"  {call}")
        return
    with _logged(log_file), shown_building() as (on_message, on_progress):
        built = build_engines(
            repository,
            models=models or None,
            versions=versions or None,
            options=options,
            timing_cache=timing_cache,
            images=images,
            data_dir=data_dir,
            compare=not no_compare,
            force=force,
            on_message=on_message,
            on_progress=on_progress,
        )
    new = sum(one.built for one in built)
    click.echo(f"{repository}: {new} plan{'' if new == 1 else 's'} built, {len(built) - new} up to date")
    click.echo(f"serve them: {this_command()} profile write gpu-tensorrt {repository}, then")
    click.echo(f"  {this_command()} serve {repository} --profile gpu-tensorrt")


@contextmanager
def shown_building() -> Iterator[tuple[Callable[[str], None], Callable[[str, str, int, int], None]]]:
    """A bar for each phase of a build on a terminal, else lines; yields what says a line, and what is told of progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield print_progress, _line_a_phase
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(phase: str, parent: str, done: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(f"{'  ' if parent else ''}{phase}", total=steps)
            bar.update(tasks[phase], completed=done, total=steps)
            if done >= steps:
                bar.remove_task(tasks.pop(phase))

        yield partial(console.print, highlight=False, markup=False, soft_wrap=True), on_progress


def _line_a_phase(phase: str, parent: str, done: int, steps: int) -> None:
    if not parent and done in (0, steps):
        print_progress(f"TensorRT: {phase}{' done' if done else f', {steps} steps'}")


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """What TensorRT says, in a file where one is named; without one its warnings and errors go where Python's go."""
    if path is None:
        yield
        return
    logger = logging.getLogger("defensemble_export.tensorrt")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
