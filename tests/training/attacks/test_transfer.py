"""Adversarial examples as arrays: batches, devices, rounding, and invalid arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from defensemble_training import SpecError, TrainingError, adversarial_examples, attack, round_to_8_bits
from defensemble_training.evaluation import predict_classes
from tests.support.attacked import batch, one_thread as one_thread, small_net
from tests.support.facts import raises

IMAGES, LABELS = (tensor.numpy() for tensor in batch(11))


def test_examples_equal_the_attack_in_order() -> None:
    source, progress = small_net(), list[tuple[int, int]]()
    examples = adversarial_examples(source, IMAGES, LABELS, "pgd2-16", batch_size=4, on_progress=lambda *done: progress.append(done))
    expected = attack("pgd2-16", source, torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    assert examples.dtype == np.float32
    assert np.abs(examples - expected.numpy()).max() < 1e-6
    assert progress == [(4, 11), (8, 11), (11, 11)]


def test_random_start_depends_on_the_seed() -> None:
    def run(seed: int) -> bytes:
        return adversarial_examples(small_net(), IMAGES, LABELS, "adversarial-training", batch_size=4, seed=seed).tobytes()

    first = run(1)
    torch.rand(3)
    assert run(1) == first
    assert run(2) != first


def test_memory_mapped_images_and_small_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    examples = adversarial_examples(small_net(), mapped, LABELS.astype(np.uint8), "fgsm8", batch_size=5)
    assert np.array_equal(examples, adversarial_examples(small_net(), IMAGES, LABELS, "fgsm8", batch_size=5))
    assert np.array_equal(predict_classes(small_net(), mapped), predict_classes(small_net(), IMAGES))


def test_examples_round_like_png_files(tmp_path: Path) -> None:
    """8-bit examples of 8-bit images stay within the epsilon ball."""
    images = round_to_8_bits(IMAGES)
    examples = adversarial_examples(small_net(), images, LABELS, "mnist-pgd", eight_bit=True)
    grey = np.rint(examples[0, 0] * 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "example.png")
    with Image.open(tmp_path / "example.png") as image:
        assert np.array_equal(np.asarray(image).astype(np.float32) / np.float32(255), examples[0, 0])
    unrounded = adversarial_examples(small_net(), images, LABELS, "mnist-pgd")
    assert 0 < np.abs(examples - unrounded).max() <= 0.5 / 255 + 1e-7
    rounded = adversarial_examples(small_net(), images, LABELS, "pgd16", eight_bit=True)
    assert np.abs(rounded.astype(np.float64) - images).max() <= 16 / 255 + 1e-7


@given(st.integers(0, 255))
def test_grey_levels_are_fixed_points(level: int) -> None:
    image = np.full((1, 1, 1, 1), level, dtype=np.uint8).astype(np.float32) / np.float32(255)
    assert np.array_equal(round_to_8_bits(image), image)


def test_predict_classes_uses_eval_mode_and_restores_the_mode() -> None:
    module = small_net()
    expected = module(torch.from_numpy(IMAGES)).argmax(dim=1).numpy()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    classes = predict_classes(module.train(), IMAGES, batch_size=3)
    assert module.training
    assert classes.dtype == np.int64
    assert np.array_equal(classes, expected)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"images": IMAGES.astype(np.float64)}, "images | float32 | float64"),
        ({"images": IMAGES[:0]}, "images | at least one | (0, 1, 8, 8)"),
        ({"images": IMAGES * 2}, "images | [0, 1] | 0 to 2"),
        ({"images": np.where(IMAGES > 0.9, np.float32(np.nan), IMAGES)}, "images | NaN"),
        ({"labels": LABELS[:10]}, "labels | (11,) | int64 (10,)"),
        ({"labels": LABELS / 2}, "labels | integers (11,) | float64 (11,)"),
        ({"batch_size": 0}, "batch_size | at least 1 | 0"),
        ({"seed": -1}, "seed | at least 0 | -1"),
        ({"preset": "none"}, "AttackPreset | table2-fgsm"),
    ],
)
def test_invalid_arguments_are_rejected(changes: dict[str, Any], facts: str) -> None:
    values: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "preset": "fgsm8"}
    with raises(SpecError, facts):
        adversarial_examples(small_net(), **{**values, **changes})


def test_error_restores_the_mode() -> None:
    source = small_net().train()
    with torch.no_grad():
        source[0].weight.fill_(torch.inf)  # type: ignore[index]
    with pytest.raises(TrainingError, match="not finite"):
        adversarial_examples(source, IMAGES, LABELS, "fgsm8")
    assert source.training
