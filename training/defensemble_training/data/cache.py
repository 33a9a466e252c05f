"""Cache of decoded images in the user's cache folder. Entries are written atomically and then memory-mapped.

An entry is a folder `$XDG_CACHE_HOME/defensemble/datasets/<key>/` with `train.npy` and `test.npy` ((n, C, H, W), uint8, or float32 in
[0, 1] if an image has 16 bits per pixel), `train_labels.npy` and `test_labels.npy` (int64), and `meta.json`. It is written to `.<key>.part`
in the same folder, under a lock that ends with its process, and then renamed. Arrays are written with file writes, because a write to a
memory map kills the process when the disk is full.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import platformdirs

from defensemble_images.errors import DamagedImageError
from defensemble_images.reader import RULES, Pixels

from ..atomic_write import sync, write_atomic
from ..errors import DataError
from .cache_writer import DecodeOptions, OnProgress, WrittenPart, write_part
from .source import Source, check_classes

ENTRY_OVERHEAD = 2**20  # bytes for headers and meta.json
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class EntryMetadata:
    """The metadata of an entry, `meta.json`."""

    class_names: tuple[str, ...]  # label i is class_names[i]
    mean: tuple[float, ...]  # of the training images, in [0, 1], one value per channel, rounded to 4 decimals
    std: tuple[float, ...]  # like mean
    source: str  # one line: where the images came from, and their version
    digest: str  # 16 hexadecimal digits over pixels and labels of both parts
    damaged: int  # number of images that were left out
    first_damage: tuple[str, str] | None  # the first of them and the reason; None if there are none
    animations: int  # number of images of which only the first frame was read
    first_animation: str | None  # the first of them; None if there are none
    train_shape: tuple[int, ...]  # (n, C, H, W)
    test_shape: tuple[int, ...]  # like train_shape


@dataclass(frozen=True, eq=False)
class DecodeJob:
    """The inputs of an entry: encoded images, and how to decode them."""

    source: Source
    origin: str  # where the images came from, for `EntryMetadata.source`
    channels: int
    size: int  # height and width
    options: DecodeOptions

    @property
    def nbytes(self) -> int:
        """Size of the entry in bytes."""
        count = len(self.source.train.labels) + len(self.source.test.labels)
        return count * (self.channels * self.size**2 + 8) + ENTRY_OVERHEAD


@dataclass(frozen=True, eq=False)
class Entry:
    """A decoded dataset. The pixels are read-only memory maps."""

    meta: EntryMetadata
    train_pixels: Pixels
    train_labels: npt.NDArray[np.int64]
    test_pixels: Pixels
    test_labels: npt.NDArray[np.int64]


def cache_folder() -> Path:
    """Return the folder of decoded datasets: in `$XDG_CACHE_HOME`, or in `~/.cache` if that is unset or relative."""
    return platformdirs.user_cache_path("defensemble") / "datasets"


def entry_key(name: str, size: int | None, origin: object) -> str:
    """Return the name of an entry. It depends on the dataset, the size, the decoding rules and `origin` (any JSON value)."""
    text = json.dumps([RULES, name, size, origin])
    return f"{name}-{size or 'as-is'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_entry(key: str) -> Entry | None:
    """Open an entry. Return None if it does not exist or is damaged."""
    folder = cache_folder() / key
    try:
        meta = msgspec.convert(json.loads((folder / "meta.json").read_text()), EntryMetadata)
        # As plain arrays: the result of an operation on a memmap has the class memmap too, but maps no file.
        pixels = [np.asarray(np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)) for split in ("train", "test")]
        labels = [np.load(folder / f"{split}_labels.npy", allow_pickle=False) for split in ("train", "test")]
    except (OSError, ValueError, msgspec.ValidationError, TypeError, EOFError, AttributeError):
        return None
    entry = Entry(meta, pixels[0], labels[0], pixels[1], labels[1])
    shapes = (meta.train_shape, meta.test_shape)
    is_consistent = all(array.dtype == np.int64 and array.shape == shape[:1] for array, shape in zip(labels, shapes, strict=True))
    return entry if is_consistent and (entry.train_pixels.shape, entry.test_pixels.shape) == shapes else None


def load_or_decode_entry(key: str, prepare: Callable[[], DecodeJob], *, skip_damaged: bool, on_progress: OnProgress) -> Entry:
    """Open an entry. If it does not exist, run the job that `prepare` returns, or wait for the process that decodes the same images.

    Args:
        key: Name of the entry.
        prepare: Returns the inputs of the entry. Called only if it does not exist.
        skip_damaged: Whether to return an entry from which damaged images were left out.
        on_progress: Called with what is being done, the number of images done, and their total.

    Raises:
        DataError: The cache has no space or is not writable.
        defensemble_images.DamagedImageError: An image cannot be decoded, and damaged images are not skipped.
    """
    entry = read_entry(key)
    if entry is None:
        with _exclusive_folder(cache_folder() / f".{key}.part", on_progress) as part:
            if (entry := read_entry(key)) is None:  # no other process wrote it while this one waited
                job = prepare()
                _check_space(job)
                with _translated_os_errors(job):
                    _write(part, job, on_progress)
                    shutil.rmtree(cache_folder() / key, ignore_errors=True)  # a damaged entry
                    part.rename(cache_folder() / key)
                    sync(cache_folder())
                entry = read_entry(key)
    if entry is None:
        raise DataError(
            f"the cache entry {cache_folder() / key} was written but cannot be read. Check whether another program changes this folder."
        )
    if entry.meta.first_damage is not None and not skip_damaged:
        raise DamagedImageError(*entry.meta.first_damage)
    return entry


def _check_space(job: DecodeJob) -> None:
    free = shutil.disk_usage(cache_folder()).free
    if free < job.nbytes:
        raise DataError(
            f"decoding needs {job.nbytes:,} bytes in {cache_folder()}, but only {free:,} are free. "
            "Free space, use a smaller size, or set XDG_CACHE_HOME to a folder on a larger disk."
        )


@contextmanager
def _translated_os_errors(job: DecodeJob | None = None) -> Iterator[None]:
    """Raise errors of writing the cache as a `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and job is not None:
            raise DataError(
                f"the disk of {cache_folder()} was full before all images were decoded ({error.strerror}): they need "
                f"{job.nbytes:,} bytes. The partial entry was removed. Free space, or set XDG_CACHE_HOME to a folder on a larger disk."
            ) from error
        raise DataError(
            f"the cache of decoded images, {cache_folder()}, cannot be written: {error}. "
            "Fix its permissions, or set XDG_CACHE_HOME to another folder."
        ) from error


@contextmanager
def _exclusive_folder(part: Path, on_progress: OnProgress) -> Iterator[Path]:
    """Create an empty folder and lock it. It is removed on exit unless it was renamed."""
    while True:
        try:
            with _translated_os_errors():
                part.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # the process that held it renamed or removed it in between
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress("waiting for another process that decodes the same images", 0, 1)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same_inode(part, descriptor):  # the process that held it renamed or removed it
                continue
            for file in part.iterdir():  # left by a process that was killed
                file.unlink()
            try:
                yield part
            finally:
                if _is_same_inode(part, descriptor):
                    shutil.rmtree(part)
            return
        finally:
            os.close(descriptor)


def _is_same_inode(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(folder: Path, job: DecodeJob, on_progress: OnProgress) -> None:
    source, origin = job.source, job.origin
    parts: list[WrittenPart] = []
    for split, part in (("train", source.train), ("test", source.test)):
        shape = (job.channels, job.size, job.size)
        parts.append(write_part(folder, split, part, shape, job.options, on_progress))
    train, test = parts
    damage = (*train.damage, *test.damage)
    animations = (*train.animations, *test.animations)
    where = f"{origin} (without {len(damage)} damaged images)" if damage else origin
    check_classes(source.class_names, train.labels, test.labels, where)
    formats = "/".join(sorted(train.formats | test.formats))
    skipped = f", {len(damage)} damaged {'image' if len(damage) == 1 else 'images'} left out" if damage else ""
    meta = EntryMetadata(
        class_names=source.class_names,
        mean=train.mean,
        std=train.std,
        source=f"{origin} as {source.layout}, {formats}-coded{skipped}",
        digest=hashlib.sha256(train.digest + test.digest).hexdigest()[:16],
        damaged=len(damage),
        first_damage=(damage[0].where, damage[0].reason) if damage else None,
        animations=len(animations),
        first_animation=animations[0] if animations else None,
        train_shape=train.shape,
        test_shape=test.shape,
    )
    write_atomic(folder / "meta.json", json.dumps(asdict(meta), indent=1).encode())
