"""The two compared forms: a training run as users start it, and a plain loop of the same steps."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn import functional

from defensemble_training import Compute, Dataset, ModelSpec, Recipe, RunFolder, TrainingProgress, build, train_module


@dataclass(frozen=True)
class Task:
    """The work of both forms: one epoch on the training images, and one evaluation of the test images."""

    spec: ModelSpec
    dataset: Dataset
    recipe: Recipe
    seed: int

    @property
    def steps(self) -> int:
        """Number of steps of the epoch."""
        return max(1, round(len(self.dataset.train) / self.recipe.batch_size))

    def outline(self) -> str:
        """Return a description for users."""
        shape = "x".join(str(extent) for extent in self.spec.input_shape)
        return f"{self.spec.arch} of width {self.spec.width} on {shape}, {self.steps} steps of {self.recipe.batch_size} images"


@dataclass(frozen=True)
class Run:
    """One run of a form.

    Attributes:
        whole_s: Seconds of the whole call.
        steps_s: Seconds from the end of the first step to the end of the last.
        steps_cpu_s: The same in processor time of this process, which excludes the load of other processes.
        weights: The final weights.
    """

    whole_s: float
    steps_s: float
    steps_cpu_s: float
    weights: Mapping[str, torch.Tensor]


class _StepTimer:
    """Read the clocks after the first and the last step."""

    def __init__(self, steps: int) -> None:
        self._steps, self._start = steps, time.perf_counter()
        self._readings: dict[int, tuple[float, float]] = {}

    def step_done(self, step: int) -> None:
        if step in (1, self._steps):
            self._readings[step] = time.perf_counter(), time.process_time()

    def run(self, weights: Mapping[str, torch.Tensor]) -> Run:
        whole_s = time.perf_counter() - self._start
        (first, first_cpu), (last, last_cpu) = self._readings[1], self._readings[self._steps]
        return Run(whole_s, last - first, last_cpu - first_cpu, weights)


def harness(task: Task) -> Run:
    """Run `train_module` as the command line does: with a folder for resuming, a log, a learning curve and a progress bar.

    The bar is drawn as on a terminal, and discarded.
    """
    with (
        tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder,
        open(os.devnull, "w") as null,
        _bar(Console(file=null, force_terminal=True)) as show,
    ):
        timer = _StepTimer(task.steps)

        def on_progress(progress: TrainingProgress) -> None:
            show(progress)
            timer.step_done(progress.step)

        module, _ = train_module(
            lambda: build(task.spec),
            task.dataset,
            spec=task.spec,
            recipe=task.recipe,
            seed=task.seed,
            compute=Compute("cpu"),
            run=RunFolder(Path(folder) / "run"),
            on_progress=on_progress,
        )
        return timer.run(module.state_dict())


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """Draw the command line's progress bar: steps, loss and accuracy, once a second."""
    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=None, text="")

        def show(progress: TrainingProgress) -> None:
            text = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.3f} accuracy {progress.train_accuracy:.3f}"
            bar.update(task, total=progress.steps, completed=progress.step, text=text)

        yield show


def bare(task: Task) -> Run:
    """Run the same steps as a plain loop: no log, no saved state, no reading or checking of loss and accuracy.

    It uses the harness's seeds, so that both must end with the same weights; everything else is plain torch.
    """
    timer = _StepTimer(task.steps)
    recipe, seed = task.recipe, task.seed
    pixels, labels = torch.tensor(task.dataset.train.pixels), torch.tensor(task.dataset.train.labels)
    count, channels, height, width = pixels.shape
    torch.manual_seed(seed)
    module = build(task.spec).train()
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_derived_seed(seed, "epoch", 1)))
    margin = round(height * recipe.largest_shift)
    for step, chosen in enumerate(order.tensor_split(task.steps)):
        size = len(chosen)
        generator = torch.Generator().manual_seed(_derived_seed(seed, "step", step))
        up = torch.randint(0, 2 * margin + 1, (size,), generator=generator)
        left = torch.randint(0, 2 * margin + 1, (size,), generator=generator)
        mirrored = torch.rand((size,), generator=generator) < 0.5
        padded = functional.pad(pixels[chosen], (margin, margin, margin, margin))
        along = torch.arange(width)
        columns = torch.where(mirrored[:, None], width - 1 - along, along) + left[:, None]
        rows = torch.arange(height) + up[:, None]
        image_index, channel_index = torch.arange(size)[:, None, None, None], torch.arange(channels)[None, :, None, None]
        images = padded[image_index, channel_index, rows[:, None, :, None], columns[:, None, None, :]].float() / 255
        loss = functional.cross_entropy(module(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, task.steps)
        optimizer.step()
        timer.step_done(step + 1)
    module.eval()
    with torch.inference_mode():
        module(torch.from_numpy(task.dataset.test.images())).argmax(dim=1)
    return timer.run(module.state_dict())


def _derived_seed(seed: int, *parts: object) -> int:
    """Derive a seed by the harness's rule, reimplemented."""
    text = ":".join(["defensemble-train-v1", str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


FORMS = {"harness": harness, "bare": bare}


def same_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two runs ended with bitwise equal weights and masks, which shows that they did the same steps."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
