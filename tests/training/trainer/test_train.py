"""Training is deterministic, restores torch's state, and learns."""

from __future__ import annotations

import shutil
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defensemble_images import Preprocessing
from defensemble_training import (
    Compute,
    Dataset,
    DivergedError,
    ModelSpec,
    Part,
    SpecError,
    TrainingError,
    TrainingProgress,
    TrainingRecord,
    build,
    defect_masks,
    load_dataset,
    mask_digest,
    recipe_from_preset,
    train,
    train_module,
)
from defensemble_training.data.dataset import split_held_out
from defensemble_training.evaluation import count_correct, predict_classes
from defensemble_training.seeding import make_generator
from defensemble_training.trainer.augmentation import augment, epoch_order
from tests.support.bars import bars_dataset
from tests.support.facts import raises
from tests.support.untrained import tiny_spec


@pytest.fixture(scope="module")
def bars() -> Dataset:
    return bars_dataset()


def run(spec: ModelSpec, dataset: Dataset, *, seed: int = 0, threads: int = 1, **changes: Any) -> tuple[nn.Module, TrainingRecord]:
    """Train with small batches for an epoch. `changes` are other values of the recipe."""
    on_progress = changes.pop("on_progress", None)
    recipe = recipe_from_preset("fast", **{"epochs": 1, "batch_size": 16, **changes})
    return train(spec, dataset, recipe=recipe, seed=seed, compute=Compute("cpu", threads=threads), on_progress=on_progress)


def weights_of(module: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())


def test_run_learns_and_is_recorded(bars: Dataset) -> None:
    steps: list[TrainingProgress] = []
    module, record = run(tiny_spec(keep=0.7, width=4), bars, epochs=15, seed=1, on_progress=steps.append)
    assert not module.training
    assert record.accuracy == (predict_classes(module, bars.test.images()) == bars.test.labels).mean()
    assert record.accuracy >= 0.9
    assert (record.data, record.data_source, record.data_digest, record.class_names) == ("bars", "drawn", bars.digest, bars.class_names)
    assert record.recipe == recipe_from_preset("fast", epochs=15, batch_size=16).to_values()
    assert (record.epochs, record.seed, record.threads, record.processes, record.precision) == (15, 1, 1, 1, "fp32")
    assert (record.n_train, record.n_test, record.n_held_out, record.held_out_accuracy) == (67, 30, 0, None)
    assert record.device
    assert record.seconds > 0
    assert record.versions["torch"] == torch.__version__
    assert [progress.step for progress in steps] == list(range(1, 61))
    assert {progress.steps for progress in steps} == {60}
    assert [progress.epoch for progress in steps] == [epoch for epoch in range(1, 16) for _ in range(4)]
    assert steps[-1].loss == record.loss
    assert steps[-1].train_accuracy > steps[3].train_accuracy


def test_record_has_the_preprocessing(bars: Dataset) -> None:
    assert run(tiny_spec(), bars)[1].preprocessing is None
    rule = Preprocessing("squash")
    assert run(tiny_spec(), replace(bars, preprocessing=rule))[1].preprocessing == rule.to_values()


def test_same_seed_gives_the_same_weights(bars: Dataset) -> None:
    first = weights_of(run(tiny_spec(), bars, seed=4)[0])
    torch.rand(7)
    assert weights_of(run(tiny_spec(), bars, seed=4)[0]) == first
    assert weights_of(run(tiny_spec(), bars, seed=5)[0]) != first


def test_torch_state_is_restored(bars: Dataset) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _, record = run(tiny_spec(), bars, threads=threads + 1)
    assert record.threads == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


def test_test_images_only_affect_the_accuracy(bars: Dataset) -> None:
    blank = replace(bars, test=Part(np.zeros_like(bars.test.pixels), bars.test.labels))
    assert weights_of(run(tiny_spec(), bars, epochs=2)[0]) == weights_of(run(tiny_spec(), blank, epochs=2)[0])


