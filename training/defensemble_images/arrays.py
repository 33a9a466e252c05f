"""Images in `.npy` and `.npz` files: the header is read first, the data in pieces, straight to where they are to be.

A header states shape and type, so that what is too large or of another kind is refused before it is read. Of a `.npz` file of 3 MB, the
arrays may take gigabytes.
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
from .class_names import listed
from .errors import ImagesError
from .regular_files import irregular

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16
_PIECE = 8 << 20
_SCALES: dict[type[np.generic], int] = {np.uint8: 255, np.uint16: 65535}  # of either byte order


@dataclass(frozen=True)
class StoredArray:
    """An array in a file of which only the header was read."""

    where: str  # how errors name it
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # no Python objects
    fortran_order: bool  # whether the first axis varies fastest in the file
    path: Path
    member: str | None  # of a `.npz` file; None: the file is a `.npy` file
    offset: int  # bytes before the data

    @property
    def float_bytes(self) -> int:
        """Bytes of the array as float32."""
        return 4 * math.prod(self.shape)

    def check_images(self, image_shape: tuple[int, int, int] | None = None) -> None:
        """Raise where this does not hold images (n, C, H, W), with n at least 1, as far as its header shows.

        `image_shape` is (C, H, W) of each, -1 where any size will do; with None, any shape will do.

        Raises:
            ImagesError: the type or the shape is another.
        """
        if self.dtype.type not in _SCALES and self.dtype.kind != "f":
            raise ImagesError(
                f"{self.where} holds {self.dtype}, expected floats in [0, 1], uint8 (divided by 255) or uint16 (divided by 65,535): "
                "convert it"
            )
        if image_shape is None:
            return
        fits = len(self.shape) == 4 and all(got == size or (size < 0 < got) for got, size in zip(self.shape[1:], image_shape, strict=True))
        if not fits or self.shape[0] == 0:
            wanted = ", ".join("any" if size < 0 else str(size) for size in image_shape)
            raise ImagesError(
                f"{self.where} has the shape {self.shape}, expected images of the shape ({wanted}) in an array (N, {wanted}) with N of at "
                "least 1"
            )

    def images(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Read images, float32 (n, C, H, W) in [0, 1]: uint8 divided by 255, uint16 by 65,535, floats as they are.

        `rows` states which ones, in ascending order; None: all.

        Raises:
            ImagesError: the file is damaged, the type is another, or a value is outside of [0, 1].
            OSError: the file cannot be read.
        """
        self.check_images()
        chosen = np.arange(self.shape[0]) if rows is None else rows
        images = np.empty((len(chosen), *self.shape[1:]), np.float32)
        for start, piece in self._pieces():
            if self.fortran_order:
                images.T[start : start + len(piece)] = _floats(piece[..., chosen])
            else:
                first, last = np.searchsorted(chosen, (start, start + len(piece)))
                images[first:last] = _floats(piece[chosen[first:last] - start])
        self._check_range(images, chosen)
        return images

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Read all images in order, a few megabytes at a time (in Fortran order, all at once); raises as `images` does."""
        self.check_images()
        if self.fortran_order:
            yield self.images()
            return
        for start, piece in self._pieces():
            images = _floats(piece)
            self._check_range(images, np.arange(start, start + len(piece)))
            yield images

    def values(self) -> NDArray[Any]:
        """Read the whole array as it is; raises as `images` does, for a damaged file."""
        values = np.empty(self.shape, self.dtype)
        for start, piece in self._pieces():
            (values.T if self.fortran_order else values)[start : start + len(piece)] = piece
        return values

    def _pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Return parts of the array along the axis that varies slowest in the file, each with its start on it."""
        shape = self.shape[::-1] if self.fortran_order else self.shape
        row = math.prod(shape[1:])
        step = max(1, _PIECE // max(1, row * self.dtype.itemsize))
        with _reading(self.path, self.where), _stream(self.path, self.member) as stream:
            _read(stream, self.offset)
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                data = _read(stream, count * row * self.dtype.itemsize)
                yield start, np.frombuffer(data, self.dtype, count * row).reshape(count, *shape[1:])

    def _check_range(self, images: NDArray[np.float32], rows: NDArray[np.intp]) -> None:
        if self.dtype.type in _SCALES or not images.size or (images.min() >= 0 and images.max() <= 1):  # NaN fails it
            return
        for row, image in zip(rows.tolist(), images, strict=True):
            fault = range_problem(image, f"image {row} of {self.where}")
            if fault is not None:
                raise ImagesError(fault)


def npy_array(path: Path) -> StoredArray:
    """Read the header of a `.npy` file.

    Raises:
        ImagesError: it is another file, or is shorter than its header states.
        OSError: the file cannot be read.
    """
    _check_regular(path)
    with _reading(path, str(path)), path.open("rb") as stream:
        return _stored(stream, str(path), path, None, path.stat().st_size)


def npz_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, StoredArray]:
    """Read the headers of arrays in a `.npz` file: of the required ones, and of the optional ones that it holds.

    Raises:
        ImagesError: it is another file, lacks an array, or an array is shorter than its header states.
        OSError: the file cannot be read.
    """
    _check_regular(path)
    found: dict[str, StoredArray] = {}
    with _reading(path, str(path)), path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise ImagesError(f"{path} holds a single array, as a .npy file does, expected a .npz file: save it by numpy.savez")
        with ZipFile(file) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in required if name not in held]
            if missing:
                raise ImagesError(
                    f"{path} lacks {' and '.join(missing)}: it holds {listed(list(held)) or 'nothing'}, expected the arrays "
                    f"{' and '.join(required)}: save it by numpy.savez"
                )
            for name in (*required, *(one for one in optional if one in held)):
                with archive.open(held[name]) as stream:
                    where = f"the array `{name}` of {path}"
                    found[name] = _stored(stream, where, path, held[name].filename, held[name].file_size)
    return found


