"""Compare the training harness with a plain loop of the same steps.

A defective ResNet-18 of width 16 on CIFAR-10, 128 images per step: `train_module` with its folder and a progress bar, and a loop of about
25 lines of torch with the same images, augmentation and optimizer, in turn, in rounds. Both must end with bitwise equal weights.
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

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import dataset_option
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.figures import Figure, at_most_figure, round_ratios, spread
from benchmarks.common.markdown import format_measurement, format_spread, note_paragraph, quick_warning, short_commit, table
from benchmarks.common.provenance import machine_info
from benchmarks.training.forms import FORMS, Run, Task, same_weights
from defensemble_training import Dataset, ModelSpec, Part, TrainingError, load_dataset, recipe_from_preset

SCHEMA = "defensemble.benchmark.training_overhead/1"
GOAL = 1.05
BATCH = 128
EPOCH = 391  # steps of CIFAR-10's 50,000 images
TEST_IMAGES = 64
WARM_STEPS = 2


class DifferentWeightsError(Exception):
    """The two forms did different steps."""


@dataclass(frozen=True)
class Effort:
    """Number of rounds, and steps of each form in a round."""

    rounds: int
    steps: int


FULL = Effort(rounds=5, steps=100)
QUICK = Effort(rounds=3, steps=12)


def measure(task: Task, effort: Effort, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Time both forms in turn, in alternating order, and return the result as JSON.

    The task's dataset must contain the training images of `effort.steps` steps.

    Raises:
        DifferentWeightsError: The forms ended with different weights.
        TrainingError: See `train_module`.
    """
    warm = replace(task, dataset=_first_images(task.dataset, WARM_STEPS * task.recipe.batch_size))
    for form in FORMS.values():
        form(warm)
    on_progress("both forms ran once, untimed, to load what is loaded on first use")
    runs: dict[str, list[Run]] = {name: [] for name in FORMS}
    began, load = time.monotonic(), os.getloadavg()[0]
    for number in range(effort.rounds):
        for name in sorted(FORMS, reverse=bool(number % 2)):
            runs[name].append(FORMS[name](task))
        last = {name: form_runs[-1] for name, form_runs in runs.items()}
        if not same_weights(last["harness"].weights, last["bare"].weights):
            raise DifferentWeightsError("the harness and the plain loop ended with different weights: they did different steps")
        left = (time.monotonic() - began) * (effort.rounds / (number + 1) - 1)
        between = task.steps - 1
        summary = ", ".join(f"{name} {1000 * run.steps_s / between:.1f} ms per step" for name, run in last.items())
        on_progress(f"round {number + 1} of {effort.rounds}: {summary}; {left:.0f} s left")
    machine = machine_info(packages=("torch",))
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
        **_compare(runs, task.steps),
        **machine,
    }


def _compare(runs: dict[str, list[Run]], steps: int) -> dict[str, Any]:
    between = steps - 1  # from the end of the first step to the end of the last
    step = {name: [run.steps_s / between for run in form_runs] for name, form_runs in runs.items()}
    cpu = {name: [run.steps_cpu_s / between for run in form_runs] for name, form_runs in runs.items()}
    # Time of a call outside its steps: loading, the folder, and at the end of the epoch the saved state, the curve and the test images.
    around = {name: [run.whole_s - run.steps_s * steps / between for run in form_runs] for name, form_runs in runs.items()}
    epoch = {name: [around[name][index] + EPOCH * step[name][index] for index in range(len(form_runs))] for name, form_runs in runs.items()}
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
        "figures": compute_figures(ratios["epoch"]["median"]),
    }


def compute_figures(epoch: float) -> dict[str, Figure]:
    """Compute the figure from the ratio for an epoch."""
    return {"epoch_harness_by_bare": at_most_figure(epoch, GOAL)}


