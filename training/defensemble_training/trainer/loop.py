"""The steps of a training run: forward, backward, SGD, and what is kept on the way."""

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

# Steps between two synchronisations of the processes, and of a GPU's sums, which stop it.
_SYNCHRONISE_EVERY_STEPS = 20


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands, after one step.

    Attributes:
        epoch: of this step, 1 to `epochs`.
        epochs: of the run.
        step: steps done, 1 to `steps`.
        steps: of the run.
        loss: mean over the epoch so far, in nats; of the images of this process.
        train_accuracy: fraction of the (augmented) training images of the epoch so far that were right when their turn came.
        held_out_accuracy: after the last epoch that is done; None before the first, and where none are held out.
        resumed_at: step at which this process took the run up; 0 from its start.
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
    """One process's part of a run: the module and its optimizer, the images, and the state that changes from step to step."""

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        training: Part,
        held_out_part: Part | None,
        recipe: Recipe,
        seed: int,
        compute: Compute,
        *,
        flip: bool,
    ) -> None:
        self.fabric, self.recipe, self.seed = fabric, recipe, seed
        self._held_out_part, self._flip, self._count = held_out_part, flip, len(training)
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
        self._dataset = DeviceDataset(training, fabric.device)
        self.state = RunState({})
        self._log: RunLog | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.recipe.epochs * self._batches

    def local_slice(self, count: int) -> slice:
        """Return this process's images of `count`."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return slice(count * rank // world, count * (rank + 1) // world)

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.fabric.world_size == 1:
            return value
        total: Any = self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=self.fabric.device), reduce_op="sum")
        return float(total)

    def restore_last_good(self, run: RunFolder) -> bool:
        """Take up the state that was saved last; return whether there is one with an epoch that is done."""
        found = load_state(run.path)
        if found is None or not found.history:
            return False
        self._restore(found)
        return True

    def run(self, identity: dict[str, Any], run: RunFolder | None, on_progress: Callable[[TrainingProgress], None] | None) -> None:
        """Do all steps that are not done yet; raises as `train`."""
        self.state.identity = identity
        with self._locked_folder(run):
            self._run(run, on_progress)

    def _run(self, run: RunFolder | None, on_progress: Callable[[TrainingProgress], None] | None) -> None:
        if run is not None:
            self._open(run)
        resumed_at = self.state.step
        self.module.train()
        began = time.perf_counter() - self.state.seconds
        saved_at = time.monotonic()
        with _deferred_signals(enabled=run is not None) as interrupts:
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
                    if self._any_process_wants(bool(interrupts), last=last):
                        self.state.seconds = time.perf_counter() - began
                        self._interrupt(sums, run)
                    due = run is not None and not last and time.monotonic() - saved_at > run.save_every_s
                    if run is not None and self._any_process_wants(due, last=last):
                        self.state.seconds = time.perf_counter() - began
                        self._synchronise(sums, epoch)
                        self._save(run)
                        saved_at = time.monotonic()
                self.state.seconds = time.perf_counter() - began
                self._end_epoch(epoch, run)
                saved_at = time.monotonic()
        self._log_event("end", {"step": self.state.step, "seconds": round(self.state.seconds, 3)})

    def _log_event(self, event: str, values: Mapping[str, Any]) -> None:
        """Append an event to the run's log, where there is one, in the first process."""
        if self._log is not None and self.fabric.is_global_zero:
            self._log.write(event, values)

    @contextmanager
    def _locked_folder(self, run: RunFolder | None) -> Iterator[None]:
        """Hold a run's folder, which is made where it does not exist: two runs in it would destroy each other's files."""
        if run is None:
            yield
            return
        held = None
        if self.fabric.is_global_zero:
            run.path.mkdir(parents=True, exist_ok=True)
            held = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            taken = False
            if held is not None:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, whatever ends it
                except BlockingIOError:
                    taken = True
            if self.all_reduce_sum(float(taken)) > 0:
                raise TrainingError(f"another run is at work in {run.path}: wait for its end, stop it, or name another folder (--run)")
            yield
        finally:
            if held is not None:
                os.close(held)

    def _open(self, run: RunFolder) -> None:
        """Take up the state in a run's folder, or begin anew."""
        self._log = RunLog(run.path, run.tensorboard if self.fabric.is_global_zero else None)
        found = None if run.overwrite and not run.resume else load_state(run.path)
        if found is not None and not run.resume:
            raise TrainingError(
                f"{run.path} holds a run that was interrupted at step {found.step}; go on with resume (--resume), or remove the folder "
                "to start anew (--force)"
            )
        self.fabric.barrier()
        if found is not None:
            check_same_run(found.identity, self.state.identity, run.path)
            self._restore(found)
            self._log_event("resume", {"step": found.step})
        elif self.fabric.is_global_zero:
            run.finish()
            if run.overwrite:
                self._log.clear()
            self._log.write("start", {**self.state.identity, "steps": self.steps})

    def _restore(self, found: RunState) -> None:
        self.state = found
        if not self.fabric.is_global_zero:
            self.state.sums = (0.0, 0, 0)  # those in the file are of all processes
        try:
            self.module.load_state_dict(found.weights)
            for name, parameter in self.module.named_parameters():
                if name in found.momentum:
                    self._optimizer.state[parameter]["momentum_buffer"] = found.momentum[name].to(self.fabric.device)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the state does not hold this network: {error}") from error

    def _step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Do one step on this process's share of a batch; return loss, right and seen of it as sums."""
        step, whole = self.state.step, len(chosen)
        share = self.local_slice(whole)
        # Whatever else draws (dropout) draws by step and process too.
        torch.manual_seed(derive_seed(self.seed, "draws", step, self.fabric.global_rank))
        pixels, labels = self._dataset[chosen[share]]
        generator = make_generator(self.seed, "step", step, device=self.fabric.device)
        moved = augment(pixels, generator, largest_shift=self.recipe.largest_shift, flip=self._flip, whole=whole, share=share)
        images = to_float(moved).contiguous(memory_format=self._memory)
        if self.recipe.adversarial is not None:
            images = self._adversarial(images, labels, step)
        logits = self._forward(images).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        # The processes' gradients are averaged; their shares may differ by an image.
        self.fabric.backward(loss * (len(labels) * self.fabric.world_size / whole) if self.fabric.world_size > 1 else loss)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(step, self._batches)
        self._optimizer.step()
        right = (logits.detach().argmax(dim=1) == labels).sum()
        seen = torch.tensor(len(labels), device=right.device)
        return torch.stack((loss.detach().double() * len(labels), right.double(), seen.double()))

    def _adversarial(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        assert self.recipe.adversarial is not None
        generator = make_generator(self.seed, "attack", step, self.fabric.global_rank, device=self.fabric.device)
        try:
            # The module itself, not Fabric's wrapper: this backward is none that processes would wait for.
            with self.fabric.autocast():
                return attack(self.recipe.adversarial, self.module, images, labels, generator=generator)
        except TrainingError as error:
            raise DivergedError(f"the attack on step {step + 1} of {self.steps} failed: {error}; take a lower learning_rate") from error

    def _synchronise(self, sums: torch.Tensor, epoch: int) -> None:
        loss, right, seen = sums.tolist()
        if not np.isfinite(loss):
            where = f"epoch {epoch}, step {self.state.step} of {self.steps}"
            told = f"the loss is {loss} at {where}, with learning_rate={self.recipe.learning_rate}"
            self._log_event("failed", {"step": self.state.step, "why": told})
            raise DivergedError(f"{told}; it must be finite; take a lower learning_rate (--learning-rate)")
        self.state.sums = (loss, int(right), int(seen))

    def _progress(self, epoch: int, resumed_at: int) -> TrainingProgress:
        loss, right, seen = self.state.sums
        held_out = self.state.history[-1]["held_out_accuracy"] if self.state.history else None
        steps, epochs = self.steps, self.recipe.epochs
        return TrainingProgress(epoch, epochs, self.state.step, steps, loss / seen, right / seen, held_out, resumed_at)

    def _end_epoch(self, epoch: int, run: RunFolder | None) -> None:
        loss, right, seen = (self.all_reduce_sum(value) for value in self.state.sums)
        held_out = None
        if self._held_out_part is not None:
            of = len(self._held_out_part)
            held_out = self.all_reduce_sum(count_correct(self.module, self._held_out_part, share=self.local_slice(of))) / of
            if self.recipe.choose == "best" and (self.state.best_accuracy is None or held_out > self.state.best_accuracy):
                self.state.best_accuracy = held_out
                self.state.best = copy.deepcopy(self.module.state_dict())
        row = {
            "epoch": epoch,
            "step": self.state.step,
            "learning_rate": self.recipe.learning_rate_at(self.state.step - 1, self._batches),
            "loss": loss / seen,
            "train_accuracy": right / seen,
            "held_out_accuracy": held_out,
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
                f"weights are no longer finite at step {self.state.step} of {self.steps}; take a lower learning_rate (--learning-rate)"
            )
        momenta = {name: self._optimizer.state.get(parameter, {}) for name, parameter in self.module.named_parameters()}
        self.state.momentum = {name: kept["momentum_buffer"] for name, kept in momenta.items() if kept.get("momentum_buffer") is not None}
        total = tuple(self.all_reduce_sum(value) for value in self.state.sums)
        if self.fabric.is_global_zero:
            save_state(run.path, replace(self.state, sums=(total[0], int(total[1]), int(total[2]))))
            if self.state.history:
                write_curve(run.path / CURVE_FILE, self.state.history, f"{run.path.name}: {self.state.step} of {self.steps} steps")
        self.fabric.barrier()

    def _any_process_wants(self, wanted: bool, *, last: bool) -> bool:
        """Whether any process wants something now: all do it after the same step, or some would wait for the others for ever."""
        if self.fabric.world_size == 1:
            return wanted
        return (last or self.state.step % _SYNCHRONISE_EVERY_STEPS == 0) and self.all_reduce_sum(float(wanted)) > 0

    def _interrupt(self, sums: torch.Tensor, run: RunFolder | None) -> None:
        assert run is not None  # without a folder, signals are not noted
        self._synchronise(sums, self.state.step // self._batches)
        if self.state.step % self._batches == 0:
            self._end_epoch(self.state.step // self._batches, run)
        else:
            self._save(run)
        self._log_event("interrupted", {"step": self.state.step})
        raise Interrupted(f"interrupted after step {self.state.step} of {self.steps}; the state is saved in {run.path / STATE_FILE}")


@contextmanager
def _deferred_signals(*, enabled: bool) -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list, so that a step is finished before the run ends; a second one ends it at once."""
    noted: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(signum)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
