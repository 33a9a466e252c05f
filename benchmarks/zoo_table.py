"""How do the networks of the zoo do when another network's adversarial examples are shown to them?

The paper's Table 2, on small networks: FGSM and PGD-7 crafted once on a standard network that is not among those compared, shown to each
network of the zoo and to the average of the defective ones, beside the clean images and uniform noise of the same size.
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

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import cifar10_for, described, zoo_options
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run
from benchmarks.common.provenance import surroundings
from benchmarks.zoo.measuring import ATTACKED, AVERAGE, SETS, Images, Labels, classes_of, comparison, figures_of, image_sets, rates_of
from benchmarks.zoo.page import page
from benchmarks.zoo.plan import PLAN, ROOT, SOURCE
from defensemble_training import ATTACKS, TrainingError, load_checkpoint, read_metadata

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
    machine = surroundings(packages=("torch",))
    machine["hardware"]["threads"] = torch.get_num_threads()
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
        **machine,
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


@benchmark_command(
    "zoo_table", quick=f"{QUICK_IMAGES} images", seed="the noise", result="zoo_cifar10", example="--quick --data-dir data/cifar10"
)
@zoo_options
@click.option("--batch-size", type=click.IntRange(1), default=500, show_default=True, help="Images at once.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the processor.  [default: torch's choice]")
@click.option("--anew", is_flag=True, help=f"Craft all examples again, even those that an earlier run has left in {KEPT_IN}.")
def main(options: Options, zoo: Path, data_dir: Path | None, batch_size: int, threads: int | None, anew: bool) -> NoReturn:
    """Compare the networks of the zoo on clean, noisy and attacked test images of CIFAR-10.

    About ten minutes on two cores. Exit status 1 where a goal is not reached.
    """
    if threads is not None:
        torch.set_num_threads(threads)

    def measured(on_message: OnProgress) -> dict[str, Any]:
        def on_progress(what: str, done: int, total: int) -> None:
            if done >= total:
                on_message(f"{what}: {total} done")

        checkpoints = {network.name: zoo / network.path.name for network in PLAN}
        data = cifar10_for((path for path in checkpoints.values() if path.exists()), data_dir, on_progress)
        chosen = slice(0, QUICK_IMAGES if options.quick else len(data.test))
        result = measure(
            checkpoints,
            data.test.images(chosen),
            data.test.labels[chosen],
            batch_size=batch_size,
            seed=options.seed,
            keep_in=None if anew else ROOT / KEPT_IN,
            on_progress=on_progress,
        )
        return {**result, "data": described(data), "platform": platform.machine()}

    run(measured, page, options, errors=(TrainingError,), cores=None)


if __name__ == "__main__":
    main()
