"""The two forms that are compared: a training run as users start it, and a plain loop of the same steps."""

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
    """What both forms do: one epoch on the training images, then a look at the test images."""

    spec: ModelSpec
    dataset: Dataset
    recipe: Recipe
    seed: int

    @property
    def steps(self) -> int:
        """Of the epoch."""
        return max(1, round(len(self.dataset.train) / self.recipe.batch_size))

    def outline(self) -> str:
        """For people."""
        shape = "x".join(str(extent) for extent in self.spec.input_shape)
        return f"{self.spec.arch} of width {self.spec.width} on {shape}, {self.steps} steps of {self.recipe.batch_size} images"


@dataclass(frozen=True)
class Run:
    """One run of a form.

    Attributes:
        whole_s: from the call to its return.
        steps_s: from the end of the first step to the end of the last.
        steps_cpu_s: the same, of the processor's time that the process took: another process's load is not in it.
        weights: what it ended with.
    """

    whole_s: float
    steps_s: float
    steps_cpu_s: float
    weights: Mapping[str, torch.Tensor]


class _Watch:
    """Looks at the clocks after the first and the last step."""

    def __init__(self, steps: int) -> None:
        self._steps, self._began = steps, time.perf_counter()
        self._looks: dict[int, tuple[float, float]] = {}

    def step_done(self, step: int) -> None:
        if step in (1, self._steps):
            self._looks[step] = time.perf_counter(), time.process_time()

    def run(self, weights: Mapping[str, torch.Tensor]) -> Run:
        whole_s = time.perf_counter() - self._began
        (first, first_cpu), (last, last_cpu) = self._looks[1], self._looks[self._steps]
        return Run(whole_s, last - first, last_cpu - first_cpu, weights)


def harness(task: Task) -> Run:
    """`train_module` as the command line calls it: a folder that makes the run resumable, log, learning curve, a progress bar.

    The bar is drawn as on a terminal, and thrown away.
    """
    with (
        tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder,
        open(os.devnull, "w") as nowhere,
        _bar(Console(file=nowhere, force_terminal=True)) as show,
    ):
        watch = _Watch(task.steps)

        def on_progress(progress: TrainingProgress) -> None:
            show(progress)
            watch.step_done(progress.step)

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
        return watch.run(module.state_dict())


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """What the command line draws: steps, loss and accuracy, once a second."""
    columns = (TextColumn("{task.fields[told]}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=None, told="")

        def show(progress: TrainingProgress) -> None:
            told = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.3f} accuracy {progress.train_accuracy:.3f}"
            bar.update(task, total=progress.steps, completed=progress.step, told=told)

        yield show


def bare(task: Task) -> Run:
    """The same steps, written plainly: no log, no saved state, no loss or accuracy read, no check of either.

    It draws by the harness's seeds, so that both can be held to the same weights; everything else is torch alone.
    """
    watch = _Watch(task.steps)
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
        of_images, of_channels = torch.arange(size)[:, None, None, None], torch.arange(channels)[None, :, None, None]
        images = padded[of_images, of_channels, rows[:, None, :, None], columns[:, None, None, :]].float() / 255
        loss = functional.cross_entropy(module(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, task.steps)
        optimizer.step()
        watch.step_done(step + 1)
    module.eval()
    with torch.inference_mode():
        module(torch.from_numpy(task.dataset.test.images())).argmax(dim=1)
    return watch.run(module.state_dict())


def _derived_seed(seed: int, *of: object) -> int:
    """The harness's rule, written again."""
    text = ":".join(["defensemble-train-v1", str(seed), *map(str, of)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


FORMS = {"harness": harness, "bare": bare}


def same_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether two runs ended with the same weights and masks, bit for bit: then they did the same steps."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
