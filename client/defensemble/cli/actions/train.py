"""What `defensemble train` does with its options."""

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

from ..notes import print_note
from ..progress import named_bars
from ..shell import as_typed, this_command

if TYPE_CHECKING:
    from defensemble_training import TrainingProgress


# What goes into a `ModelSpec` and a `Compute` as it is given.
_SPEC = ("arch", "keep", "blocks", "pattern", "sampling", "mask_seed", "channel_multiplier", "stem")
_COMPUTE = ("device", "processes", "precision", "channels_last", "compile", "threads")


def run(
    output: Path,
    data: str,
    data_dir: Path | None,
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
    """Train what was asked for, and write the checkpoint; `options` are those of the spec, of the computation, and changes of the preset.

    Raises:
        click.ClickException: The options do not go together, the run was interrupted, or a checkpoint of another run is in its place.
        defensemble_training.TrainingError: See `defensemble_training.train`.
    """
    if output.suffix != ".safetensors":
        raise click.BadParameter(f"expected a file name that ends in .safetensors, got {str(output)!r}", param_hint="OUTPUT")
    if output.exists() and not (force or resume):
        raise click.ClickException(f"{output} exists; choose another name, or overwrite it with --force")
    if drop is None and (drop_keep is not None or drop_blocks is not None):
        raise click.UsageError("--drop-keep and --drop-blocks are about --drop, which is not given")
    if skip_damaged and data == "digits":
        raise click.UsageError("--skip-damaged is about files of images, and digits come from none")
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
    first = is_first_process()  # the others of a run start by the same command, and show nothing
    compute = Compute(**{name: options.pop(name) for name in _COMPUTE})
    described = {name: options.pop(name) for name in _SPEC}
    described["width"] = width if width is not None else 8 if data in ("digits", "mnist") else 64
    dropped: dict[str, Any] = {name: value for name, value in (("keep", drop_keep), ("blocks", drop_blocks)) if value is not None}
    described["drop"] = None if drop is None else Drop(drop, **dropped)
    changes = {name: value for name, value in options.items() if value is not None}
    # Refused before images are decoded or downloaded.
    best = changes.get("choose") == "best"
    recipe_from_preset(preset, **{**({"held_out": 1} if best else {}), **changes})
    ModelSpec(**described, input_shape=(3, 224, 224) if described["stem"] == "imagenet" else (3, 32, 32))
    console = Console(stderr=True)
    with named_bars(console, shown=first) as on_loading:
        dataset = load_dataset(data, size, data_dir=data_dir, skip_damaged=skip_damaged, max_memory=max_memory, on_progress=on_loading)
    for note in dataset.notes if first else ():
        print_note(note)
    if best:
        changes.setdefault("held_out", len(dataset.train) // 10)
    recipe = recipe_from_preset(preset, **changes)
    classes = len(dataset.class_names)
    spec = ModelSpec(**described, mean=dataset.mean, std=dataset.std, num_classes=classes, input_shape=dataset.input_shape)
    run = RunFolder(run_folder or output.with_suffix(".run"), resume=resume, overwrite=force, tensorboard=tensorboard)
    if output.resolve() in run.own_files():
        raise click.ClickException(f"{output} is a file of the run in {run.path}: name another OUTPUT, or another --run")
    if output.exists() and not force:
        _check_same(output, spec, recipe.to_values(), seed)
        click.echo(f"{output} is there already: nothing to resume (--force trains it anew)", err=True)
        return
    try:
        with _shown_progress(console, shown=first) as on_progress:
            module, record = train(
                spec, dataset, recipe=recipe, seed=seed, compute=compute, run=run, on_progress=on_progress, command=as_typed()
            )
    except Interrupted as error:
        raise click.ClickException(f"{error}\ngo on with: {this_command()} {as_typed(with_option='--resume')}") from error
    if not first:
        return
    save_checkpoint(output, module, spec, record, half=half)
    run.finish()
    _tell(output, module, record, run)


def _check_same(output: Path, spec: Any, recipe: dict[str, Any], seed: int) -> None:
    """Raise unless a finished checkpoint is the one that was asked for."""
    from defensemble_training import read_metadata

    found = read_metadata(output)
    for what, got, wanted in (("spec", found.spec, spec), ("recipe", found.record.recipe, recipe), ("seed", found.record.seed, seed)):
        if got != wanted:
            raise click.ClickException(
                f"{output} is finished, and was trained otherwise: its {what} is {got}, asked for was {wanted}; "
                "choose another name, or train it anew with --force"
            )


def _tell(output: Path, module: Any, record: Any, run: Any) -> None:
    from defensemble_training import defect_masks, mask_digest

    masks = defect_masks(module)
    right = round(record.accuracy * record.n_test)
    click.echo(f"test accuracy {record.accuracy:.4f} ({right} of {record.n_test} images), trained in {record.seconds:.1f} s")
    click.echo(f"{len(masks)} masks, digest {mask_digest(masks)}" if masks else "no masks: a standard network")
    click.echo(f"wrote {output}; log and learning curve in {run.path}")
    click.echo(f"export it: defensemble export {shlex.quote(str(output))}")


@contextmanager
def _shown_progress(console: Console, *, shown: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar on a terminal, else a line an epoch, both on standard error."""
    if not (shown and console.is_terminal):
        yield _line_an_epoch()  # called by the first process only
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  train accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A drawing takes 1.2 ms beside training, from one of its threads, for which the others wait: benchmarks/training_overhead.py.
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=None, epoch="-", loss="-", accuracy="-")
        begun = False

        def on_progress(progress: TrainingProgress) -> None:
            nonlocal begun
            if not begun:
                # Speed and time left are of the steps of this process.
                bar.reset(task, total=progress.steps, completed=progress.resumed_at)
            bar.update(
                task,
                total=progress.steps,
                completed=progress.step,
                epoch=f"{progress.epoch}/{progress.epochs}",
                loss=f"{progress.loss:.3f}",
                accuracy=f"{progress.train_accuracy:.3f}",
            )
            if not begun:
                bar.refresh()  # the first step at once: a run may be over within a second
                begun = True

        yield on_progress


def _line_an_epoch() -> Callable[[TrainingProgress], None]:
    started = time.monotonic()

    def on_progress(progress: TrainingProgress) -> None:
        if progress.step * progress.epochs != progress.epoch * progress.steps:  # not the last step of its epoch
            return
        left = (time.monotonic() - started) / (progress.step - progress.resumed_at) * (progress.steps - progress.step)
        click.echo(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
            f"train accuracy {progress.train_accuracy:.3f}, {left:.0f} s left",
            err=True,
        )

    return on_progress
