"""Train networks: SGD on randomly shifted and mirrored images, in one process or several, resumable at any step.

The test images are evaluated once, after the last epoch, and select nothing. The same arguments give the same weights on the same machine,
with the same threads and versions, whether or not the run was interrupted (bit for bit on CPUs).

Measured on `digits` at 16x16, width 8, blocks 0, 1, 2, default arguments, 6 seeds each (weights and masks), test accuracy, mean and lowest:
keep 1.0: 0.9958, 0.9916; keep 0.3: 0.9898, 0.9805; keep 0.1: 0.9805, 0.9777. A run took 3.5 to 5 s with one thread, on a 2-core AMD EPYC
under other load (torch 2.13).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata

import torch
from torch import nn

from ..checkpoint import save_checkpoint
from ..data.dataset import Dataset, Part, split_held_out
from ..errors import DivergedError, SpecError
from ..evaluation import count_correct
from ..models.build import build
from ..models.spec import ModelSpec
from ..record import TrainingRecord
from ..validation import checked_integer
from .augmentation import steps_per_epoch
from .compute import Compute, translate_out_of_memory
from .loop import Loop, TrainingProgress
from .recipe import LARGEST_SEED, Recipe, recipe_from_preset
from .run_state import LAST_GOOD_FILE, RunFolder

VERSIONS_OF = ("defensemble", "lightning-fabric", "numpy", "torch")


def train(
    spec: ModelSpec,
    dataset: Dataset,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    run: RunFolder | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    command: str = "",
) -> tuple[nn.Module, TrainingRecord]:
    """Train the network of a spec.

    Torch's global random generator and thread count are restored afterwards.

    Args:
        spec: The network. Its `input_shape` and `num_classes` must match the dataset.
        dataset: The dataset.
        recipe: The hyper-parameters. None: the preset `fast`.
        seed: Seed of the weights, the image order and the augmentation, 0 to 2**63 - 1.
        compute: Device, processes and precision. None: a GPU if there is one, else the CPU.
        run: Folder for the state, which makes the run resumable. None saves nothing.
        on_progress: Called in the first process after every step; on GPUs, after every 20 steps and at the end of each epoch.
        command: Command line of the run, for the record.

    Returns:
        The module, on the CPU and in eval mode, and the record of the run.

    Raises:
        SpecError: An argument is out of range, or the spec does not match the dataset.
        DivergedError: The loss is not finite. If there is a folder, it holds the last good weights as a checkpoint.
        TrainingError: There is not enough memory, or the folder holds another run.
        Interrupted: SIGINT stopped the run. Its state was saved if it has a folder.
        OSError: The folder cannot be written.

    Example:
        >>> dataset = load_dataset("digits")
        >>> spec = ModelSpec("resnet18", keep=0.5, blocks=(0, 1, 2), width=8, input_shape=(1, 16, 16), mean=dataset.mean, std=dataset.std)
        >>> module, record = train(spec, dataset)
    """
    _check_match(spec, dataset)
    build_module = partial(build, spec)
    return train_module(
        build_module, dataset, spec=spec, recipe=recipe, seed=seed, compute=compute, run=run, on_progress=on_progress, command=command
    )


def train_module(
    build_module: Callable[[], nn.Module],
    dataset: Dataset,
    *,
    spec: ModelSpec | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    run: RunFolder | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    command: str = "",
) -> tuple[nn.Module, TrainingRecord]:
    """Train any network, such as the result of `defective`.

    Args:
        build_module: Returns the network with new weights from torch's global random generator. The network maps images float32
            (N, C, H, W) in [0, 1] to logits.
        dataset: The dataset.
        spec: The network's spec, if it has one. It becomes part of the run's identity.
        recipe: See `train`.
        seed: See `train`.
        compute: See `train`.
        run: See `train`.
        on_progress: See `train`.
        command: See `train`.

    Returns:
        The module, on the CPU and in eval mode, and the record of the run.

    Raises:
        SpecError, TrainingError, Interrupted, OSError: See `train`.

    Example:
        >>> def build_module():
        ...     return defective(MyNetwork(), (3, 32, 32), layers=["conv1", "conv2"], keep=0.5)
        >>> module, record = train_module(build_module, load_dataset("cifar10"))
    """
    seed = checked_integer("seed", seed, minimum=0, maximum=LARGEST_SEED)
    recipe = recipe or recipe_from_preset("fast")
    compute = compute or Compute()
    training_part, held_out_part = _split_training_part(dataset, recipe)
    with _restored_torch_state(compute.threads), translate_out_of_memory(recipe.batch_size):
        fabric = compute.fabric()
        _check_batches(len(training_part), recipe.batch_size, fabric.world_size)
        torch.manual_seed(seed)
        module = build_module()
        identity = {
            "spec": None if spec is None else json.loads(spec.to_json()),
            "recipe": recipe.to_values(),
            "seed": seed,
            "precision": compute.chosen_precision,
            "data": {"name": dataset.name, "digest": dataset.digest},
        }
        loop = Loop(fabric, module, training_part, held_out_part, recipe, seed, compute, flip=recipe.flip and dataset.flip)

        def evaluate() -> tuple[nn.Module, TrainingRecord]:
            trained = build_module()
            trained.load_state_dict(loop.state.best or loop.module.state_dict())
            trained.to(fabric.device).eval()
            correct = loop.all_reduce_sum(count_correct(trained, dataset.test, rows=loop.local_slice(len(dataset.test))))
            return trained.cpu(), _make_record(dataset, recipe, seed, compute, loop, accuracy=correct / len(dataset.test), command=command)

        try:
            loop.run(identity, run, on_progress)
        except DivergedError as error:
            if run is None or spec is None or not loop.restore_last_good(run):
                raise
            path = run.path / LAST_GOOD_FILE
            last_good, record = evaluate()
            save_checkpoint(path, last_good, spec, record)
            raise DivergedError(f"{error} The last good weights, of epoch {len(loop.state.history)}, are saved in {path}.") from error
        return evaluate()


def _make_record(
    dataset: Dataset, recipe: Recipe, seed: int, compute: Compute, loop: Loop, *, accuracy: float, command: str
) -> TrainingRecord:
    last = loop.state.history[-1]
    return TrainingRecord(
        data=dataset.name,
        data_source=dataset.source,
        data_digest=dataset.digest,
        class_names=dataset.class_names,
        recipe=recipe.to_values(),
        epochs=len(loop.state.history),
        seed=seed,
        processes=loop.fabric.world_size,
        threads=torch.get_num_threads(),
        precision=compute.chosen_precision,
        device=_device_name(loop.fabric.device),
        n_train=len(dataset.train) - recipe.held_out,
        loss=last["loss"],
        n_held_out=recipe.held_out,
        held_out_accuracy=loop.state.best_accuracy if recipe.choose == "best" else last["held_out_accuracy"],
        accuracy=accuracy,
        n_test=len(dataset.test),
        seconds=round(loop.state.seconds, 3),
        command=command,
        versions={"python": platform.python_version(), **{name: _version(name) for name in VERSIONS_OF}},
        preprocessing=None if dataset.preprocessing is None else dataset.preprocessing.to_values(),
    )


def _check_batches(count: int, batch_size: int, processes: int) -> None:
    smallest = count // steps_per_epoch(count, batch_size)
    if smallest < 2 * processes:
        raise SpecError(
            f"each of {processes} processes must have at least 2 images per step (BatchNorm needs two), got batches of {smallest} of the "
            f"{count} training images. Use a larger batch_size (--batch-size), or fewer processes."
        )


def _split_training_part(dataset: Dataset, recipe: Recipe) -> tuple[Part, Part | None]:
    if not recipe.held_out:
        return dataset.train, None
    if recipe.held_out >= len(dataset.train):
        raise SpecError(f"held_out must be less than the {len(dataset.train)} training images of {dataset.name!r}, got {recipe.held_out}")
    return split_held_out(dataset.train, recipe.held_out, f"defensemble-held-out-v1:{dataset.name}")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _check_match(spec: ModelSpec, dataset: Dataset) -> None:
    if spec.input_shape != dataset.input_shape:
        raise SpecError(f"the spec's input_shape is {spec.input_shape}, but the images of {dataset.name!r} are {dataset.input_shape}")
    if spec.num_classes != len(dataset.class_names):
        raise SpecError(f"the spec's num_classes is {spec.num_classes}, but {dataset.name!r} has {len(dataset.class_names)} classes")


@contextmanager
def _restored_torch_state(threads: int | None) -> Iterator[None]:
    previous_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(previous_threads)
