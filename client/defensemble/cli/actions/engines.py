"""What `defensemble build-engine` does, and how it and `--engine` show the build of TensorRT engines."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..._image_files import read_npy_images
from ..notes import print_progress, shows_progress
from ..shell import this_command


def print_calls(repository: Path, settings: Mapping[str, Any], *, models: Sequence[str] | None, versions: Sequence[int] | None) -> None:
    """Print the engines that would be built, and the TensorRT calls that build each."""
    # This imports onnx and ONNX Runtime.
    from defensemble_export import EngineOptions, planned_engines

    planned = planned_engines(repository, models=models, versions=versions, options=EngineOptions(**settings), on_progress=print_progress)
    for engine in planned:
        click.echo(f"{engine.name}: {engine.graph} ({engine.request.precision}) to model.plan and model.plan.json, by")
        for call in engine.calls:
            click.echo(f"  {call}")


def build(repository: Path, settings: Mapping[str, Any], *, images_file: Path | None, log_file: Path | None, **options: Any) -> None:
    """Build engines and print how to serve them.

    Args:
        repository: The model repository.
        settings: Fields of `EngineOptions`.
        images_file: Real images (.npy) to compare on.
        log_file: Receives the messages of TensorRT.
        options: Further arguments of `defensemble_export.build_engines`.
    """
    images = None if images_file is None else read_npy_images(images_file)
    from defensemble_export import EngineOptions, build_engines

    engine_options = EngineOptions(**settings)
    with tensorrt_log(log_file), building_progress() as (on_progress, on_phase):
        engines = build_engines(repository, options=engine_options, images=images, on_progress=on_progress, on_phase=on_phase, **options)
    built = sum(engine.built for engine in engines)
    click.echo(f"{repository}: {built} plan{'' if built == 1 else 's'} built, {len(engines) - built} up to date")
    print_how_to_serve(repository)


def print_how_to_serve(repository: Path) -> None:
    """Print the commands that serve the engines of a repository."""
    where = f"--repository {shlex.quote(str(repository))}"
    click.echo(f"serve them: {this_command()} profile write gpu-tensorrt {where}, then")
    click.echo(f"  {this_command()} serve {where} --profile gpu-tensorrt")


@contextmanager
def building_progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, str, int, int], None]]]:
    """Show the phases of a build as progress bars on a terminal, else as lines.

    Yields:
        `on_progress` and `on_phase` of `defensemble_export.build_engines`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from ..progress import line_printer

    console = Console(stderr=True)
    if not (console.is_terminal and shows_progress()):
        yield print_progress, _print_phase
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def on_phase(phase: str, parent: str, done: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(f"{'  ' if parent else ''}{phase}", total=steps)
            bar.update(tasks[phase], completed=done, total=steps)
            if done >= steps:
                bar.remove_task(tasks.pop(phase))

        yield line_printer(console), on_phase


def _print_phase(phase: str, parent: str, done: int, steps: int) -> None:
    """Print the start and the end of a phase that is part of no other."""
    if not parent and done in (0, steps):
        print_progress(f"TensorRT: {phase}{' done' if done else f', {steps} steps'}")


@contextmanager
def tensorrt_log(path: Path | None) -> Iterator[None]:
    """Append all messages of TensorRT to a file; without one, its warnings and errors go where Python's go."""
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
