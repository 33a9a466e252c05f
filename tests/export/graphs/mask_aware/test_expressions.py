"""Unions of intersections of masks, compared with the sets that they describe."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from defensemble_export.graphs.mask_aware.expressions import FULL, MAX_TERMS, NOTHING, MaskExpression
from tests.support.program_interpreter import Array

SHAPE = (3, 4, 2)
SHAPES = {"a": SHAPE, "b": (3, 1, 1), "c": (1, 4, 2), "d": (1, *SHAPE), "e": (1, 1, 4, 2)}
MASKS: dict[str, Array] = {name: np.random.default_rng(index).random(shape) < 0.5 for index, (name, shape) in enumerate(SHAPES.items())}
EXPRESSIONS = st.recursive(
    st.sampled_from([FULL, NOTHING, *(MaskExpression.of(name) for name in MASKS)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda each: each[0] | each[1]), st.tuples(inner, inner).map(lambda each: each[0] & each[1])
    ),
    max_leaves=8,
)


def neurons(expression: MaskExpression) -> Array:
    return expression.evaluate(MASKS, SHAPE)


@given(EXPRESSIONS, EXPRESSIONS)
def test_operations_give_the_union_and_the_intersection(one: MaskExpression, other: MaskExpression) -> None:
    np.testing.assert_array_equal(neurons(one | other), neurons(one) | neurons(other))
    np.testing.assert_array_equal(neurons(one & other), neurons(one) & neurons(other))


@given(EXPRESSIONS, st.sampled_from(sorted(MASKS)))
def test_implied_masks_contain_the_set_and_fewer_masks_give_a_larger_one(one: MaskExpression, mask: str) -> None:
    if one.implies(mask):
        assert not (neurons(one) & ~MASKS[mask].reshape(MASKS[mask].shape[-3:])).any()
    assert (neurons(one) <= neurons(one.only({mask}))).all()
    assert one.only({mask}).masks() <= {mask}


def test_too_many_terms_become_a_larger_set() -> None:
    union = NOTHING
    for number in range(MAX_TERMS + 1):
        assert not union.is_full
        union |= MaskExpression.of(f"m{number}")
    assert union is FULL or union == FULL
    few = MaskExpression.of("x")
    assert few & union == few


def test_text_does_not_depend_on_the_order() -> None:
    a, b, c = (MaskExpression.of(name) for name in "abc")
    assert str(a & b | c) == str(c | b & a) == "a&b|c"
    assert (a | a & b) == a
    assert (a & b | c).text({"a": 7, "b": 5, "c": 9}) == "5&7|9"
    assert str(FULL) == "full"
