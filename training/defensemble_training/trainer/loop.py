"""The training loop: forward, backward, SGD, and saving the state."""

from __future__ import annotations

import copy
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..attacks.gradient import attack
from ..data.dataset import Part
from ..errors import DivergedError, Interrupted, TrainingError
from ..evaluation import count_correct
from ..seeding import derive_seed, make_generator
from .augmentation import augment, epoch_order, steps_per_epoch, to_float
from .compute import Compute
from .device_data import DeviceDataset
from .recipe import Recipe
from .run_log import CURVE_FILE, RunLog, write_curve
from .run_state import STATE_FILE, RunFolder, RunState, check_same_run, load_state, save_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Synchronising the processes, or reading sums from a GPU, stalls the device.
_SYNCHRONISE_EVERY_STEPS = 20


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run after one step.

    Attributes:
        epoch: Epoch of this step, 1 to `epochs`.
        epochs: Epochs of the run.
        step: Number of completed steps, 1 to `steps`.
        steps: Steps of the run.
        loss: Mean loss of the current epoch so far, in nats, on this process's images.
        train_accuracy: Accuracy of the current epoch so far, in [0, 1], on the (augmented) training images when they were used.
        held_out_accuracy: Accuracy on the held-out images after the last completed epoch, in [0, 1]. None before the first epoch, or
            without held-out images.
        resumed_at: Step at which this process resumed the run; 0 if it started it.

    Example:
        >>> train(spec, dataset, on_progress=lambda progress: print(progress.step, progress.loss))
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    train_accuracy: float
    held_out_accuracy: float | None = None
    resumed_at: int = 0


