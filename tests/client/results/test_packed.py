from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from defensemble import InputError
from defensemble.results.packed import MAX_ARRAY_BYTES, pack, unpack
from tests.support.facts import raises

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@given(
    st.one_of(
        hnp.arrays(np.bool_, SHAPES),
        hnp.arrays(np.int64, SHAPES, elements=st.one_of(st.integers(-200, 200), st.integers(-(2**63), 2**63 - 1))),
        hnp.arrays(np.float64, SHAPES, elements=st.one_of(st.floats(), st.floats(width=32))),
    )
)
def test_arrays_survive_json_bit_by_bit(values: np.ndarray[Any, Any]) -> None:
    packed = json.loads(json.dumps(pack(values), allow_nan=False))
    read = unpack(packed, values.dtype.type, tuple(None for _ in values.shape), "x")
    assert read.dtype == values.dtype
    assert read.shape == values.shape
    np.testing.assert_array_equal(read, values)
    read[...] = 0  # writable, and not a view of the text


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 9], "|i1"),
        ([-129], "<i2"),
        ([32768], "<i4"),
        ([2**31], "<i8"),
        ([True], "|b1"),
        ([0.5, np.nan, np.inf], "<f4"),
        ([0.1], "<f8"),
        ([1e300], "<f8"),
    ],
)
def test_the_smallest_exact_dtype_is_chosen(values: list[Any], dtype: str) -> None:
    assert pack(np.array(values))["dtype"] == dtype


def test_ten_thousand_classes_need_few_bytes() -> None:
    predicted = np.random.default_rng(0).integers(10, size=10_000)
    assert len(json.dumps(pack(predicted))) < 8_000  # as a list of numbers: 30,000


def test_arrays_of_other_kinds_are_refused() -> None:
    with raises(InputError, "complex128"):
        pack(np.zeros(1, np.complex128))


def packed_bytes(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"dtype": "<i16"}, "x | <i16"),
        ({"dtype": "|O"}, "|O | <i2"),
        ({"dtype": ["<i2"]}, "x | base64"),
        ({"dtype": "<f4"}, "<f4 | int64"),
        ({"shape": [2]}, "x | [2] | [3]"),
        ({"shape": [3, 1]}, "[3, 1] | [3]"),
        ({"shape": "3"}, "x | 3"),
        ({"shape": [-3]}, "[-3]"),
        ({"shape": [True]}, "[True]"),
        ({"zlib": 5}, "x | base64"),
        ({"zlib": "***"}, "x"),
        ({"zlib": "é"}, "x"),
        ({"zlib": base64.b64encode(b"not compressed").decode()}, "x"),
        ({"zlib": packed_bytes(bytes(2))}, "3 | 2"),
        ({"zlib": packed_bytes(bytes(4))}, "3"),
        ({"zlib": packed_bytes(bytes(10**7))}, "3"),
        ({"zlib": base64.b64encode(zlib.compress(bytes(3))[:-2]).decode()}, "3"),
        ({"zlib": base64.b64encode(zlib.compress(bytes(3)) + b"more").decode()}, "3"),
        ({"more": 1}, "x | zlib"),
    ],
)
def test_damaged_arrays_are_refused(changes: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        unpack({**pack(np.zeros(3, np.int64)), **changes}, np.int64, (3,), "x")


@pytest.mark.parametrize("packed", [None, [1, 2], "text", {}])
def test_what_is_no_packed_array_is_refused(packed: Any) -> None:
    with raises(InputError, "x | zlib"):
        unpack(packed, np.int64, (None,), "x")


def test_an_array_that_would_be_large_in_the_wider_type_is_refused() -> None:
    with raises(InputError, f"{MAX_ARRAY_BYTES:,}"):
        unpack({"dtype": "|i1", "shape": [MAX_ARRAY_BYTES // 4], "zlib": "not read"}, np.int64, (None,), "x")


def test_a_large_array_is_refused_before_it_is_decompressed() -> None:
    with raises(InputError, f"{MAX_ARRAY_BYTES:,}"):
        unpack({"dtype": "<f8", "shape": [10**15], "zlib": "not read"}, np.float64, (None,), "x")
