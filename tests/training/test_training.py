"""Training: the same seed gives the same weights, the state of torch is left alone, and it learns."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from torch import nn

from defensemble_training import Dataset, ModelSpec, SpecError, TrainingError, TrainingProgress, load_dataset, train
from defensemble_training.data import Part
from defensemble_training.training import _shifted, one_cycle, predicted_classes

from .untrained import tiny_spec


@pytest.fixture(scope="module")
def bars() -> Dataset:
    """Three classes that a tiny network tells apart: a bright bar at the top, in the middle, at the bottom."""
    random = np.random.default_rng(0)
    labels = np.arange(97) % 3
    images = random.random((97, 1, 8, 8), dtype=np.float32) * np.float32(0.5)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 * label : 3 * label + 2] = 1.0
    train, test = Part(images[:67], labels[:67]), Part(images[67:], labels[67:])
    return Dataset("bars", ("top", "middle", "bottom"), train, test, (0.5,), (0.25,), flip=True, source="random", digest="0" * 16)


def weights_of(module: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())


def test_a_run_learns_and_is_written_down(bars: Dataset) -> None:
    seen: list[TrainingProgress] = []
    spec = tiny_spec(keep=0.7, width=4)
    module, record = train(spec, bars, epochs=6, batch_size=16, learning_rate=0.1, seed=1, on_progress=seen.append, threads=1)
    assert not module.training
    assert record.accuracy == (predicted_classes(module, bars.test_images) == bars.test_labels).mean()
    assert record.accuracy >= 0.9
    assert (record.data, record.image_size, record.class_names) == ("bars", 8, bars.class_names)
    assert (record.epochs, record.batch_size, record.learning_rate, record.seed, record.threads) == (6, 16, 0.1, 1, 1)
    assert (record.n_train, record.n_test) == (67, 30)
    assert record.seconds > 0
    assert record.versions["torch"] == torch.__version__
    assert [progress.step for progress in seen] == list(range(1, 25))
    assert {progress.steps for progress in seen} == {24}
    assert [progress.epoch for progress in seen] == [epoch for epoch in range(1, 7) for _ in range(4)]
    assert seen[-1].loss == record.loss
    assert seen[-1].train_accuracy > seen[3].train_accuracy


def test_the_same_seed_gives_the_same_weights(bars: Dataset) -> None:
    def run(seed: int) -> bytes:
        return weights_of(train(tiny_spec(), bars, epochs=1, batch_size=16, seed=seed, threads=1)[0])

    first = run(4)
    torch.rand(7)
    assert run(4) == first
    assert run(5) != first


def test_torchs_state_is_as_before(bars: Dataset) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _, record = train(tiny_spec(), bars, epochs=1, batch_size=16, threads=threads + 1)
    assert record.threads == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


def test_test_images_change_nothing_but_the_accuracy(bars: Dataset) -> None:
    blank = replace(bars, test=Part(np.zeros_like(bars.test.pixels), bars.test.labels))
    one, _ = train(tiny_spec(), bars, epochs=2, batch_size=16, threads=1)
    other, _ = train(tiny_spec(), blank, epochs=2, batch_size=16, threads=1)
    assert weights_of(one) == weights_of(other)


def test_no_batch_is_left_with_one_image(bars: Dataset) -> None:
    module, _ = train(tiny_spec(), bars, epochs=1, batch_size=66, threads=1)  # 67 images
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_masks_are_those_of_the_spec_after_training(bars: Dataset) -> None:
    from defensemble_training import build, defect_masks, mask_digest

    module, _ = train(tiny_spec(mask_seed=8), bars, epochs=1, batch_size=16, threads=1)
    assert mask_digest(defect_masks(module)) == mask_digest(defect_masks(build(tiny_spec(mask_seed=8))))


def test_a_loss_that_is_not_finite_is_an_error(bars: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at epoch \d, step \d+ of \d+, with learning_rate=1e\+30; .* lower"):
        train(tiny_spec(keep=1.0), bars, epochs=3, batch_size=16, learning_rate=1e30, threads=1)


def test_an_interruption_passes_on_and_leaves_torch_as_before(bars: Dataset) -> None:
    threads = torch.get_num_threads()

    def interrupt(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_spec(), bars, epochs=1, batch_size=16, on_progress=interrupt, threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("epochs", 0, "epochs must be an integer of at least 1, got 0"),
        ("batch_size", 1, "batch_size must be an integer of at least 2, got 1"),
        ("learning_rate", 0.0, r"learning_rate must be above 0 and at most 1e\+30, got 0.0"),
        ("learning_rate", float("inf"), r"learning_rate must be above 0 and at most 1e\+30, got inf"),
        ("learning_rate", float("nan"), r"learning_rate must be above 0 and at most 1e\+30, got nan"),
        ("seed", -1, "seed must be an integer of at least 0, got -1"),
        ("seed", 2**63, "seed must be an integer of at most 9223372036854775807, got 9223372036854775808"),
        ("threads", 1025, "threads must be an integer of at most 1024, got 1025"),
        ("threads", 0, "threads must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(bars: Dataset, argument: str, value: float, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        train(tiny_spec(), bars, **{argument: value})  # type: ignore[arg-type]


def test_a_spec_that_does_not_fit_the_data_is_refused(bars: Dataset) -> None:
    with pytest.raises(SpecError, match=r"input_shape is \(1, 16, 16\), but the images of 'bars' are \(1, 8, 8\)"):
        train(tiny_spec(input_shape=(1, 16, 16)), bars)
    with pytest.raises(SpecError, match="num_classes is 4, but 'bars' has 3 classes"):
        train(tiny_spec(num_classes=4), bars)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 184])
def test_learning_rate_rises_then_falls(steps: int) -> None:
    factors = [one_cycle(step, steps) for step in range(steps)]
    highest = factors.index(1.0)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)
    assert highest == -(-steps // 4) - 1


def test_shifts_are_whole_pixels_with_zeros_coming_in() -> None:
    images = torch.rand(64, 2, 16, 20) + 0.5
    torch.manual_seed(0)
    shifted = _shifted(images)
    assert shifted.shape == images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    places = {(row, column): padded[:, :, row : row + 16, column : column + 20] for row in range(3) for column in range(3)}
    used = [next(place for place, whole in places.items() if torch.equal(whole[index], shifted[index])) for index in range(64)]
    assert set(used) == set(places)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_digits_reach_the_promised_accuracy(keep: float) -> None:
    digits = load_dataset("digits")
    accuracies = []
    for seed in range(3):
        spec = ModelSpec(
            *("resnet18", keep, (0, 1, 2)), mask_seed=seed, width=8, mean=digits.mean, std=digits.std, input_shape=digits.input_shape
        )
        accuracies.append(train(spec, digits, seed=seed, threads=1)[1].accuracy)
    assert mean(accuracies) >= 0.96, accuracies
