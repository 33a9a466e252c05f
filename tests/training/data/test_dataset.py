"""The digits and their fixed split, parts of datasets, and held-out images."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional

from defensemble_images import Preprocessing
from defensemble_training import DataError, Dataset, SpecError, load_dataset
from defensemble_training.data.dataset import Part, PartSubset, split_held_out
from defensemble_training.data.digits import enlarge_bilinear
from defensemble_training.data.splits import stratified_test_part
from tests.support.facts import raises
from tests.support.written import write_split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_have_the_documented_dtypes_and_shapes(digits: Dataset) -> None:
    for images, labels in ((digits.train.images(), digits.train.labels), (digits.test.images(), digits.test.labels)):
        assert images.dtype == np.float32
        assert images.shape == (len(labels), 1, 16, 16)
        assert images.flags.c_contiguous
        assert images.min() == 0.0
        assert images.max() == 1.0
        assert labels.dtype == np.int64
    assert (len(digits.train.labels), len(digits.test.labels)) == (1438, 359)
    assert digits.class_names == tuple("0123456789")
    assert digits.input_shape == (1, 16, 16)
    assert repr(digits) == "Dataset('digits', 1x16x16, 1438 train, 359 test, 10 classes)"


def test_image_files_record_their_preprocessing(digits: Dataset, tmp_path: Path) -> None:
    write_split(tmp_path)
    assert load_dataset("folder", 8, data_dir=tmp_path).preprocessing == Preprocessing("crop")
    assert digits.preprocessing is None


def test_split_never_changes(digits: Dataset) -> None:
    assert hashlib.sha256(digits.test.labels.tobytes()).hexdigest() == "30f402f8b75f127faa6ce300c1fcb93250d7559ead7ab928fb07a9af8dabe9c9"
    assert hashlib.sha256(digits.test.images().tobytes()).hexdigest() == "011fc9709b50d908f05c2410da1aad25212d1a4818b9acf638293e432dd98219"
    assert (digits.mean, digits.std) == ((0.3055,), (0.3192,))


def test_split_is_stratified(digits: Dataset) -> None:
    test, train = np.bincount(digits.test.labels), np.bincount(digits.train.labels)
    np.testing.assert_array_equal(test, np.round((test + train) / 5))


def test_split_is_equal_at_every_size_and_disjoint(digits: Dataset) -> None:
    small = load_dataset("digits", size=8)
    np.testing.assert_array_equal(small.test.labels, digits.test.labels)
    np.testing.assert_array_equal(enlarge_bilinear(small.test.images(), 16), digits.test.images())
    train = {image.tobytes() for image in digits.train.images()}
    assert not any(image.tobytes() in train for image in digits.test.images())


def test_every_image_is_in_one_part() -> None:
    from sklearn.datasets import load_digits

    small = load_dataset("digits", size=8)
    ours = sorted(image.tobytes() for image in np.concatenate([small.train.images(), small.test.images()]))
    theirs = sorted((image / 16).astype(np.float32).tobytes() for image in load_digits().images)
    assert ours == theirs


@pytest.mark.parametrize("size", [8, 9, 16, 20, 32])
def test_enlarging_is_bilinear(size: int) -> None:
    images = np.random.default_rng(1).random((3, 2, 8, 8), dtype=np.float32)
    expected = functional.interpolate(torch.from_numpy(images), size=(size, size), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(enlarge_bilinear(images, size), expected.numpy(), atol=1e-6)


def test_test_part_depends_only_on_the_seed_text() -> None:
    labels = np.repeat(np.arange(3), (10, 20, 7)).astype(np.int64)
    part = stratified_test_part(labels, "a")
    assert np.bincount(labels[part]).tolist() == [2, 4, 1]
    np.testing.assert_array_equal(part, stratified_test_part(labels, "a"))
    assert (part != stratified_test_part(labels, "b")).any()


def test_unknown_datasets_are_rejected() -> None:
    with raises(DataError, "'cifar11' | digits, mnist, cifar10, tiny-imagenet, imagenet, stylized-imagenet"):
        load_dataset("cifar11")


@pytest.mark.parametrize("size", [7, 0, -16, 129, True, 16.0])
def test_invalid_sizes_are_rejected(size: int) -> None:
    with raises(DataError, "size | 8 | 128"):
        load_dataset("digits", size=size)


def test_sizes_are_checked_before_files_are_read(tmp_path: Path) -> None:
    for size in (7, 1025, True):
        with raises(DataError, "size | 8 | 1024"):
            load_dataset("cifar10", size, data_dir=tmp_path / "nothing")


def test_digits_reject_a_folder(tmp_path: Path) -> None:
    with raises(DataError, "'digits' | data_dir"):
        load_dataset("digits", data_dir=tmp_path)


def test_digits_describe_their_source(digits: Dataset) -> None:
    assert digits.source == "scikit-learn's digits, enlarged from 8x8 to 16x16, a fifth of every class as the test part"
    assert not digits.flip
    assert digits.digest == load_dataset("digits").digest != load_dataset("digits", 8).digest


def part_of(labels: list[int]) -> Part:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 2, 2), dtype=np.uint8)
    return Part(pixels, np.array(labels, np.int64))


def test_images_of_a_part_are_float_copies() -> None:
    part = part_of([0, 1, 2, 0])
    assert len(part) == 4
    for selection in (slice(None), slice(1, 3), np.array([3, 0, 3]), np.array([True, False, False, True])):
        images = part.images(selection)
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, part.pixels[selection].astype(np.float32) / np.float32(255))
    floats = Part(part.images(), part.labels)
    floats.images()[:] = 7
    assert floats.pixels.max() <= 1
    assert part.nbytes == 4 * 12


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.data())
def test_held_out_images_are_exact_in_number_and_balanced(labels: list[int], data: st.DataObject) -> None:
    part = part_of(labels)
    count = data.draw(st.integers(1, len(labels) - 1))
    rest, held_out = split_held_out(part, count, "a text")
    assert (len(held_out), len(rest)) == (count, len(labels) - count)
    held_counts, class_counts = np.bincount(held_out.labels, minlength=6), np.bincount(part.labels, minlength=6)
    # No class has two held-out images more than a class with images left.
    assert all(
        held_counts[label] <= held_counts[other] + 1 for label in range(6) for other in range(6) if held_counts[other] < class_counts[other]
    )
    both = sorted(
        zip(np.concatenate([rest.labels, held_out.labels]), map(bytes, np.concatenate([rest.pixels, held_out.pixels])), strict=True)
    )
    assert both == sorted(zip(part.labels, map(bytes, part.pixels), strict=True))
    again = split_held_out(part, count, "a text")
    np.testing.assert_array_equal(again[1].pixels, held_out.pixels)


def test_5000_held_out_images_of_cifar10_are_fixed_and_500_of_each_class() -> None:
    labels = np.arange(50_000, dtype=np.int64) % 10
    part = Part(np.arange(50_000, dtype=np.float32).reshape(-1, 1, 1, 1), labels)
    rest, held_out = split_held_out(part, 5000, "defensemble-validation-v1:cifar10")
    assert np.bincount(held_out.labels).tolist() == [500] * 10
    assert (np.diff(held_out.pixels.ravel()) > 0).all()
    assert (np.diff(rest.pixels.ravel()) > 0).all()
    assert (split_held_out(part, 5000, "another text")[1].pixels != held_out.pixels).any()
    digest = hashlib.sha256(held_out.pixels.astype("<i4").tobytes()).hexdigest()
    assert digest.startswith("3e9a34e7e1cd4f71")


def test_part_subset_equals_a_copy() -> None:
    part = part_of([0, 1, 2, 0, 1])
    rows = PartSubset(part, np.array([4, 0, 2]))
    copied = Part(part.pixels[[4, 0, 2]], part.labels[[4, 0, 2]])
    assert (len(rows), rows.nbytes) == (3, copied.nbytes)
    np.testing.assert_array_equal(rows.labels, copied.labels)
    np.testing.assert_array_equal(rows.pixels, copied.pixels)
    for selection in (slice(None), slice(1, 3), np.array([2, 0])):
        np.testing.assert_array_equal(rows.images(selection), copied.images(selection))
        np.testing.assert_array_equal(rows.raw_pixels(selection), copied.raw_pixels(selection))


@pytest.mark.parametrize("count", [-1, 0, 4, 5, 2.0, True])
def test_holding_out_none_or_all_is_rejected(count: int) -> None:
    with raises(SpecError, f"1 | 3 | {count}"):
        split_held_out(part_of([0, 1, 2, 0]), count, "a text")


def test_holding_out_of_one_image_is_rejected() -> None:
    with raises(SpecError, "1 | 2"):
        split_held_out(part_of([0]), 1, "a text")


PIXELS, LABELS = np.zeros((4, 3, 2, 2), np.uint8), np.array([0, 1, 2, 0], np.int64)


@pytest.mark.parametrize(
    ("pixels", "labels", "facts"),
    [
        (PIXELS.tolist(), LABELS, "pixels | (n, C, H, W) | uint8 | float32 | list"),
        (torch.zeros(4, 3, 2, 2), LABELS, "pixels | Tensor"),
        (PIXELS[0], LABELS, "uint8 (3, 2, 2)"),
        (PIXELS[:, :0], LABELS, "uint8 (4, 0, 2, 2)"),
        (PIXELS.astype(np.float64), LABELS, "float64 (4, 3, 2, 2)"),
        (PIXELS, [0, 1, 2, 0], "labels | (n,) | int64 | [0, 1, 2, 0]"),
        (PIXELS, LABELS.astype(np.int32), "int32 (4,)"),
        (PIXELS, LABELS[:, None], "int64 (4, 1)"),
        (PIXELS, LABELS[:3], "4 images | 3 labels"),
        (PIXELS[:0], LABELS[:0], "at least one"),
    ],
)
def test_invalid_parts_are_rejected(pixels: Any, labels: Any, facts: str) -> None:
    with raises(DataError, facts):
        Part(pixels, labels)


def small_dataset(**changes: Any) -> Dataset:
    values: dict[str, Any] = {"name": "mine", "class_names": ("a", "b", "c"), "train": Part(PIXELS, LABELS), "test": Part(PIXELS, LABELS)}
    values |= {"mean": (0.5,) * 3, "std": (0.25,) * 3, "flip": True, "source": "made", "digest": "0" * 16}
    return Dataset(**(values | changes))


def float_part(value: float, count: int = 3000) -> Part:
    pixels = np.full((count, 3, 2, 2), 0.5, np.float32)
    pixels[-1, 2, 1, 1] = value
    return Part(pixels, np.arange(count, dtype=np.int64) % 3)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"test": Part(PIXELS[:, :1], LABELS)}, "(C, H, W) | (3, 2, 2) | (1, 2, 2)"),
        ({"test": Part(PIXELS[:, :, :1], LABELS)}, "(3, 2, 2) | (3, 1, 2)"),
        ({"mean": (0.5,)}, "mean | 'mine' | 3 channels | (0.5,)"),
        ({"mean": 0.5}, "mean | 'mine' | 3 channels | 0.5"),
        ({"std": (0.5,) * 4}, "std | 'mine' | 3 channels"),
        ({"class_names": ("a",)}, "class_names | 'mine' | 2 | ('a',)"),
        ({"class_names": ("a", "b")}, "training labels | 'mine' | 0 to 1 | got 2"),
        ({"test": Part(PIXELS, LABELS - 1)}, "test labels | 'mine' | 0 to 2 | -1"),
        ({"train": float_part(1.5)}, "training pixels | 'mine' | 0.5 to 1.5 | 2048 to 2999"),
        ({"test": float_part(-0.1)}, "test pixels | 'mine' | -0.1 to 0.5"),
        ({"test": float_part(float("nan"))}, "NaN | 2048 to 2999"),
        ({"test": float_part(float("inf"))}, "infinite"),
    ],
)
def test_invalid_datasets_are_rejected(changes: dict[str, Any], facts: str) -> None:
    with raises(DataError, facts):
        small_dataset(**changes)


def test_dataset_accepts_subsets_and_float_pixels() -> None:
    rows = PartSubset(Part(PIXELS, LABELS), np.array([3, 1, 2]))
    data = small_dataset(train=rows, test=float_part(1.0))
    assert data.input_shape == (3, 2, 2)
    assert len(data.train) == 3
    with pytest.raises(DataError, match="at least one"):
        PartSubset(rows, np.array([], np.intp))


def test_align_classes_returns_the_class_indices_of_a_model() -> None:
    data = load_dataset("digits", 8)
    names = [f"digit {name}" for name in data.class_names]
    named = dataclasses.replace(data, class_names=tuple(names))
    aligned = named.align_classes(["none", *reversed(names)], "net")
    np.testing.assert_array_equal(aligned.test.labels, 10 - data.test.labels)
    assert aligned.train.pixels is data.train.pixels
    with raises(DataError, "'net' | digit 9"):
        named.align_classes(names[:9], "net")
