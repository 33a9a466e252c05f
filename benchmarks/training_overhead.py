"""What does the training harness cost beside a plain loop of the same steps?

A defective ResNet-18 of width 16 on CIFAR-10, 128 images a step: `train_module` with its folder and a progress bar, and a loop of some 25
lines of torch with the same images, augmentation and optimizer, in turn, in rounds. Both must end with the same weights, bit for bit.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import torch

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import data_option
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.figures import Figure, at_most, round_ratios, spread
from benchmarks.common.markdown import commit, look, measured_on, note, ranged, table
from benchmarks.common.provenance import surroundings
from benchmarks.training.forms import FORMS, Run, Task, same_weights
from defensemble_training import Dataset, ModelSpec, Part, TrainingError, load_dataset, recipe_from_preset

SCHEMA = "defensemble.benchmark.training_overhead/1"
GOAL = 1.05
BATCH = 128
EPOCH = 391  # steps of CIFAR-10's 50,000 images
TEST_IMAGES = 64
WARM_STEPS = 2


class DifferentWeightsError(Exception):
    """The two forms did not do the same steps."""


@dataclass(frozen=True)
class Effort:
    """Rounds, in each of which both forms do this many steps."""

    rounds: int
    steps: int


FULL = Effort(rounds=5, steps=100)
QUICK = Effort(rounds=3, steps=12)


def measure(task: Task, effort: Effort, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Times both forms in turn, the first of a round being the other one each time, and returns the result as JSON.

    The task's dataset must hold the training images of `effort.steps` steps.

    Raises:
        DifferentWeightsError: The forms ended with different weights.
        TrainingError: See `train_module`.
    """
    warm = replace(task, dataset=_part_of(task.dataset, WARM_STEPS * task.recipe.batch_size))
    for form in FORMS.values():
        form(warm)
    on_progress("both forms have been run once, untimed: what is loaded on first use is loaded")
    runs: dict[str, list[Run]] = {name: [] for name in FORMS}
    began, load = time.monotonic(), os.getloadavg()[0]
    for number in range(effort.rounds):
        for name in sorted(FORMS, reverse=bool(number % 2)):
            runs[name].append(FORMS[name](task))
        last = {name: of[-1] for name, of in runs.items()}
        if not same_weights(last["harness"].weights, last["bare"].weights):
            raise DifferentWeightsError("the harness and the bare loop ended with different weights, so their steps are not the same ones")
        left = (time.monotonic() - began) * (effort.rounds / (number + 1) - 1)
        between = task.steps - 1
        glance = ", ".join(f"{name} {1000 * one.steps_s / between:.1f} ms a step" for name, one in last.items())
        on_progress(f"round {number + 1} of {effort.rounds}: {glance}; {left:.0f} s left")
    machine = surroundings(packages=("torch",))
    machine["hardware"] |= {
        "torch_threads": torch.get_num_threads(),
        "load_average_before": round(load, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
    }
    return {
        "schema": SCHEMA,
        "seed": task.seed,
        "data": task.dataset.source,
        "network": {"arch": task.spec.arch, "keep": task.spec.keep, "blocks": list(task.spec.blocks), "width": task.spec.width},
        "image_shape": list(task.spec.input_shape),
        "recipe": task.recipe.to_values(),
        "rounds": effort.rounds,
        "steps": task.steps,
        "same_weights": True,
        **_compared(runs, task.steps),
        **machine,
    }


def _compared(runs: dict[str, list[Run]], steps: int) -> dict[str, Any]:
    between = steps - 1  # from the end of the first step to the end of the last
    step = {name: [run.steps_s / between for run in of] for name, of in runs.items()}
    cpu = {name: [run.steps_cpu_s / between for run in of] for name, of in runs.items()}
    # What a call takes around its steps: loading, the folder, and at the epoch's end the saved state, the curve and the test images.
    around = {name: [run.whole_s - run.steps_s * steps / between for run in of] for name, of in runs.items()}
    epoch = {name: [around[name][at] + EPOCH * step[name][at] for at in range(len(of))] for name, of in runs.items()}
    ratios = {
        "step": spread(round_ratios(step["harness"], step["bare"])),
        "step_cpu": spread(round_ratios(cpu["harness"], cpu["bare"])),
        "epoch": spread(round_ratios(epoch["harness"], epoch["bare"])),
        "whole_call": spread(round_ratios(*([run.whole_s for run in runs[name]] for name in ("harness", "bare")))),
    }
    return {
        "forms": {
            name: {
                "step_ms": spread([1000 * value for value in step[name]]),
                "step_cpu_ms": spread([1000 * value for value in cpu[name]]),
                "around_the_steps_s": spread(around[name]),
                "whole_call_s": spread([run.whole_s for run in runs[name]]),
            }
            for name in runs
        },
        "epoch_steps": EPOCH,
        "ratios": ratios,
        "figures": figures_of(ratios["epoch"]["median"]),
    }


def figures_of(epoch: float) -> dict[str, Figure]:
    """The figure that was asked for."""
    return {"epoch_harness_by_bare": at_most(epoch, GOAL)}


def cifar10_task(steps: int, seed: int, data_dir: Path | None) -> Task:
    """The network and images of the benchmark; CIFAR-10 where it lies in a folder that is known, else random bytes.

    Raises:
        DataError: The folder does not hold CIFAR-10.
    """
    known = os.environ.get("DEFENSEMBLE_DATA_DIR")
    if data_dir is None and known is not None and (Path(known) / "cifar10").is_dir():
        data_dir = Path(known) / "cifar10"
    dataset = random_bytes(steps * BATCH, (3, 32, 32), seed) if data_dir is None else load_dataset("cifar10", data_dir=data_dir)
    spec = ModelSpec("resnet18", 0.3, (0, 1, 2), width=16, mean=dataset.mean, std=dataset.std)
    recipe = recipe_from_preset("fast", epochs=1, batch_size=BATCH)
    return Task(spec, _part_of(dataset, min(steps * BATCH, len(dataset.train))), recipe, seed)


def random_bytes(count: int, shape: tuple[int, int, int], seed: int) -> Dataset:
    """Seeded images that show nothing, in ten classes: they cost what real ones cost."""
    random = np.random.default_rng(seed)
    parts = [
        Part(random.integers(0, 256, (size, *shape), dtype=np.uint8), random.integers(0, 10, size, dtype=np.int64))
        for size in (count, TEST_IMAGES)
    ]
    names, level = tuple(str(index) for index in range(10)), (0.5,) * shape[0]
    source = f"random bytes, seed {seed}"
    return Dataset("random", names, parts[0], parts[1], level, level, flip=True, source=source, digest="0" * 16)


def _part_of(dataset: Dataset, count: int) -> Dataset:
    train = Part(dataset.train.pixels[:count], dataset.train.labels[:count])
    return replace(dataset, train=train, test=Part(dataset.test.pixels[:TEST_IMAGES], dataset.test.labels[:TEST_IMAGES]))


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    figure = result["figures"]["epoch_harness_by_bare"]
    names = {"epoch": f"an epoch of {result['epoch_steps']} steps", "step": "a step, wall", "step_cpu": "a step, processor time"}
    names["whole_call"] = f"the whole call of {result['steps']} steps"
    ratios = [(text, ranged(result["ratios"][key], ".3f"), figure["goal"] if key == "epoch" else "") for key, text in names.items()]
    forms = [
        (name, ranged(form["step_ms"], ".1f"), ranged(form["step_cpu_ms"], ".1f"), ranged(form["around_the_steps_s"]))
        for name, form in result["forms"].items()
    ]
    network = result["network"]
    return "\n".join(
        [
            "# What the training harness costs compared with a plain loop",
            look(result),
            f"{measured_on(result, json_name, 'training_overhead')}torch {result['versions']['torch']}, commit {commit(result)}, "
            f"seed {result['seed']}.",
            *note(result),
            "",
            f"{network['arch']} of width {network['width']}, keep {network['keep']}, on {result['data']}: {result['rounds']} rounds of "
            f"{result['steps']} steps, in which the two take turns; both ended with the same weights, bit for bit.",
            "Medians of the rounds, smallest and largest in brackets.",
            "",
            table(("harness by bare", "ratio", "goal"), ratios),
            "",
            table(("form", "a step, ms", "of processor time, ms", "around the steps, s"), forms),
            "",
            f"The figure {'holds' if figure['holds'] else '**does not hold**'}.",
            "",
        ]
    )


@benchmark_command(
    "training_overhead", quick="short rounds", seed="weights, masks, order and shifts", example="--quick --data-dir data/cifar10"
)
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
@click.option("--steps", type=click.IntRange(2, 390), help=f"Steps of each form in a round.  [default: {FULL.steps}]")
@data_option("or random bytes")
def main(options: Options, rounds: int | None, steps: int | None, data_dir: Path | None) -> NoReturn:
    """Measure what the training harness costs compared with a plain loop of the same steps.

    About five minutes on two cores, which nothing else should use meanwhile. Exit status 1 where the figure does not hold.
    """
    base = QUICK if options.quick else FULL
    effort = Effort(rounds or base.rounds, steps or base.steps)

    def measured(on_progress: OnProgress) -> dict[str, Any]:
        task = cifar10_task(effort.steps, options.seed, data_dir)
        on_progress(f"{task.outline()}; {task.dataset.source}")
        return measure(task, effort, on_progress)

    run(measured, page, options, errors=(TrainingError, DifferentWeightsError), cores=None)


if __name__ == "__main__":
    main()
