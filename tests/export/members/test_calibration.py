"""The images of a calibration: selected by seed, recorded, and rejected if there are too few."""

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
def test_images_are_drawn_without_repetition_in_order_by_seed(count: int, seed: int) -> None:
    images, record = calibration_images(POOL.__getitem__, len(POOL), source="the pool", count=count, seed=seed)
    again, repeated_record = calibration_images(POOL.__getitem__, len(POOL), source="the pool", count=count, seed=seed)
    assert record == repeated_record == Calibration(min(count, 40), seed, "the pool", hashlib.sha256(images.tobytes()).hexdigest())
    assert images.tobytes() == again.tobytes()
    numbers = [next(number for number, one in enumerate(POOL) if np.array_equal(one, image)) for image in images]
    assert numbers == sorted(set(numbers))


def test_another_seed_draws_other_images() -> None:
    digests = {calibration_images(POOL.__getitem__, 40, source="", count=8, seed=seed)[1].sha256 for seed in range(5)}
    assert len(digests) == 5


def test_the_training_images_of_a_dataset_are_drawn() -> None:
    dataset = load_dataset("digits", 16)
    images, record = calibration_images(dataset.train.images, len(dataset.train), source=dataset.source)
    assert (record.count, record.seed, record.source) == (DEFAULT_COUNT, DEFAULT_SEED, dataset.source)
    assert images.shape == (DEFAULT_COUNT, 1, 16, 16)
    assert images.dtype == np.float32
    training = {image.tobytes() for image in dataset.train.images()}
    assert {image.tobytes() for image in images} <= training


def test_the_record_is_json_and_pickles() -> None:
    record = Calibration(8, 3, "a pool", "00")
    assert json.loads(json.dumps(asdict(record))) == {"count": 8, "seed": 3, "source": "a pool", "sha256": "00"}
    assert pickle.loads(pickle.dumps(record)) == record


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
def test_invalid_calibrations_are_rejected(total: int, options: dict[str, int], text: str) -> None:
    with raises(ExportError, text):
        calibration_images(POOL.__getitem__, total, source="the pool", **options)