def _stored(stream: IO[bytes], where: str, path: Path, member: str | None, size: int) -> StoredArray:
    head = io.BytesIO(stream.read(_LONGEST_HEADER))  # a header that claims more is damaged
    version = np.lib.format.read_magic(head)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ImagesError(f"{where} has the format {version}, expected 1.0 or 2.0, as of an array of numbers")
    shape, fortran_order, dtype = read(head)
    if dtype.hasobject:
        raise ImagesError(f"{where} holds Python objects, which are not read (pickles can run programs): save an array of numbers")
    stored = StoredArray(where, shape, dtype, fortran_order, path, member, head.tell())
    needed = stored.offset + dtype.itemsize * math.prod(shape)
    if min(shape, default=0) < 0 or needed > size:
        raise ImagesError(f"{where} is cut short or damaged: it has {size:,} bytes, and its header states {needed:,}")
    return stored


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinite values are reported as outside of the range
        floats = values.astype(np.float32)
    if values.dtype.type in _SCALES:
        floats /= np.float32(_SCALES[values.dtype.type])
    return floats


def _check_regular(path: Path) -> None:
    kind = irregular(path.stat().st_mode)
    if kind is not None and not path.is_dir():  # opening a folder is an error, and does not wait
        raise ImagesError(f"{path} is {kind}, expected a regular file")


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    """Report whatever a damaged file makes numpy and zipfile raise as an `ImagesError`."""
    try:
        yield
    except (ImagesError, MemoryError):
        raise
    except Exception as error:
        # EINVAL: an offset in a damaged archive leads before the start of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            if error.filename is None:
                error.filename = str(path)
            raise
        kind = "a .npz file" if isinstance(error, BadZipFile) else "an array of numbers, as numpy saves it,"
        raise ImagesError(f"{where} is not {kind} or is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


@contextmanager
def _stream(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    if member is None:
        with path.open("rb") as stream:
            yield stream
    else:
        with ZipFile(path) as archive, archive.open(member) as stream:
            yield stream


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("it ends too early")
    return data
