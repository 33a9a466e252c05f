"""The action of `defensemble train`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..datasets import DatasetLocation
from ..notes import print_note, print_progress, shows_progress
from ..progress import named_bars
from ..shell import as_typed, this_command

if TYPE_CHECKING:
    from defensemble_training import ModelSpec, RunFolder, TrainingProgress, TrainingRecord


# Options that are fields of `ModelSpec` and `Compute`.
_SPEC_FIELDS = ("arch", "keep", "blocks", "pattern", "sampling", "mask_seed", "channel_multiplier", "stem")
_COMPUTE_FIELDS = ("device", "processes", "precision", "channels_last", "compile", "threads")


class _InterruptedRun(click.ClickException):
    """A run that was interrupted, and how to resume it."""

    exit_code = 130


def run(
    output: Path,
    dataset: DatasetLocation,
    size: int | None,
    skip_damaged: bool,
    max_memory: int | None,
    width: int | None,
    drop: str | None,
    drop_keep: float | None,
    drop_blocks: tuple[int, ...] | None,
    preset: str,
    seed: int,
    half: bool,
    run_folder: Path | None,
    resume: bool,
    tensorboard: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Train a network and write its checkpoint; `options` are fields of `ModelSpec`, of `Compute`, and changes of the preset.

    Raises:
        click.ClickException: Options contradict each other, the run was interrupted, or `output` is the checkpoint of another run.
        defensemble_training.TrainingError: See `defensemble_training.train`.
    """
    if output.suffix != ".safetensors":
        raise click.BadParameter(f"expected a file name that ends in .safetensors, got {str(output)!r}", param_hint="OUTPUT")
    if output.exists() and not (force or resume):
        raise click.ClickException(f"{output} exists. Choose another name, or overwrite it with --force.")
    if drop is None and (drop_keep is not None or drop_blocks is not None):
        raise click.UsageError("--drop-keep and --drop-blocks need --drop")
    if skip_damaged and dataset.name == "digits":
        raise click.UsageError("--skip-damaged is for datasets of image files; digits has none")
    # After the cheap checks: this imports torch.
    from defensemble_training import (
        Compute,
        Drop,
        Interrupted,
        ModelSpec,
        RunFolder,
        check_writable,
        is_first_process,
        load_dataset,
        recipe_from_preset,
        save_checkpoint,
        train,
    )

    check_writable(output)
    is_first = is_first_process()  # the other processes of a run start with the same command, and print nothing
    compute = Compute(**{name: options.pop(name) for name in _COMPUTE_FIELDS})
    fields = {name: options.pop(name) for name in _SPEC_FIELDS}
    fields["width"] = width if width is not None else 8 if dataset.name in ("digits", "mnist") else 64
    drop_fields: dict[str, Any] = {name: value for name, value in (("keep", drop_keep), ("blocks", drop_blocks)) if value is not None}
    fields["drop"] = None if drop is None else Drop(drop, **drop_fields)
    changes = {name: value for name, value in options.items() if value is not None}
    # Check the values before images are decoded or downloaded.
    keeps_best = changes.get("choose") == "best"
    recipe_from_preset(preset, **{**({"held_out": 1} if keeps_best else {}), **changes})
    ModelSpec(**fields, input_shape=(3, 224, 224) if fields["stem"] == "imagenet" else (3, 32, 32))
    console = Console(stderr=True)
    with named_bars(console, shown=is_first) as on_loading:
        images = load_dataset(
            dataset.name or "folder",
            size,
            data_dir=dataset.folder,
            skip_damaged=skip_damaged,
            max_memory=max_memory,
            on_progress=on_loading,
        )
    for note in images.notes if is_first else ():
        print_note(note)
    if keeps_best:
        changes.setdefault("held_out", len(images.train) // 10)
    recipe = recipe_from_preset(preset, **changes)
    spec = ModelSpec(**fields, mean=images.mean, std=images.std, num_classes=len(images.class_names), input_shape=images.input_shape)
    folder = RunFolder(run_folder or output.with_suffix(".run"), resume=resume, overwrite=force, tensorboard=tensorboard)
    if output.resolve() in folder.own_files():
        raise click.ClickException(f"{output} is a file of the run in {folder.path}. Choose another OUTPUT or another --run.")
    if output.exists() and not force:
        _check_same_run(output, spec, recipe.to_values(), seed)
        print_note(f"{output} is finished: nothing to resume (train it again with --force)")
        return
    try:
        with _progress_display(console, shown=is_first) as on_progress:
            module, record = train(
                spec, images, recipe=recipe, seed=seed, compute=compute, run=folder, on_progress=on_progress, command=as_typed()
            )
    except Interrupted as error:
        raise _InterruptedRun(f"{error}\ncontinue with: {this_command()} {as_typed(with_option='--resume')}") from error
    if not is_first:
        return
    save_checkpoint(output, module, spec, record, half=half)
    folder.finish()
    _print_result(output, module, record, folder)


def _check_same_run(output: Path, spec: ModelSpec, recipe: dict[str, Any], seed: int) -> None:
    """Raise unless a finished checkpoint has this spec, recipe and seed."""
    from defensemble_training import read_metadata

    metadata = read_metadata(output)
    record = metadata.record
    for name, actual, expected in (("spec", metadata.spec, spec), ("recipe", record.recipe, recipe), ("seed", record.seed, seed)):
        if actual != expected:
            raise click.ClickException(
                f"{output} is finished, with another {name}: {actual}; these options mean {expected}. "
                "Choose another name, or overwrite it with --force."
            )


def _print_result(output: Path, module: Any, record: TrainingRecord, folder: RunFolder) -> None:
    from defensemble_training import defect_masks, mask_digest

    masks = defect_masks(module)
    correct = round(record.accuracy * record.n_test)
    click.echo(f"test accuracy {record.accuracy:.4f} ({correct} of {record.n_test} images), trained in {record.seconds:.1f} s")
    click.echo(f"{len(masks)} masks, digest {mask_digest(masks)}" if masks else "no masks: a standard network")
    click.echo(f"wrote {output}; log and learning curve in {folder.path}")
    click.echo(f"next: defensemble export {shlex.quote(str(output))}")


@contextmanager
def _progress_display(console: Console, *, shown: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """Show a bar on a terminal, else a line per epoch, both on standard error."""
    if not (shown and console.is_terminal and shows_progress()):
        yield _line_per_epoch()  # called by the first process only
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  train accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A refresh takes 1.2 ms, from one of the training's threads, for which the others wait: benchmarks/training_overhead.py.
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=None, epoch="-", loss="-", accuracy="-")
        has_begun = False

        def on_progress(progress: TrainingProgress) -> None:
            nonlocal has_begun
            if not has_begun:
                # Speed and time left count the steps of this process only.
                bar.reset(task, total=progress.steps, completed=progress.resumed_at)
            bar.update(
                task,
                total=progress.steps,
                completed=progress.step,
                epoch=f"{progress.epoch}/{progress.epochs}",
                loss=f"{progress.loss:.3f}",
                accuracy=f"{progress.train_accuracy:.3f}",
            )
            if not has_begun:
                bar.refresh()  # show the first step now: a run may take less than a second
                has_begun = True

        yield on_progress


def _line_per_epoch() -> Callable[[TrainingProgress], None]:
    started = time.monotonic()

    def on_progress(progress: TrainingProgress) -> None:
        if progress.step * progress.epochs != progress.epoch * progress.steps:  # not the last step of its epoch
            return
        left_s = (time.monotonic() - started) / (progress.step - progress.resumed_at) * (progress.steps - progress.step)
        print_progress(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
            f"train accuracy {progress.train_accuracy:.3f}, {left_s:.0f} s left"
        )

    return on_progress
