from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defensemble import ServerFailedError
from defensemble._transport.tensor_codec import array_from_wire
from tests.support.facts import raises


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5, min_side=0), elements=st.floats(width=32, allow_nan=False)))
def test_float_arrays_survive_a_round_trip(array: NDArray[np.float32]) -> None:
    decoded = array_from_wire("FP32", array.shape, memoryview(array.tobytes()), "context")
    np.testing.assert_array_equal(decoded, array)
    assert not decoded.flags.writeable


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_strings_survive_a_round_trip(texts: list[bytes]) -> None:
    content = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert array_from_wire("BYTES", (len(texts),), content, "context").tolist() == texts


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("FP32", (2,), bytes(7)),
        ("FP32", (3,), bytes(8)),
        ("FP32", (-1, 2), bytes(8)),
        ("FP32", (-1, -2), bytes(8)),
        ("FP32", (1,) * 70, bytes(4)),
        ("BYTES", (-1, -1), b"\x01\0\0\0a"),
        ("FP128", (1,), bytes(16)),
        ("BYTES", (2,), b"\x01\0\0\0a"),
        ("BYTES", (1,), b"\x09\0\0\0a"),
        ("BYTES", (1,), b"\x01\0"),
    ],
)
def test_decoding_rejects_content_that_does_not_match_the_shape(datatype: str, shape: tuple[int, ...], content: bytes) -> None:
    with raises(ServerFailedError, f"{len(content)} bytes | {datatype}"):
        array_from_wire(datatype, shape, content, "context")


SIZES = st.integers(0, 3) | st.integers(-3, 3) | st.sampled_from([2**31, 2**62, 2**63, 10**30, -(2**63)])


@given(st.binary(max_size=40), st.lists(SIZES, max_size=4) | st.lists(st.integers(0, 1), max_size=80), st.text(max_size=5))
@example(bytes(8), [-1, -2], "")
@example(bytes(4), [1] * 70, "")
@example(b"", [0, 10**30], "")
def test_decoding_arbitrary_bytes_returns_an_array_or_raises(content: bytes, shape: list[int], unknown: str) -> None:
    for datatype in ("FP32", "BYTES", "BOOL", unknown):
        try:
            array = array_from_wire(datatype, tuple(shape), content, "context")
        except ServerFailedError:
            continue
        assert array.shape == tuple(shape)