def test_no_batch_has_one_image(bars: Dataset) -> None:
    module, _ = run(tiny_spec(), bars, batch_size=66)  # 67 images
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_training_does_not_change_the_masks(bars: Dataset) -> None:
    module, _ = run(tiny_spec(mask_seed=8), bars)
    assert mask_digest(defect_masks(module)) == mask_digest(defect_masks(build(tiny_spec(mask_seed=8))))


def test_non_finite_loss_is_an_error(bars: Dataset) -> None:
    with pytest.raises(DivergedError, match=r"(nan|inf)\b.* epoch \d\b.* step \d+ of \d+\b.* learning_rate=1e\+30\b"):
        run(tiny_spec(keep=1.0), bars, epochs=3, learning_rate=1e30)


def test_interruption_is_raised_and_restores_torch_state(bars: Dataset) -> None:
    threads = torch.get_num_threads()

    def interrupt(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_spec(), bars, on_progress=interrupt, threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("argument", "value", "facts"),
    [
        ("seed", -1, "seed | 0 | -1"),
        ("seed", 2**63, "seed | 9223372036854775807 | 9223372036854775808"),
        ("threads", 1025, "threads | 1024 | 1025"),
        ("threads", 0, "threads | at least 1 | 0"),
        ("held_out", 67, "held_out | 'bars' | 67 training images"),
    ],
)
def test_invalid_arguments_are_rejected(bars: Dataset, argument: str, value: int, facts: str) -> None:
    with raises(SpecError, facts):
        run(tiny_spec(), bars, **{argument: value})


def test_missing_gpu_is_rejected(bars: Dataset) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with raises(SpecError, "device='cpu' | --device cpu"):
        train(tiny_spec(), bars, compute=Compute("gpu"))


def test_channels_last_is_rejected_on_cpus() -> None:
    with raises(SpecError, "channels_last=True | torch 2.13"):
        Compute("cpu", channels_last=True)


def test_bf16_uses_autocast_and_keeps_float32_weights(bars: Dataset) -> None:
    spec = tiny_spec(keep=0.7, width=4)
    recipe = recipe_from_preset("fast", epochs=15, batch_size=16)
    module, record = train(spec, bars, recipe=recipe, seed=1, compute=Compute("cpu", threads=1, precision="bf16"))
    _, plain = train(spec, bars, recipe=recipe, seed=1, compute=Compute("cpu", threads=1))
    assert record.precision == "bf16"
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert record.loss != plain.loss
    assert record.accuracy >= 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch.jit
def test_compiled_network_trains(bars: Dataset) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs")
    # Not width 4: on a CPU without AVX-512, the kernels that torch 2.13 generates for it write beyond their buffers.
    recipe = recipe_from_preset("fast", epochs=15, batch_size=16)
    module, record = train(tiny_spec(keep=0.7, width=8), bars, recipe=recipe, seed=1, compute=Compute("cpu", threads=1, compile=True))
    assert record.accuracy >= 0.9
    assert list(module.state_dict()) == list(build(tiny_spec(keep=0.7, width=8)).state_dict())


def test_out_of_memory_error_names_the_options_that_need_less(bars: Dataset) -> None:
    def build_module() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2**43))  # 2 petabytes

    with raises(TrainingError, "64 | batch_size | --batch-size"):
        train_module(build_module, bars, compute=Compute("cpu"))


def test_other_runtime_errors_are_not_translated(bars: Dataset) -> None:
    with pytest.raises(RuntimeError, match="multiplied"):
        train_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), bars, compute=Compute("cpu"))


def test_train_module_trains_any_network(bars: Dataset) -> None:
    def build_module() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    recipe = recipe_from_preset("fast", epochs=20, batch_size=16)
    module, record = train_module(build_module, bars, recipe=recipe, compute=Compute("cpu", threads=1))
    assert isinstance(module, nn.Sequential)
    assert record.accuracy == (predict_classes(module, bars.test.images()) == bars.test.labels).mean() >= 0.9


