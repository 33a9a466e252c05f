"""Read images from `.npy` and `.npz` files: first the header, then the data in chunks, directly into the result.

The header states shape and dtype, so arrays that are too large or of the wrong type are rejected before their data is read. The arrays of
a 3 MB `.npz` file can take gigabytes.
"""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from .checks import range_problem
from .class_names import format_names
from .errors import ImagesError
from .regular_files import irregular_file_kind

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 8 << 20
_SCALES: dict[type[np.generic], int] = {np.uint8: 255, np.uint16: 65535}  # of either byte order


@dataclass(frozen=True)
class StoredArray:
    """An array in a `.npy` or `.npz` file. Only its header has been read.

    Example:
        >>> array = npy_array(path)
        >>> array.check_images((3, 32, 32))
        >>> images = array.images()
    """

    where: str  # the array's name in error messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # never Python objects
    fortran_order: bool  # whether the first axis varies fastest in the file
    path: Path
    entry: str | None  # entry of the `.npz` file; None for a `.npy` file
    offset: int  # bytes before the data

    @property
    def float_bytes(self) -> int:
        """Size of the array as float32, in bytes."""
        return 4 * math.prod(self.shape)

    def check_images(self, image_shape: tuple[int, int, int] | None = None) -> None:
        """Check from the header that the array holds images (n, C, H, W) with n >= 1.

        `image_shape` is the expected (C, H, W), with -1 for any size. None skips the shape check.

        Raises:
            ImagesError: The dtype or the shape is wrong.
        """
        if self.dtype.type not in _SCALES and self.dtype.kind != "f":
            raise ImagesError(
                f"{self.where} has dtype {self.dtype}; expected floats in [0, 1], uint8 (divided by 255) or uint16 (divided by 65,535). "
                "Convert the array."
            )
        if image_shape is None:
            return
        matches = len(self.shape) == 4 and all(
            got == size or (size < 0 < got) for got, size in zip(self.shape[1:], image_shape, strict=True)
        )
        if not matches or self.shape[0] == 0:
            expected = ", ".join("any" if size < 0 else str(size) for size in image_shape)
            raise ImagesError(
                f"{self.where} has the shape {self.shape}; expected images of the shape ({expected}) in an array (N, {expected}) with N of "
                "at least 1"
            )

    def images(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Read images as float32 (n, C, H, W) in [0, 1]: uint8 divided by 255, uint16 by 65,535, floats unchanged.

        `rows` selects images by index, in ascending order. None reads all.

        Raises:
            ImagesError: The file is damaged, the dtype is wrong, or a value is outside [0, 1].
            OSError: The file cannot be read.
        """
        self.check_images()
        selected = np.arange(self.shape[0]) if rows is None else rows
        images = np.empty((len(selected), *self.shape[1:]), np.float32)
        for start, chunk in self._chunks():
            if self.fortran_order:
                images.T[start : start + len(chunk)] = _to_float(chunk[..., selected])
            else:
                first, last = np.searchsorted(selected, (start, start + len(chunk)))
                images[first:last] = _to_float(chunk[selected[first:last] - start])
        self._check_range(images, selected)
        return images

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Yield all images in order, a few megabytes at a time (one batch for Fortran order).

        Raises the same errors as `images`, after it has yielded the images before the first invalid one.
        """
        self.check_images()
        if self.fortran_order:
            yield self.images()
            return
        for start, chunk in self._chunks():
            images = _to_float(chunk)
            position, error = self._range_error(images, np.arange(start, start + len(chunk)))
            yield images[:position]
            if error is not None:
                raise error

    def values(self) -> NDArray[Any]:
        """Read the whole array unconverted. Raises the same errors as `images` for a damaged file."""
        values = np.empty(self.shape, self.dtype)
        for start, chunk in self._chunks():
            (values.T if self.fortran_order else values)[start : start + len(chunk)] = chunk
        return values

    def _chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (start, chunk) along the axis that varies slowest in the file."""
        shape = self.shape[::-1] if self.fortran_order else self.shape
        row = math.prod(shape[1:])
        step = max(1, _CHUNK_BYTES // max(1, row * self.dtype.itemsize))
        with _translated_errors(self.path, self.where), _open_stream(self.path, self.entry) as stream:
            _read_exactly(stream, self.offset)
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                data = _read_exactly(stream, count * row * self.dtype.itemsize)
                yield start, np.frombuffer(data, self.dtype, count * row).reshape(count, *shape[1:])

    def _check_range(self, images: NDArray[np.float32], rows: NDArray[np.intp]) -> None:
        _, error = self._range_error(images, rows)
        if error is not None:
            raise error

    def _range_error(self, images: NDArray[np.float32], rows: NDArray[np.intp]) -> tuple[int, ImagesError | None]:
        """Return the number of valid images before the first invalid one, and its error."""
        if self.dtype.type in _SCALES or not images.size or (images.min() >= 0 and images.max() <= 1):  # NaN fails it
            return len(images), None
        for position, (row, image) in enumerate(zip(rows.tolist(), images, strict=True)):
            problem = range_problem(image, f"image {row} of {self.where}")
            if problem is not None:
                return position, ImagesError(problem)
        return len(images), None


def npy_array(path: Path, where: str | None = None) -> StoredArray:
    """Read the header of a `.npy` file.

    Args:
        path: The file.
        where: Its name in error messages; None for the path.

    Raises:
        ImagesError: The file is not a `.npy` file, or is shorter than its header states.
        OSError: The file cannot be read.
    """
    _check_regular(path)
    name = where or str(path)
    with _translated_errors(path, name), path.open("rb") as stream:
        return _read_header(stream, name, path, None, path.stat().st_size)


def npz_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, StoredArray]:
    """Read the headers of arrays in a `.npz` file.

    Args:
        path: The file.
        required: Arrays that the file must hold.
        optional: Arrays that are returned if the file holds them.

    Raises:
        ImagesError: The file is not a `.npz` file, lacks an array, or an array is shorter than its header states.
        OSError: The file cannot be read.
    """
    _check_regular(path)
    arrays: dict[str, StoredArray] = {}
    with _translated_errors(path, str(path)), path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise ImagesError(f"{path} is a .npy file with a single array; expected a .npz file. Save it with numpy.savez.")
        with ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in required if name not in members]
            if missing:
                raise ImagesError(
                    f"{path} lacks {' and '.join(missing)}: it holds {format_names(list(members)) or 'nothing'}; expected the arrays "
                    f"{' and '.join(required)}. Save them with numpy.savez."
                )
            for name in (*required, *(name for name in optional if name in members)):
                with archive.open(members[name]) as stream:
                    where = f"the array `{name}` of {path}"
                    arrays[name] = _read_header(stream, where, path, members[name].filename, members[name].file_size)
    return arrays


def _read_header(stream: IO[bytes], where: str, path: Path, entry: str | None, size: int) -> StoredArray:
    head = io.BytesIO(stream.read(_MAX_HEADER_BYTES))  # a longer header is damaged
    version = np.lib.format.read_magic(head)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ImagesError(f"{where} has the format {version}; expected 1.0 or 2.0, the formats of numeric arrays")
    shape, fortran_order, dtype = read(head)
    if dtype.hasobject:
        raise ImagesError(f"{where} holds Python objects, which are not read (pickles can run programs). Save a numeric array.")
    array = StoredArray(where, shape, dtype, fortran_order, path, entry, head.tell())
    expected = array.offset + dtype.itemsize * math.prod(shape)
    if min(shape, default=0) < 0 or expected > size:
        raise ImagesError(f"{where} is truncated or damaged: it has {size:,} bytes, but its header states {expected:,}")
    return array


def _to_float(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # the range check reports infinite values
        floats = values.astype(np.float32)
    if values.dtype.type in _SCALES:
        floats /= np.float32(_SCALES[values.dtype.type])
    return floats


def _check_regular(path: Path) -> None:
    kind = irregular_file_kind(path.stat().st_mode)
    if kind is not None and not path.is_dir():  # opening a folder fails immediately, it never blocks
        raise ImagesError(f"{path} is {kind}; expected a regular file")


@contextmanager
def _translated_errors(path: Path, where: str) -> Iterator[None]:
    """Raise every error that numpy and zipfile raise for a damaged file as an `ImagesError`."""
    try:
        yield
    except (ImagesError, MemoryError):
        raise
    except Exception as error:
        # EINVAL: an offset in a damaged archive points before the start of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            if error.filename is None:
                error.filename = str(path)
            raise
        kind = "a .npz file" if isinstance(error, BadZipFile) else "an array of numbers saved by numpy,"
        raise ImagesError(f"{where} is not {kind} or is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


@contextmanager
def _open_stream(path: Path, entry: str | None) -> Iterator[IO[bytes]]:
    if entry is None:
        with path.open("rb") as stream:
            yield stream
    else:
        with ZipFile(path) as archive, archive.open(entry) as stream:
            yield stream


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("it ends too early")
    return data
