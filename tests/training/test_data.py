"""The digits: real images in the range of the contract, split in the same way for ever."""

import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional

from defensemble_training import DataError, Dataset, load_dataset
from defensemble_training.digits import bilinear_enlarged
from defensemble_training.splits import stratified_test_part


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_have_the_contracts_form(digits: Dataset) -> None:
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert images.dtype == np.float32
        assert images.shape == (len(labels), 1, 16, 16)
        assert images.flags.c_contiguous
        assert images.min() == 0.0
        assert images.max() == 1.0
        assert labels.dtype == np.int64
    assert (len(digits.train_labels), len(digits.test_labels)) == (1438, 359)
    assert digits.class_names == tuple("0123456789")
    assert digits.input_shape == (1, 16, 16)
    assert repr(digits) == "Dataset('digits', 1x16x16, 1438 train, 359 test, 10 classes)"


def test_split_never_changes(digits: Dataset) -> None:
    assert hashlib.sha256(digits.test_labels.tobytes()).hexdigest() == "30f402f8b75f127faa6ce300c1fcb93250d7559ead7ab928fb07a9af8dabe9c9"
    assert hashlib.sha256(digits.test_images.tobytes()).hexdigest() == "011fc9709b50d908f05c2410da1aad25212d1a4818b9acf638293e432dd98219"
    assert (digits.mean, digits.std) == ((0.3055,), (0.3192,))


def test_split_is_stratified(digits: Dataset) -> None:
    test, train = np.bincount(digits.test_labels), np.bincount(digits.train_labels)
    np.testing.assert_array_equal(test, np.round((test + train) / 5))


def test_split_is_the_same_at_every_size_and_shares_no_image(digits: Dataset) -> None:
    small = load_dataset("digits", size=8)
    np.testing.assert_array_equal(small.test_labels, digits.test_labels)
    np.testing.assert_array_equal(bilinear_enlarged(small.test_images, 16), digits.test_images)
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


def test_every_image_is_in_one_part() -> None:
    from sklearn.datasets import load_digits

    small = load_dataset("digits", size=8)
    ours = sorted(image.tobytes() for image in np.concatenate([small.train_images, small.test_images]))
    theirs = sorted((image / 16).astype(np.float32).tobytes() for image in load_digits().images)
    assert ours == theirs


@pytest.mark.parametrize("size", [8, 9, 16, 20, 32])
def test_enlarging_is_bilinear(size: int) -> None:
    images = np.random.default_rng(1).random((3, 2, 8, 8), dtype=np.float32)
    expected = functional.interpolate(torch.from_numpy(images), size=(size, size), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(bilinear_enlarged(images, size), expected.numpy(), atol=1e-6)


def test_test_part_follows_from_its_text() -> None:
    labels = np.repeat(np.arange(3), (10, 20, 7)).astype(np.int64)
    part = stratified_test_part(labels, "a")
    assert np.bincount(labels[part]).tolist() == [2, 4, 1]
    np.testing.assert_array_equal(part, stratified_test_part(labels, "a"))
    assert (part != stratified_test_part(labels, "b")).any()


def test_unknown_datasets_are_refused() -> None:
    with pytest.raises(DataError, match="unknown dataset 'cifar11'; there is digits, mnist, cifar10, tiny-imagenet, imagenet, stylized-"):
        load_dataset("cifar11")


@pytest.mark.parametrize("size", [7, 0, -16, 129, True, 16.0])
def test_bad_sizes_are_refused(size: int) -> None:
    with pytest.raises(DataError, match="size must be an integer from 8 to 128, got"):
        load_dataset("digits", size=size)
