"""How do the networks of the zoo do when another network's adversarial examples are shown to them?

The paper's Table 2, on small networks: FGSM and PGD-7 crafted once on a standard network that is not among those compared, shown to each
network of the zoo and to the average of the defective ones, beside the clean images and uniform noise of the same size.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.zoo.measuring import ATTACKED, AVERAGE, SETS, Images, Labels, classes_of, comparison, figures_of, image_sets, rates_of
from benchmarks.zoo.page import page
from benchmarks.zoo.plan import FOLDER, PLAN, ROOT, SOURCE
from defensemble.results.provenance import provenance
from defensemble.results.result_file import check_writable, write_result
from defensemble_training import ATTACKS, TrainingError, load_checkpoint, load_dataset, read_metadata

SCHEMA = "defensemble.benchmark.zoo_table/1"
QUICK_IMAGES = 200
KEPT_IN = Path("runs/zoo_table")


def measure(
    checkpoints: Mapping[str, Path],
    images: Images,
    labels: Labels,
    *,
    source: str = SOURCE,
    batch_size: int = 500,
    seed: int = 0,
    keep_in: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Crafts the examples, asks every network whose checkpoint is there, and returns the result as JSON.

    Args:
        checkpoints: by name, in the order of the rows; those that are not there are told as not trained.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        source: the name of the network that the examples are crafted on.
        batch_size: images at once.
        seed: of the noise.
        keep_in: a folder for examples, which a later call on the same source takes from there.
        on_progress: called with what is done, how many images are done, and of how many.

    Raises:
        TrainingError: the source is not there, or a checkpoint is damaged.
    """
    there = {name: path for name, path in checkpoints.items() if name == source or path.exists()}
    networks = {name: load_checkpoint(path)[0] for name, path in there.items()}
    about = {name: _about(path) for name, path in there.items()}
    attacker = networks.pop(source)
    averaged = [name for name in networks if about[name]["keep"] < 1]
    sets = image_sets(attacker, images, labels, batch_size=batch_size, seed=seed, on_progress=on_progress, keep_in=keep_in)
    own = classes_of({source: attacker}, [], sets, batch_size=batch_size, on_progress=on_progress)
    answers = classes_of(networks, averaged, sets, batch_size=batch_size, on_progress=on_progress)
    fooled = {what: own[source][what] != labels for what in ATTACKED}
    rates = rates_of(answers, labels, fooled)
    compared = {what: comparison(answers, labels, averaged, what) for what in ("clean", "pgd")}
    told = provenance()
    told["versions"] |= {"torch": metadata.version("torch")}
    told["hardware"]["threads"] = torch.get_num_threads()
    return {
        "schema": SCHEMA,
        "n": len(images),
        "seed": seed,
        "batch_size": batch_size,
        "attacks": {name: _setting(preset) for name, preset in ATTACKED.items()},
        "eight_bit": True,
        "source": {"name": source, **about[source], "rates": rates_of(own, labels, {})[source]},
        "networks": {name: {**about[name], "rates": rates[name]} if name in rates else None for name in checkpoints if name != source},
        AVERAGE: {"of": averaged, "rates": rates[AVERAGE]} if AVERAGE in rates else None,
        "average_beside_best_member": compared,
        "largest_change": {what: float(np.abs(sets[what] - images).max()) for what in SETS if what != "clean"},
        **told,
        "figures": figures_of(rates, averaged, compared),
    }


def _about(path: Path) -> dict[str, Any]:
    known = read_metadata(path)
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "mask_digest": known.mask_digest,
        "arch": known.spec.arch,
        "width": known.spec.width,
        "keep": known.spec.keep,
        "mask_seed": known.spec.mask_seed,
        "seed": known.record.seed,
        "epochs": known.record.epochs,
        "precision_in_training": known.record.precision,
    }


def _setting(name: str) -> dict[str, Any]:
    preset = ATTACKS[name]
    return {"preset": name, "epsilon": preset.epsilon, "step_size": preset.step_size, "steps": preset.steps, "random_start": False}


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/zoo_table.py --json docs/results/zoo_cifar10.json      # and zoo_cifar10.md beside it
      python benchmarks/zoo_table.py --quick --data-dir data/cifar10
    """
)
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result here, and the page beside it."
)
@click.option("--quick", is_flag=True, help=f"A look, on {QUICK_IMAGES} images, which proves nothing.")
@click.option("--zoo", type=click.Path(path_type=Path), default=ROOT / FOLDER, help=f"Folder of the checkpoints.  [default: {FOLDER}]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="CIFAR-10.  [default: $DEFENSEMBLE_DATA_DIR/cifar10, or the hub]")
@click.option("--batch-size", type=click.IntRange(1), default=500, show_default=True, help="Images at once.")
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [default: torch's choice]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@click.option("--anew", is_flag=True, help=f"Craft all examples again, even those that an earlier run has left in {KEPT_IN}.")
def main(
    out: Path | None, quick: bool, zoo: Path, data_dir: Path | None, batch_size: int, threads: int | None, seed: int, anew: bool
) -> None:
    """Compare the networks of the zoo on clean, noisy and attacked test images of CIFAR-10.

    About ten minutes on two cores. Exit status 1 where a goal is not reached.
    """
    console = Console()
    if threads is not None:
        torch.set_num_threads(threads)
    began = time.monotonic()
    try:
        if out is not None:
            check_writable(out)
        with _shown() as on_progress:
            data = load_dataset("cifar10", data_dir=data_dir, on_progress=on_progress)
            chosen = slice(0, QUICK_IMAGES if quick else len(data.test))
            checkpoints = {network.name: zoo / network.path.name for network in PLAN}
            result = measure(
                checkpoints,
                data.test.images(chosen),
                data.test_labels[chosen],
                batch_size=batch_size,
                seed=seed,
                keep_in=None if anew else ROOT / KEPT_IN,
                on_progress=on_progress,
            )
        result |= {
            "data": {"name": data.name, "source": data.source, "digest": data.digest, "part": "test"},
            "platform": platform.machine(),
            "quick": quick,
            "duration_s": round(time.monotonic() - began, 1),
        }
        if out is not None:
            write_result(out, result)
            out.with_suffix(".md").write_text(page(result, out.name))
    except (TrainingError, OSError) as error:
        raise click.ClickException(str(error)) from error
    console.print(page(result, "the JSON" if out is None else out.name), highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(0 if all(figure["holds"] for figure in result["figures"].values()) else 1)


@contextmanager
def _shown() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, else a line for each step, both on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)
            if done >= total and not console.is_terminal:
                click.echo(f"{time.monotonic() - began:5.0f} s  {what}: {total} done", err=True)

        yield on_progress


if __name__ == "__main__":
    main()
