"""The check of image arrays that all packages share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from defensemble_images import image_problem, range_problem

GOOD = np.linspace(0, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


def with_value(value: float) -> Any:
    images = GOOD.copy()
    images[1, 2, 3, 4] = value
    return images


def test_valid_images_have_no_problem() -> None:
    for images in (GOOD, GOOD[:1], GOOD[:, :, ::-1]):
        assert image_problem(images) is None
        assert image_problem(images, shape=(3, 4, 5)) is None
        assert image_problem(images, shape=(3, None, None)) is None
    assert image_problem(with_value(9), in_range=False) is None


@pytest.mark.parametrize(
    ("images", "facts"),
    [
        (GOOD.tolist(), ("builtins.list", "numpy.asarray")),
        (np.ma.MaskedArray(GOOD), ("masked", "filled")),
        (GOOD.astype(np.float64), ("float64", "astype")),
        ((GOOD * 255).astype(np.uint8), ("uint8", "/ 255")),
        (GOOD[0], ("(3, 4, 5)", "numpy.newaxis")),
        (GOOD.reshape(-1), ("(120,)", "(N, 3, 4, 5)", "model 'a'")),
        (GOOD[:, :1], ("(2, 1, 4, 5)", "(N, 3, 4, 5)", "model 'a'")),
        (GOOD.transpose(0, 2, 3, 1), ("(2, 4, 5, 3)", "transpose")),
        (GOOD[:0], ("(0, 3, 4, 5)", "at least one")),
        (with_value(np.nan), ("1 value", "NaN")),
        (with_value(-np.inf), ("1 value", "infinite")),
        (with_value(255), ("0 to 255", "divide by 255")),
        (with_value(-0.5), ("-0.5 to", "normalisation")),
        (with_value(1.5), ("0 to 1.5", "clip")),
    ],
)
def test_problem_states_the_value_and_the_fix(images: object, facts: tuple[str, ...]) -> None:
    problem = image_problem(images, "the pictures", shape=(3, 4, 5), consumer="model 'a'")
    assert problem is not None
    assert problem.startswith("the pictures ")
    assert [fact for fact in facts if fact not in problem] == []


def test_range_of_one_image() -> None:
    assert range_problem(GOOD[0]) is None
    assert "2.5" in str(range_problem(with_value(2.5)[1], "image 1"))