class Loop:
    """The training loop of one process: module, optimizer, images, and the state that each step changes."""

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        training_part: Part,
        held_out_part: Part | None,
        recipe: Recipe,
        seed: int,
        compute: Compute,
        *,
        flip: bool,
    ) -> None:
        self.fabric, self.recipe, self.seed = fabric, recipe, seed
        self._held_out_part, self._flip, self._count = held_out_part, flip, len(training_part)
        self._batches = steps_per_epoch(self._count, recipe.batch_size)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self._memory = torch.channels_last if compute.uses_channels_last() else torch.contiguous_format
        self.module = module.to(memory_format=self._memory)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self._forward, self._optimizer = fabric.setup(cast(nn.Module, torch.compile(module)) if compute.compile else module, optimizer)
        self._dataset = DeviceDataset(training_part, fabric.device)
        self.state = RunState({})
        self._log: RunLog | None = None

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.recipe.epochs * self._batches

    def local_slice(self, count: int) -> slice:
        """Return this process's slice of `count` images."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return slice(count * rank // world, count * (rank + 1) // world)

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.fabric.world_size == 1:
            return value
        total: Any = self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=self.fabric.device), reduce_op="sum")
        return float(total)

    def restore_last_good(self, run: RunFolder) -> bool:
        """Restore the last saved state. Return False if there is none with a completed epoch."""
        state = load_state(run.path)
        if state is None or not state.history:
            return False
        self._restore(state)
        return True

    def run(self, identity: dict[str, Any], run: RunFolder | None, on_progress: Callable[[TrainingProgress], None] | None) -> None:
        """Run all remaining steps. Raises the same errors as `train`."""
        self.state.identity = identity
        with self._locked_folder(run):
            self._run(run, on_progress)

    def _run(self, run: RunFolder | None, on_progress: Callable[[TrainingProgress], None] | None) -> None:
        if run is not None:
            self._open(run)
        resumed_at = self.state.step
        self.module.train()
        started_at = time.perf_counter() - self.state.seconds
        saved_at = time.monotonic()
        with _deferred_signals(enabled=run is not None) as signals:
            while self.state.step < self.steps:
                epoch = self.state.step // self._batches + 1
                order = epoch_order(self.seed, epoch, self._count, self.recipe.batch_size)
                sums = torch.tensor(self.state.sums, dtype=torch.float64, device=self.fabric.device)
                for index in range(self.state.step % self._batches, self._batches):
                    sums += self._step(order[index])
                    self.state.step += 1
                    last = index == self._batches - 1
                    if last or self.fabric.device.type != "cuda" or self.state.step % _SYNCHRONISE_EVERY_STEPS == 0:
                        self._synchronise(sums, epoch)
                        if on_progress is not None and self.fabric.is_global_zero:
                            on_progress(self._progress(epoch, resumed_at))
                    if self._any_process_wants(bool(signals), last=last):
                        self.state.seconds = time.perf_counter() - started_at
                        self._interrupt(sums, run)
                    is_due = run is not None and not last and time.monotonic() - saved_at > run.save_every_s
                    if run is not None and self._any_process_wants(is_due, last=last):
                        self.state.seconds = time.perf_counter() - started_at
                        self._synchronise(sums, epoch)
                        self._save(run)
                        saved_at = time.monotonic()
                self.state.seconds = time.perf_counter() - started_at
                self._end_epoch(epoch, run)
                saved_at = time.monotonic()
        self._log_event("end", {"step": self.state.step, "seconds": round(self.state.seconds, 3)})

    def _log_event(self, event: str, values: Mapping[str, Any]) -> None:
        """Append an event to the run's log, if there is one, in the first process."""
        if self._log is not None and self.fabric.is_global_zero:
            self._log.write(event, values)

    @contextmanager
    def _locked_folder(self, run: RunFolder | None) -> Iterator[None]:
        """Create and lock a run's folder, because two runs in one folder would overwrite each other's files."""
        if run is None:
            yield
            return
        descriptor = None
        if self.fabric.is_global_zero:
            run.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            is_locked = False
            if descriptor is not None:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when this process ends
                except BlockingIOError:
                    is_locked = True
            if self.all_reduce_sum(float(is_locked)) > 0:
                raise TrainingError(f"another run uses the folder {run.path}. Wait until it ends, stop it, or use another folder (--run).")
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, run: RunFolder) -> None:
        """Restore the state in a run's folder, or start a new run."""
        self._log = RunLog(run.path, run.tensorboard if self.fabric.is_global_zero else None)
        state = None if run.overwrite and not run.resume else load_state(run.path)
        if state is not None and not run.resume:
            raise TrainingError(
                f"{run.path} holds a run that was interrupted at step {state.step}. Resume it with resume=True (--resume), or start a new "
                "run with overwrite=True (--force)."
            )
        self.fabric.barrier()
        if state is not None:
            check_same_run(state.identity, self.state.identity, run.path)
            self._restore(state)
            self._log_event("resume", {"step": state.step})
        elif self.fabric.is_global_zero:
            run.finish()
            if run.overwrite:
                self._log.clear()
            self._log.write("start", {**self.state.identity, "steps": self.steps})

    def _restore(self, state: RunState) -> None:
        self.state = state
        if not self.fabric.is_global_zero:
            self.state.sums = (0.0, 0, 0)  # the file holds the sums over all processes
        try:
            self.module.load_state_dict(state.weights)
            for name, parameter in self.module.named_parameters():
                if name in state.momentum:
                    self._optimizer.state[parameter]["momentum_buffer"] = state.momentum[name].to(self.fabric.device)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the saved state does not match this network: {error}") from error

    def _step(self, indices: torch.Tensor) -> torch.Tensor:
        """Run one step on this process's rows of a batch. Return the sums of the loss, the correct images and all images."""
        step, batch_size = self.state.step, len(indices)
        rows = self.local_slice(batch_size)
        # Seeds all other random numbers, such as dropout, by step and process.
        torch.manual_seed(derive_seed(self.seed, "draws", step, self.fabric.global_rank))
        pixels, labels = self._dataset[indices[rows]]
        generator = make_generator(self.seed, "step", step, device=self.fabric.device)
        pixels = augment(pixels, generator, largest_shift=self.recipe.largest_shift, flip=self._flip, batch_size=batch_size, rows=rows)
        images = to_float(pixels).contiguous(memory_format=self._memory)
        if self.recipe.adversarial is not None:
            images = self._adversarial(images, labels, step)
        logits = self._forward(images).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        # DDP averages the gradients of the processes, whose numbers of images may differ by one.
        self.fabric.backward(loss * (len(labels) * self.fabric.world_size / batch_size) if self.fabric.world_size > 1 else loss)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(step, self._batches)
        self._optimizer.step()
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        count = torch.tensor(len(labels), device=correct.device)
        return torch.stack((loss.detach().double() * len(labels), correct.double(), count.double()))

    def _adversarial(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        assert self.recipe.adversarial is not None
        generator = make_generator(self.seed, "attack", step, self.fabric.global_rank, device=self.fabric.device)
        try:
            # The module itself, not Fabric's wrapper, because the processes must not synchronise in this backward pass.
            with self.fabric.autocast():
                return attack(self.recipe.adversarial, self.module, images, labels, generator=generator)
        except TrainingError as error:
            raise DivergedError(f"the attack in step {step + 1} of {self.steps} failed: {error}. Use a lower learning_rate.") from error

    def _synchronise(self, sums: torch.Tensor, epoch: int) -> None:
        """Copy the sums of the epoch from the device to the state. Raise if the loss is not finite."""
        loss, correct, count = sums.tolist()
        if not np.isfinite(loss):
            position = f"epoch {epoch}, step {self.state.step} of {self.steps}"
            reason = f"the loss is {loss} at {position}, with learning_rate={self.recipe.learning_rate}"
            self._log_event("failed", {"step": self.state.step, "why": reason})
            raise DivergedError(f"{reason}; expected a finite loss. Use a lower learning_rate (--learning-rate).")
        self.state.sums = (loss, int(correct), int(count))

    def _progress(self, epoch: int, resumed_at: int) -> TrainingProgress:
        loss, correct, count = self.state.sums
        accuracy = self.state.history[-1]["held_out_accuracy"] if self.state.history else None
        steps, epochs = self.steps, self.recipe.epochs
        return TrainingProgress(epoch, epochs, self.state.step, steps, loss / count, correct / count, accuracy, resumed_at)

    def _end_epoch(self, epoch: int, run: RunFolder | None) -> None:
        loss, correct, count = (self.all_reduce_sum(value) for value in self.state.sums)
        accuracy = None
        if self._held_out_part is not None:
            total = len(self._held_out_part)
            accuracy = self.all_reduce_sum(count_correct(self.module, self._held_out_part, rows=self.local_slice(total))) / total
            if self.recipe.choose == "best" and (self.state.best_accuracy is None or accuracy > self.state.best_accuracy):
                self.state.best_accuracy = accuracy
                self.state.best = copy.deepcopy(self.module.state_dict())
        row = {
            "epoch": epoch,
            "step": self.state.step,
            "learning_rate": self.recipe.learning_rate_at(self.state.step - 1, self._batches),
            "loss": loss / count,
            "train_accuracy": correct / count,
            "held_out_accuracy": accuracy,
            "seconds": round(self.state.seconds, 3),
        }
        self.state.history.append(row)
        self.state.sums = (0.0, 0, 0)
        self._log_event("epoch", row)
        if run is not None:
            self._save(run)

    def _save(self, run: RunFolder) -> None:
        self.state.weights = self.module.state_dict()
        if not all(bool(tensor.isfinite().all()) for tensor in self.state.weights.values() if tensor.is_floating_point()):
            raise DivergedError(
                f"a weight is not finite at step {self.state.step} of {self.steps}. Use a lower learning_rate (--learning-rate)."
            )
        states = {name: self._optimizer.state.get(parameter, {}) for name, parameter in self.module.named_parameters()}
        self.state.momentum = {name: state["momentum_buffer"] for name, state in states.items() if state.get("momentum_buffer") is not None}
        sums = tuple(self.all_reduce_sum(value) for value in self.state.sums)
        if self.fabric.is_global_zero:
            save_state(run.path, replace(self.state, sums=(sums[0], int(sums[1]), int(sums[2]))))
            if self.state.history:
                write_curve(run.path / CURVE_FILE, self.state.history, f"{run.path.name}: {self.state.step} of {self.steps} steps")
        self.fabric.barrier()

    def _any_process_wants(self, wanted: bool, *, last: bool) -> bool:
        """Return whether any process wants an action now. All must act after the same step, or some would wait forever."""
        if self.fabric.world_size == 1:
            return wanted
        return (last or self.state.step % _SYNCHRONISE_EVERY_STEPS == 0) and self.all_reduce_sum(float(wanted)) > 0

    def _interrupt(self, sums: torch.Tensor, run: RunFolder | None) -> None:
        assert run is not None  # without a folder, signals are not deferred
        self._synchronise(sums, self.state.step // self._batches)
        if self.state.step % self._batches == 0:
            self._end_epoch(self.state.step // self._batches, run)
        else:
            self._save(run)
        self._log_event("interrupted", {"step": self.state.step})
        raise Interrupted(f"interrupted after step {self.state.step} of {self.steps}; the state is saved in {run.path / STATE_FILE}")


@contextmanager
def _deferred_signals(*, enabled: bool) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that the current step completes. A second signal raises immediately."""
    received: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    previous_handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
