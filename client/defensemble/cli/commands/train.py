"""`defensemble train`: data and a spec to a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..notes import print_note
from ..options import PATH, bytes_from_size, numbers, with_options
from ..shell import as_typed, this_command

if TYPE_CHECKING:
    from rich.console import Console

    from defensemble_training import TrainingProgress


_numbers = numbers(int, "0,1,2")
# What changes a preset: None is the preset's own value.
_recipe_options = with_options(
    click.option("--preset", default="fast", help="Recipe: fast (one-cycle, 8 epochs) or paper (the authors')."),
    click.option("--epochs", type=int, help="Passes over the training images.  [default: the preset's, as below]"),
    click.option("--batch-size", type=int, help="Images per step, over all processes."),
    click.option("--learning-rate", type=float, help="Highest learning rate of the schedule."),
    click.option("--schedule", help="Learning rate schedule: one-cycle, or steps (a tenth after each milestone)."),
    click.option("--milestones", callback=_numbers, metavar="N,N,...", help="Epochs after which the learning rate falls."),
    click.option("--momentum", type=float, help="Momentum of SGD."),
    click.option("--nesterov/--no-nesterov", default=None, help="Use Nesterov momentum."),
    click.option("--weight-decay", type=float, help="Weight decay of SGD."),
    click.option("--label-smoothing", type=float, help="Label smoothing; 0.1 is the usual baseline."),
    click.option(
        "--largest-shift",
        type=float,
        help="Largest random shift, as a fraction of height and width; 0.125 is a padding of 4 for 32 pixels.",
    ),
    click.option("--flip/--no-flip", default=None, help="Mirror images at random, where the dataset allows it."),
    click.option("--adversarial", metavar="ATTACK", help="Train on adversarial examples of this attack, such as adversarial-training."),
    click.option("--choose", help="Weights to keep: last (of the last epoch) or best (on held-out images)."),
    click.option("--held-out", type=int, help="Number of training images to hold out.  [default: a tenth with --choose best, else none]"),
)
# What goes into a `ModelSpec` and a `Compute` as it is given.
_SPEC = ("arch", "keep", "blocks", "pattern", "sampling", "mask_seed", "channel_multiplier", "stem")
_COMPUTE = ("device", "processes", "precision", "channels_last", "compile", "threads")


@click.command("train", short_help="A defective or standard CNN, trained and saved as a checkpoint.")
@click.argument("output", type=PATH, metavar="OUTPUT.safetensors")
@click.option(
    "--data",
    default="digits",
    help="Dataset: digits, mnist, cifar10, tiny-imagenet, imagenet, stylized-imagenet, or folder (your own images in --data-dir).",
)
@click.option("--data-dir", type=PATH, help="Folder with the images (parquet files or class folders), instead of a download from the hub.")
@click.option(
    "--size", type=int, help="Height and width of the network's input; other images are scaled and cropped to it.  [default: the dataset's]"
)
@click.option("--skip-damaged", is_flag=True, help="Leave out images that cannot be read, instead of stopping at the first.")
@click.option(
    "--max-memory",
    callback=bytes_from_size,
    metavar="SIZE",
    help="Memory that images may take while they are decoded, and those of one row group of a parquet file, such as 4G.  "
    "[default: half of the free memory]",
)
@click.option("--arch", default="resnet18", help="resnet18, resnet50, densenet121, senet18, vgg19, wrn32_4.")
@click.option("--keep", type=float, default=0.3, help="Keep probability of the masks, in (0, 1]; 1.0 is a standard CNN.")
@click.option("--blocks", callback=_numbers, default="0,1,2", metavar="N,N,...", help="Defective blocks; 0 is the stem.")
@click.option("--pattern", default="neuron", help="What a mask drops: neuron, channel or shared (over channels).")
@click.option("--sampling", default="bernoulli", help="How a mask is drawn: bernoulli, or exact (a fixed count).")
@click.option("--mask-seed", type=int, default=0, help="Seed of the masks.")
@click.option("--width", type=int, help="Channels of the first stage; the paper uses 64.  [default: 8 for digits and mnist, else 64]")
@click.option("--channel-multiplier", type=int, default=1, help="Factor on the channels of the defective blocks (the paper's xn).")
@click.option("--stem", default="cifar", help="cifar, or imagenet (7x7 and a max-pool, for 224x224).")
@click.option("--drop", metavar="KIND", help="Baseline: spatial_dropout or drop_block, in --drop-blocks.")
@click.option("--drop-keep", type=float, help="Keep probability of --drop.  [default: 0.9]")
@click.option("--drop-blocks", callback=_numbers, metavar="N,N,...", help="Blocks of --drop.  [default: 3,4]")
@_recipe_options
@click.option("--seed", type=int, default=0, help="Seed of initialisation, order and shifts.")
@click.option("--device", default="auto", help="cpu, gpu, or auto: a GPU where there is one.")
@click.option("--processes", type=int, default=1, help="Processes on this machine, one per GPU; `torchrun` sets its own number.")
@click.option("--precision", help="fp32 or bf16.  [default: bf16 on GPUs, else fp32]")
@click.option("--channels-last/--no-channels-last", default=None, help="Memory format; refused on CPUs.  [default: on GPUs]")
@click.option("--compile", is_flag=True, help="Use torch.compile: takes a minute at the start, faster afterwards.")
@click.option("--threads", type=int, help="CPU threads per process.  [default: torch's choice]")
@click.option("--half", is_flag=True, help="Write the weights in float16: half the file size.")
@click.option("--run", "run_folder", type=PATH, help="Folder for state, log and curve.  [default: OUTPUT.run]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same options; start one if there is none.")
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Write the log for TensorBoard too.")
@click.option("--force", is_flag=True, help="Overwrite OUTPUT, and discard an interrupted run.")
def command(
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
    r"""Train a CNN and write it with its masks, spec and training record to OUTPUT.safetensors.

    Test images choose nothing: the last epoch's weights are kept, or with --choose best those that do best on held-out images. A run can be
    interrupted or killed at any time; --resume continues it, and the result is the same, bit for bit on a CPU. The folder OUTPUT.run gets
    the log (log.jsonl) and the learning curve (learning_curve.png). Next: `defensemble export OUTPUT.safetensors`.

    \b
    Examples:
      defensemble train keep0.3.safetensors
      defensemble train --keep 1.0 standard.safetensors
      defensemble train --data cifar10 --data-dir data/cifar10 --width 16 --epochs 12 --batch-size 128 keep0.3.safetensors
      defensemble train --data folder --data-dir photos --size 64 photos.safetensors      # photos/CLASS/IMAGE, a fifth is the test part
      defensemble train --data cifar10 --preset paper --keep 0.1 --device gpu --resume keep0.1.safetensors
      defensemble train --data cifar10 --preset paper --keep 1.0 --adversarial adversarial-training robust.safetensors
      defensemble train --pattern channel --sampling exact --blocks 3,4 --force top.safetensors
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
    with _shown_loading(shown=first) as on_loading:
        dataset = load_dataset(data, size, data_dir=data_dir, skip_damaged=skip_damaged, max_memory=max_memory, on_progress=on_loading)
    for note in dataset.notes if first else ():
        print_note(note)
    if best:
        changes.setdefault("held_out", len(dataset.train) // 10)
    recipe = recipe_from_preset(preset, **changes)
    classes = len(dataset.class_names)
    spec = ModelSpec(**described, mean=dataset.mean, std=dataset.std, num_classes=classes, input_shape=dataset.input_shape)
    run = RunFolder(run_folder or output.with_suffix(".run"), resume=resume, anew=force, tensorboard=tensorboard)
    if output.resolve() in run.own_files():
        raise click.ClickException(f"{output} is a file of the run in {run.path}: name another OUTPUT, or another --run")
    if output.exists() and not force:
        _check_same(output, spec, recipe.to_values(), seed)
        click.echo(f"{output} is there already: nothing to resume (--force trains it anew)", err=True)
        return
    try:
        with _shown_progress(shown=first) as on_progress:
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
def _shown_loading(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal while images are decoded for the first time."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_progress


@contextmanager
def _shown_progress(*, shown: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar on a terminal, else a line an epoch, both on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield _line_an_epoch()  # told by the first process alone
        return
    with shown_as_bar(console) as on_progress:
        yield on_progress


@contextmanager
def shown_as_bar(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar that shows a run on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    import time

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
