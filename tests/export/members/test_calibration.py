"""Which images a calibration takes: by seed, recorded, and refused where there are none to take."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble_export import ExportError
from defensemble_export.members.calibration import DEFAULT_COUNT, DEFAULT_SEED, Calibration, calibration_images
from defensemble_training import load_dataset
from tests.support import tiny
from tests.support.facts import raises

POOL = tiny.images(40)


@given(st.integers(2, 60), st.integers(0, 2**32))
def test_images_are_drawn_once_each_in_their_order_by_the_seed(count: int, seed: int) -> None:
    images, told = calibration_images(POOL.__getitem__, len(POOL), source="the pool", count=count, seed=seed)
    again, told_again = calibration_images(POOL.__getitem__, len(POOL), source="the pool", count=count, seed=seed)
    assert told == told_again == Calibration(min(count, 40), seed, "the pool", hashlib.sha256(images.tobytes()).hexdigest())
    assert images.tobytes() == again.tobytes()
    numbers = [next(number for number, one in enumerate(POOL) if np.array_equal(one, image)) for image in images]
    assert numbers == sorted(set(numbers))


def test_another_seed_draws_others() -> None:
    digests = {calibration_images(POOL.__getitem__, 40, source="", count=8, seed=seed)[1].sha256 for seed in range(5)}
    assert len(digests) == 5


def test_the_training_images_of_a_data_set() -> None:
    dataset = load_dataset("digits", 16)
    images, told = calibration_images(dataset.train.images, len(dataset.train), source=dataset.source)
    assert (told.count, told.seed, told.source) == (DEFAULT_COUNT, DEFAULT_SEED, dataset.source)
    assert images.shape == (DEFAULT_COUNT, 1, 16, 16)
    assert images.dtype == np.float32
    training = {image.tobytes() for image in dataset.train.images()}
    assert {image.tobytes() for image in images} <= training


def test_the_record_is_json_and_pickles() -> None:
    told = Calibration(8, 3, "a pool", "00")
    assert json.loads(json.dumps(asdict(told))) == {"count": 8, "seed": 3, "source": "a pool", "sha256": "00"}
    assert pickle.loads(pickle.dumps(told)) == told


@pytest.mark.parametrize(
    ("total", "options", "text"),
    [
        (0, {}, "at least 2 | 0"),
        (1, {}, "1 | fp16"),
        (40, {"count": 1}, "at least 2 | got 1 | 512"),
        (40, {"count": 0}, "at least 2 | 0"),
        (40, {"seed": -1}, "seed | 0 or more | -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(total: int, options: dict[str, int], text: str) -> None:
    with raises(ExportError, text):
        calibration_images(POOL.__getitem__, total, source="the pool", **options)
