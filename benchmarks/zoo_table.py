"""Evaluate the networks of the zoo on adversarial examples of another network.

The paper's Table 2, on small networks: FGSM and PGD-7 examples are crafted once on a standard network that is not among the compared ones.
Each network of the zoo and the average of the defective ones classify them, the clean images, and images with noise of the same size.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import torch

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import cifar10_for, describe_dataset, zoo_options
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run
from benchmarks.common.provenance import machine_info
from benchmarks.zoo.measuring import (
    ATTACKED,
    AVERAGE,
    SETS,
    Images,
    Labels,
    compare_average,
    compute_figures,
    compute_rates,
    image_sets,
    predict_classes,
)
from benchmarks.zoo.page import page
from benchmarks.zoo.plan import ROOT, SOURCE, TABLE
from defensemble_training import ATTACKS, TrainingError, load_checkpoint, read_metadata

SCHEMA = "defensemble.benchmark.zoo_table/1"
QUICK_IMAGES = 200
EXAMPLES_FOLDER = Path("runs/zoo_table")


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
    """Craft the examples, evaluate every network whose checkpoint exists, and return the result as JSON.

    Args:
        checkpoints: Checkpoints by name, in the order of the rows; missing ones are reported as not trained.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        source: Name of the network that the examples are crafted on.
        batch_size: Images per batch.
        seed: Seed of the noise.
        keep_in: Folder in which examples are kept for later calls with the same source.
        on_progress: Called with the current step, the number of images done, and the number of all images.

    Raises:
        TrainingError: The checkpoint of the source is missing, or one is damaged.
    """
    existing = {name: path for name, path in checkpoints.items() if name == source or path.exists()}
    networks = {name: load_checkpoint(path)[0] for name, path in existing.items()}
    descriptions = {name: _describe(path) for name, path in existing.items()}
    attacker = networks.pop(source)
    averaged = [name for name in networks if descriptions[name]["keep"] < 1]
    sets = image_sets(attacker, images, labels, batch_size=batch_size, seed=seed, on_progress=on_progress, keep_in=keep_in)
    source_classes = predict_classes({source: attacker}, [], sets, batch_size=batch_size, on_progress=on_progress)
    classes = predict_classes(networks, averaged, sets, batch_size=batch_size, on_progress=on_progress)
    fooled = {what: source_classes[source][what] != labels for what in ATTACKED}
    rates = compute_rates(classes, labels, fooled)
    comparisons = {what: compare_average(classes, labels, averaged, what) for what in ("clean", "pgd")}
    machine = machine_info(packages=("torch",))
    machine["hardware"]["threads"] = torch.get_num_threads()
    return {
        "schema": SCHEMA,
        "n": len(images),
        "seed": seed,
        "batch_size": batch_size,
        "attacks": {name: _setting(preset) for name, preset in ATTACKED.items()},
        "eight_bit": True,
        "source": {"name": source, **descriptions[source], "rates": compute_rates(source_classes, labels, {})[source]},
        "networks": {
            name: {**descriptions[name], "rates": rates[name]} if name in rates else None for name in checkpoints if name != source
        },
        AVERAGE: {"of": averaged, "rates": rates[AVERAGE]} if AVERAGE in rates else None,
        "average_beside_best_member": comparisons,
        "largest_change": {what: float(np.abs(sets[what] - images).max()) for what in SETS if what != "clean"},
        **machine,
        "figures": compute_figures(rates, averaged, comparisons),
    }


def _describe(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "mask_digest": metadata.mask_digest,
        "arch": metadata.spec.arch,
        "width": metadata.spec.width,
        "keep": metadata.spec.keep,
        "mask_seed": metadata.spec.mask_seed,
        "seed": metadata.record.seed,
        "epochs": metadata.record.epochs,
        "precision_in_training": metadata.record.precision,
    }


def _setting(name: str) -> dict[str, Any]:
    preset = ATTACKS[name]
    return {"preset": name, "epsilon": preset.epsilon, "step_size": preset.step_size, "steps": preset.steps, "random_start": False}


@benchmark_command(
    "zoo_table", quick=f"{QUICK_IMAGES} images", seed="the noise", result="zoo_cifar10", example="--quick --dataset data/cifar10"
)
@zoo_options
@click.option("--batch-size", type=click.IntRange(1), default=500, show_default=True, help="Images per batch.")
@click.option("--threads", type=click.IntRange(1), help="Number of threads.  [default: torch's choice]")
@click.option("--recraft", is_flag=True, help=f"Craft all examples again, even those that an earlier run kept in {EXAMPLES_FOLDER}.")
def main(options: Options, zoo: Path, data_dir: Path | None, batch_size: int, threads: int | None, recraft: bool) -> NoReturn:
    """Compare the networks of the zoo on clean, noisy and attacked test images of CIFAR-10.

    Takes about ten minutes on two cores. The exit status is 1 if a goal is missed.
    """
    if threads is not None:
        torch.set_num_threads(threads)

    def measured(on_message: OnProgress) -> dict[str, Any]:
        def on_progress(what: str, done: int, total: int) -> None:
            if done >= total:
                on_message(f"{what}: {total} done")

        checkpoints = {network.name: zoo / network.path.name for network in TABLE}
        data = cifar10_for((path for path in checkpoints.values() if path.exists()), data_dir, on_progress)
        selected = slice(0, QUICK_IMAGES if options.quick else len(data.test))
        result = measure(
            checkpoints,
            data.test.images(selected),
            data.test.labels[selected],
            batch_size=batch_size,
            seed=options.seed,
            keep_in=None if recraft else ROOT / EXAMPLES_FOLDER,
            on_progress=on_progress,
        )
        return {**result, "data": describe_dataset(data), "platform": platform.machine()}

    run(measured, page, options, errors=(TrainingError,), cores=None)


if __name__ == "__main__":
    main()