def cifar10_task(steps: int, seed: int, data_dir: Path | None) -> Task:
    """Return the network and images of the benchmark: CIFAR-10 if its folder is known, else random bytes.

    Raises:
        DataError: The folder does not contain CIFAR-10.
    """
    data_folder = os.environ.get("DEFENSEMBLE_DATA_DIR")
    if data_dir is None and data_folder is not None and (Path(data_folder) / "cifar10").is_dir():
        data_dir = Path(data_folder) / "cifar10"
    dataset = random_bytes(steps * BATCH, (3, 32, 32), seed) if data_dir is None else load_dataset("cifar10", data_dir=data_dir)
    spec = ModelSpec("resnet18", 0.3, (0, 1, 2), width=16, mean=dataset.mean, std=dataset.std)
    recipe = recipe_from_preset("fast", epochs=1, batch_size=BATCH)
    return Task(spec, _first_images(dataset, min(steps * BATCH, len(dataset.train))), recipe, seed)


def random_bytes(count: int, shape: tuple[int, int, int], seed: int) -> Dataset:
    """Return a dataset of random images in ten classes. Training on them costs the same as on real ones."""
    random = np.random.default_rng(seed)
    parts = [
        Part(random.integers(0, 256, (size, *shape), dtype=np.uint8), random.integers(0, 10, size, dtype=np.int64))
        for size in (count, TEST_IMAGES)
    ]
    names, level = tuple(str(index) for index in range(10)), (0.5,) * shape[0]
    source = f"random bytes, seed {seed}"
    return Dataset("random", names, parts[0], parts[1], level, level, flip=True, source=source, digest="0" * 16)


def _first_images(dataset: Dataset, count: int) -> Dataset:
    train = Part(dataset.train.pixels[:count], dataset.train.labels[:count])
    return replace(dataset, train=train, test=Part(dataset.test.pixels[:TEST_IMAGES], dataset.test.labels[:TEST_IMAGES]))


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    figure = result["figures"]["epoch_harness_by_bare"]
    names = {"epoch": f"an epoch of {result['epoch_steps']} steps", "step": "a step, wall time", "step_cpu": "a step, processor time"}
    names["whole_call"] = f"the whole call of {result['steps']} steps"
    ratios = [(text, format_spread(result["ratios"][key], ".3f"), figure["goal"] if key == "epoch" else "") for key, text in names.items()]
    forms = [
        (name, format_spread(form["step_ms"], ".1f"), format_spread(form["step_cpu_ms"], ".1f"), format_spread(form["around_the_steps_s"]))
        for name, form in result["forms"].items()
    ]
    network = result["network"]
    return "\n".join(
        [
            "# Cost of the training harness compared with a plain loop",
            quick_warning(result),
            f"{format_measurement(result, json_name, 'training_overhead')}torch {result['versions']['torch']}, "
            f"commit {short_commit(result)}, seed {result['seed']}.",
            *note_paragraph(result),
            "",
            f"{network['arch']} of width {network['width']}, keep {network['keep']}, on {result['data']}: {result['rounds']} rounds of "
            f"{result['steps']} steps, in which the two take turns; both ended with bitwise equal weights.",
            "Medians of the rounds, with minimum and maximum.",
            "",
            table(("harness / plain loop", "ratio", "goal"), ratios),
            "",
            table(("form", "step, ms", "processor time of a step, ms", "outside the steps, s"), forms),
            "",
            f"The goal is {'reached' if figure['holds'] else '**missed**'}.",
            "",
        ]
    )


@benchmark_command(
    "training_overhead", quick="short rounds", seed="weights, masks, order and shifts", example="--quick --dataset data/cifar10"
)
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
@click.option("--steps", type=click.IntRange(2, 390), help=f"Steps of each form in a round.  [default: {FULL.steps}]")
@dataset_option("or random bytes")
def main(options: Options, rounds: int | None, steps: int | None, data_dir: Path | None) -> NoReturn:
    """Compare the training harness with a plain loop of the same steps.

    Takes about five minutes on two cores, on an otherwise idle machine. The exit status is 1 if the figure misses its goal.
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
