"""`defensemble train`: data and a spec to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from defensemble_training import TrainingProgress


def _blocks(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected block numbers with commas between them, such as 0,1,2; got {text!r}") from None


@click.command("train", short_help="A defective or standard CNN, trained and saved as a checkpoint.")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUTPUT.safetensors")
@click.option("--data", default="digits", show_default=True, help="Dataset: digits (real handwritten digits; no download).")
@click.option("--size", type=int, default=16, show_default=True, help="Height and width that the images are brought to.")
@click.option("--arch", default="resnet18", show_default=True, help="Architecture: resnet18.")
@click.option("--keep", type=float, default=0.3, show_default=True, help="Keep probability of the masks, in (0, 1]; 1.0 is a standard CNN.")
@click.option("--blocks", callback=_blocks, default="0,1,2", show_default=True, metavar="N,N,...", help="Defective blocks; 0 is the stem.")
@click.option("--pattern", default="neuron", show_default=True, help="What a mask drops: neuron, channel or shared (over channels).")
@click.option("--sampling", default="bernoulli", show_default=True, help="How a mask is drawn: bernoulli, or exact (a fixed count).")
@click.option("--mask-seed", type=int, default=0, show_default=True, help="Seed of the masks.")
@click.option("--width", type=int, default=8, show_default=True, help="Channels of the first stage; 64 is the paper's.")
@click.option("--epochs", type=int, default=8, show_default=True, help="Passes over the training images.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True, help="The highest of the one-cycle schedule.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of initialisation, order and shifts.")
@click.option("--threads", type=int, help="Processor threads.  [default: torch's choice]")
@click.option("--force", is_flag=True, help="Overwrite OUTPUT where it exists.")
def command(
    output: Path,
    data: str,
    size: int,
    arch: str,
    keep: float,
    blocks: tuple[int, ...],
    pattern: str,
    sampling: str,
    mask_seed: int,
    width: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int | None,
    force: bool,
) -> None:
    r"""Train a CNN and write it with its masks, spec and training record to OUTPUT.safetensors.

    The last epoch's weights are kept, and the file is written when they are there: an interrupted run leaves nothing. The same options
    give the same weights on the same machine.

    \b
    Examples:
      defensemble train keep0.3.safetensors
      defensemble train --keep 1.0 standard.safetensors
      defensemble train --keep 0.1 --mask-seed 7 --seed 7 --epochs 20 keep0.1.safetensors
      defensemble train --pattern channel --sampling exact --blocks 3,4 --force top.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.BadParameter(f"expected a file name that ends in .safetensors, got {str(output)!r}", param_hint="OUTPUT")
    if output.exists() and not force:
        raise click.ClickException(f"{output} exists; choose another name, or overwrite it with --force")
    # After the cheap checks: this imports torch.
    from defensemble_training import ModelSpec, defect_masks, load_dataset, mask_digest, save_checkpoint, train
    from defensemble_training.checkpoint import check_writable

    check_writable(output)
    dataset = load_dataset(data, size)
    spec = ModelSpec(
        arch=arch,
        keep=keep,
        blocks=blocks,
        pattern=pattern,
        sampling=sampling,
        mask_seed=mask_seed,
        width=width,
        mean=dataset.mean,
        std=dataset.std,
        num_classes=len(dataset.class_names),
        input_shape=dataset.input_shape,
    )
    with _shown_progress() as on_progress:
        module, record = train(
            spec,
            dataset,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            on_progress=on_progress,
            threads=threads,
        )
    save_checkpoint(output, module, spec, record)
    masks = defect_masks(module)
    right = round(record.accuracy * record.n_test)
    click.echo(f"test accuracy {record.accuracy:.4f} ({right} of {record.n_test} images), trained in {record.seconds:.1f} s")
    click.echo(f"{len(masks)} masks, digest {mask_digest(masks)}" if masks else "no masks: a standard network")
    click.echo(f"wrote {output}")


@contextmanager
def _shown_progress() -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar on a terminal, else a line an epoch, both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_an_epoch()
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  train accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, epoch="-", loss="-", accuracy="-")

        def on_progress(progress: TrainingProgress) -> None:
            bar.update(
                task,
                total=progress.steps,
                completed=progress.step,
                epoch=f"{progress.epoch}/{progress.epochs}",
                loss=f"{progress.loss:.3f}",
                accuracy=f"{progress.train_accuracy:.3f}",
            )

        yield on_progress


def _line_an_epoch() -> Callable[[TrainingProgress], None]:
    import time

    started = time.monotonic()

    def on_progress(progress: TrainingProgress) -> None:
        if progress.step * progress.epochs != progress.epoch * progress.steps:  # not the last step of its epoch
            return
        left = (time.monotonic() - started) / progress.step * (progress.steps - progress.step)
        click.echo(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
            f"train accuracy {progress.train_accuracy:.3f}, {left:.0f} s left",
            err=True,
        )

    return on_progress
