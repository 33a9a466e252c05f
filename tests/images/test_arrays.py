"""`.npy` and `.npz` files against numpy's own reader."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble_images import ImagesError, npy_array, npz_arrays
from tests.support.facts import raises

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (7, 3, 5, 4), np.uint8)
EXACT = BYTES.astype(np.float64) / 255


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_images.arrays._CHUNK_BYTES", 200)  # so that the small arrays of these tests have several chunks


@given(
    dtype=st.sampled_from(["u1", "<u2", ">u2", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "=g"]),
    fortran=st.booleans(),
    compressed=st.booleans(),
    rows=st.none() | st.sets(st.integers(0, 6), min_size=1),
)
def test_arrays_equal_numpys(tmp_path: Path, dtype: str, fortran: bool, compressed: bool, rows: set[int] | None) -> None:
    scale = {"u1": 255, "u2": 65535}.get(dtype[-2:], 1)
    array = (EXACT * scale).round(0 if scale > 1 else 9).astype(dtype)
    array = np.asfortranarray(array) if fortran else array
    np.save(tmp_path / "a.npy", array)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", images=array, other=np.array(["x"], object))
    expected = array.astype(np.float64) / scale
    selected = None if rows is None else np.array(sorted(rows))
    for stored in (npy_array(tmp_path / "a.npy"), npz_arrays(tmp_path / "a.npz", ["images"], ["labels"])["images"]):
        assert (stored.shape, stored.dtype, stored.float_bytes) == (array.shape, array.dtype, 4 * array.size)
        stored.check_images((3, -1, 4))
        got = stored.images(selected)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected if selected is None else expected[selected], rtol=1e-6)
        np.testing.assert_array_equal(np.concatenate(list(stored.batches())), stored.images())
        np.testing.assert_array_equal(stored.values(), array)


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (BYTES.astype(np.int64), "int64"),
        (BYTES > 3, "bool"),
        (EXACT.astype(complex), "complex128"),
        (np.zeros(3, [("a", "f4")]), "'a'"),
        (np.zeros(3, [("層", "f4")]), "(3, 0)"),
        (np.array([{}], object), "Python objects"),
        (np.array(["x"]), "<U1"),
        (np.float32(1), "shape ()"),
        (EXACT[:0], "(0, 3, 5, 4)"),
        (EXACT[0], "(3, 5, 4)"),
        (EXACT.transpose(0, 2, 3, 1), "(7, 5, 4, 3)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_arrays_that_are_not_images_are_rejected(tmp_path: Path, array: Array, fact: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImagesError, match=re.escape(fact)) as caught:
        npy_array(tmp_path / "a.npy").check_images((3, 5, 4))
    assert str(tmp_path / "a.npy") in str(caught.value)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize(
    ("value", "facts"), [(np.nan, ["1 values", "NaN"]), (200.0, ["to 200", "255"]), (-0.5, ["-0.5"]), (1e300, ["inf"])]
)
def test_error_names_the_image_with_a_value_out_of_range(tmp_path: Path, value: float, facts: list[str], fortran: bool) -> None:
    array = EXACT.copy(order="F" if fortran else "C")
    array[5, 2, 1, 3] = value
    np.save(tmp_path / "a.npy", array)
    stored = npy_array(tmp_path / "a.npy")
    for read in (stored.images, lambda: list(stored.batches()), lambda: stored.images(np.array([2, 5]))):
        with pytest.raises(ImagesError, match=r"image 5 of .*a\.npy") as caught:
            read()
        assert [fact for fact in facts if fact not in str(caught.value)] == []
    assert stored.images(np.array([0, 1, 6])).shape == (3, 3, 5, 4)


def test_missing_arrays_and_files_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=BYTES, y=BYTES)
    with raises(ImagesError, "images and labels | x, y"):
        npz_arrays(tmp_path / "a.npz", ["images", "labels"])
    np.savez(tmp_path / "a.npz")
    with pytest.raises(ImagesError, match="nothing"):
        npz_arrays(tmp_path / "a.npz", ["images"])
    np.save(tmp_path / "single.npy", BYTES)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(ImagesError, match="array"):
        npz_arrays(tmp_path / "single.npz", ["images"])
    for name, read in (("none.npy", npy_array), ("none.npz", lambda path: npz_arrays(path, ["images"]))):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)


def test_archive_with_offset_before_its_start_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=BYTES)
    content = bytearray(path.read_bytes())
    content[-6:-2] = (len(content) - 60).to_bytes(4, "little")  # the offset of the central directory, in the last 22 bytes
    path.write_bytes(content)
    with raises(ImagesError, "a.npz | damaged"):
        npz_arrays(path, ["images"])


@given(st.data())
def test_damaged_files_raise_images_error(tmp_path: Path, data: st.DataObject) -> None:
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    np.save(tmp_path / "a.npy", BYTES)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.write(tmp_path / "a.npy", "images.npy")
    path = tmp_path / data.draw(st.sampled_from(["a.npy", "a.npz"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(1, 4))):
        if content:
            content[data.draw(st.integers(0, min(len(content) - 1, data.draw(st.sampled_from([130, 10**6])))))] = data.draw(
                st.integers(0, 255)
            )
    path.write_bytes(content)
    try:
        stored = npy_array(path) if path.suffix == ".npy" else npz_arrays(path, ["images"])["images"]
        if stored.float_bytes < 10**6:
            stored.images()
    except ImagesError as error:
        message = str(error)
    else:
        return  # a damaged pixel in a file without a checksum
    assert str(path) in message


CHILD = """
import re, sys
from pathlib import Path
from defensemble_images import check_memory, npz_arrays
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
stored = npz_arrays(Path(sys.argv[1]), ["images"])["images"]
stored.check_images((3, 64, 64))
assert peak() - before < 32 << 20
print(stored.float_bytes)
stored.images()
print(peak() - before)
"""


@pytest.mark.slow
def test_reading_an_archive_needs_about_the_memory_of_its_floats(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((8000, 3, 64, 64), np.uint8))
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path / "a.npz"], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert (tmp_path / "a.npz").stat().st_size < size / 1000
    assert size < peak < 1.25 * size