def test_best_epoch_is_selected_by_held_out_images(bars: Dataset) -> None:
    module, record = run(tiny_spec(keep=0.7, width=4), bars, epochs=5, choose="best", held_out=20)
    assert (record.n_train, record.n_held_out) == (47, 20)
    _, held_out_part = split_held_out(bars.train, 20, "defensemble-held-out-v1:bars")
    assert record.held_out_accuracy == count_correct(module, held_out_part) / 20
    _, last = run(tiny_spec(keep=0.7, width=4), bars, epochs=5, held_out=20)
    assert last.held_out_accuracy is not None
    assert record.held_out_accuracy >= last.held_out_accuracy


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial": "adversarial-training"},
        {"label_smoothing": 0.1},
        {"nesterov": False, "momentum": 0.0},
        {"weight_decay": 0.1},
        {"largest_shift": 0.125},
    ],
)
def test_each_value_of_the_recipe_changes_the_weights(bars: Dataset, changes: dict[str, Any]) -> None:
    assert weights_of(run(tiny_spec(), bars, **changes)[0]) != weights_of(run(tiny_spec(), bars)[0])


def test_images_are_mirrored_only_if_the_dataset_allows_it(bars: Dataset) -> None:
    allowed = replace(bars, flip=True)
    plain = weights_of(run(tiny_spec(), bars)[0])
    assert weights_of(run(tiny_spec(), bars, flip=False)[0]) == plain
    assert weights_of(run(tiny_spec(), allowed, flip=False)[0]) == plain
    assert weights_of(run(tiny_spec(), allowed)[0]) != plain


def test_spec_that_does_not_match_the_dataset_is_rejected(bars: Dataset) -> None:
    with raises(SpecError, "input_shape | (1, 16, 16) | 'bars' | (1, 8, 8)"):
        train(tiny_spec(input_shape=(1, 16, 16)), bars)
    with raises(SpecError, "num_classes | 4 | 'bars' | 3"):
        train(tiny_spec(num_classes=4), bars)


def test_each_epoch_has_every_image_once_in_a_new_order() -> None:
    first, second = (torch.cat(epoch_order(3, epoch, 97, 16)) for epoch in (1, 2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(97))
    assert first.tolist() != second.tolist()
    assert {len(batch) for batch in epoch_order(3, 1, 97, 16)} == {16, 17}


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_images_shift_by_whole_pixels_with_zero_padding_and_some_are_mirrored(kind: torch.dtype) -> None:
    images = torch.randint(1, 255, (256, 2, 16, 20)).to(kind)
    augmented = augment(images, make_generator(0, "a"), largest_shift=1 / 16, flip=True, batch_size=256, rows=slice(None))
    assert (augmented.shape, augmented.dtype) == (images.shape, kind)
    shifts = {}
    for mirrored in (False, True):
        padded = nn.functional.pad(images.flip(3) if mirrored else images, (1, 1, 1, 1))
        for row in range(3):
            for column in range(3):
                shifts[mirrored, row, column] = padded[:, :, row : row + 16, column : column + 20]
    used = [next(shift for shift, shifted in shifts.items() if torch.equal(shifted[index], augmented[index])) for index in range(256)]
    assert set(used) == set(shifts)


def test_rows_of_a_batch_are_augmented_like_the_whole_batch() -> None:
    images = torch.rand(10, 1, 8, 8)
    whole = augment(images, make_generator(0, "a"), largest_shift=1 / 8, flip=True, batch_size=10, rows=slice(None))
    part = augment(images[5:], make_generator(0, "a"), largest_shift=1 / 8, flip=True, batch_size=10, rows=slice(5, 10))
    assert torch.equal(whole[5:], part)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_digits_reach_the_documented_accuracy(keep: float) -> None:
    digits = load_dataset("digits")
    accuracies = []
    for seed in range(3):
        spec = ModelSpec(
            *("resnet18", keep, (0, 1, 2)), mask_seed=seed, width=8, mean=digits.mean, std=digits.std, input_shape=digits.input_shape
        )
        accuracies.append(train(spec, digits, seed=seed, compute=Compute("cpu", threads=1))[1].accuracy)
    assert mean(accuracies) >= 0.96, accuracies
