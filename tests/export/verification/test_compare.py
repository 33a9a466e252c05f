"""The comparison of outputs: its unit, the worst image, values that are not finite, shapes, and close classes."""

from __future__ import annotations

import numpy as np
import pytest

from defensemble_export import EngineError, ExportError, VerificationError
from defensemble_export.verification.compare import Comparison, same_classes

COMPARISON = Comparison("the graph", "torch", "it is not used")
EXPECTED = np.array([[1.0, 2.0], [-40.0, 3.0], [0.5, 0.25]], np.float32)


def test_a_difference_is_in_units_of_the_largest_expected_value_and_names_the_worst_image() -> None:
    got = EXPECTED.copy()
    got[2, 1] += 2
    difference = COMPARISON.difference(got, EXPECTED, "3 images")
    assert (difference.relative, difference.scale, difference.image) == (2 / 40, 40.0, 2)
    small = COMPARISON.difference(got[2:], EXPECTED[2:], "1 image")
    assert (small.relative, small.scale, small.image) == (2.0, 1.0, 0)


def test_the_tolerance_has_the_same_unit() -> None:
    difference = COMPARISON.difference(EXPECTED + np.float32(1), EXPECTED, "3 images")
    COMPARISON.check(difference, 1 / 40, "logits", "3 images")
    COMPARISON.check(difference, None, "logits", "3 images")
    with pytest.raises(VerificationError, match=r"^3 images: logits differ by 1 .*torch.*image 0.*expected at most 0\.8; it is not used"):
        COMPARISON.check(difference, 0.02, "logits", "3 images")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["the graph", "torch"])
def test_values_that_are_not_finite_are_rejected_even_in_both(value: float, whose: str) -> None:
    broken = EXPECTED.copy()
    broken[0, 0] = value
    with pytest.raises(VerificationError, match=f"{whose} returns values that are not finite"):
        COMPARISON.difference(broken if whose == "the graph" else EXPECTED, broken if whose == "torch" else EXPECTED, "3 images")
    with pytest.raises(VerificationError, match="not finite"):
        COMPARISON.difference(broken, broken, "3 images")


def test_other_shapes_raise_the_requested_error_class() -> None:
    plan = Comparison("the plan", "its graph", "the plan is not kept", EngineError)
    with pytest.raises(EngineError, match=r"^batch 3: the plan returns the shape \(3, 1\), but its graph returns \(3, 2\)"):
        plan.difference(EXPECTED[:, :1], EXPECTED, "batch 3")


def test_two_classes_within_the_margin_are_both_right() -> None:
    expected = np.array([[1.0, 1.5], [1.0, 1.6], [2.0, 1.0]])
    swapped = expected[:, ::-1]
    assert same_classes(expected, expected, 0.0).tolist() == [True] * 3
    assert same_classes(swapped, expected, 0.5).tolist() == [True, False, False]
    assert same_classes(swapped, expected, -1.0).tolist() == [False] * 3


@pytest.mark.parametrize(("agreement", "count", "allowed"), [(1.0, 50, 0), (0.999, 50, 1), (0.999, 3000, 3), (0.9, 50, 5), (0.9, 4, 1)])
def test_one_image_may_get_another_class_below_full_agreement(agreement: float, count: int, allowed: int) -> None:
    COMPARISON.check_classes(np.arange(count) >= allowed, agreement, "images")
    with pytest.raises(ExportError, match=f"{allowed + 1} of {count} images .* at least {100 * agreement:g} %"):
        COMPARISON.check_classes(np.arange(count) > allowed, agreement, "images")
