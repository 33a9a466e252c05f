"""Decoded images in the user's cache: written once, as a whole or not at all, and memory-mapped from then on.

An entry is a folder `$XDG_CACHE_HOME/defensemble/datasets/<key>/` with `train.npy` and `test.npy` ((n, C, H, W), uint8, or float32 in
[0, 1] where an image has 16 bits a pixel), `train_labels.npy` and `test_labels.npy` (int64) and `meta.json`. It is written in `.<key>.part`
beside it, under a lock that ends with its process, and renamed. Arrays are written as files, not through a memory map: where the disk is
full, a map kills the process.
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
    mean: tuple[float, ...]  # of the training images, in [0, 1], one value a channel, rounded to 4 decimals
    std: tuple[float, ...]  # as mean
    source: str  # one line, where the images came from and in which state
    digest: str  # 16 hexadecimal digits over pixels and labels of both parts
    damaged: int  # images that were left out
    first_damage: tuple[str, str] | None  # where the first of them is, and why; None where there are none
    animations: int  # images of which only the first frame was read
    first_animation: str | None  # where the first of them is; None where there are none
    train_shape: tuple[int, ...]  # (n, C, H, W)
    test_shape: tuple[int, ...]  # as train_shape


@dataclass(frozen=True, eq=False)
class DecodeJob:
    """What an entry is made from: a source, where it is from (for `EntryMetadata.source`), and how its images are decoded to which shape."""

    source: Source
    origin: str
    channels: int
    size: int
    options: DecodeOptions

    @property
    def nbytes(self) -> int:
        """Bytes that the entry takes."""
        count = len(self.source.train.labels) + len(self.source.test.labels)
        return count * (self.channels * self.size**2 + 8) + ENTRY_OVERHEAD


@dataclass(frozen=True, eq=False)
class Entry:
    """A decoded dataset; the pixels are read-only memory maps."""

    meta: EntryMetadata
    train_pixels: Pixels
    train_labels: npt.NDArray[np.int64]
    test_pixels: Pixels
    test_labels: npt.NDArray[np.int64]


def cache_folder() -> Path:
    """Return the folder of the decoded datasets: in `$XDG_CACHE_HOME`, or in `~/.cache` where that is unset or relative."""
    return platformdirs.user_cache_path("defensemble") / "datasets"


def entry_key(name: str, size: int | None, origin: object) -> str:
    """Return the name of an entry: the same for the same dataset, size, way of decoding and `origin` (anything that JSON holds)."""
    text = json.dumps([RULES, name, size, origin])
    return f"{name}-{size or 'as-is'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_entry(key: str) -> Entry | None:
    """Open an entry; None where there is none, or only a damaged one."""
    folder = cache_folder() / key
    try:
        meta = msgspec.convert(json.loads((folder / "meta.json").read_text()), EntryMetadata)
        # As plain arrays: what is computed from a memmap is one too, without a map.
        pixels = [np.asarray(np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)) for split in ("train", "test")]
        labels = [np.load(folder / f"{split}_labels.npy", allow_pickle=False) for split in ("train", "test")]
    except (OSError, ValueError, msgspec.ValidationError, TypeError, EOFError, AttributeError):
        return None
    entry = Entry(meta, pixels[0], labels[0], pixels[1], labels[1])
    shapes = (meta.train_shape, meta.test_shape)
    fitting = all(one.dtype == np.int64 and one.shape == shape[:1] for one, shape in zip(labels, shapes, strict=True))
    return entry if fitting and (entry.train_pixels.shape, entry.test_pixels.shape) == shapes else None


def load_or_decode_entry(key: str, prepare: Callable[[], DecodeJob], *, skip_damaged: bool, on_progress: OnProgress) -> Entry:
    """Open an entry; where there is none yet, decode what `prepare` returns first, or wait for the process that does.

    Raises:
        DataError: the cache has no room or cannot be written.
        defensemble_images.DamagedImageError: an image cannot be decoded, and damaged images are not skipped.
    """
    entry = read_entry(key)
    if entry is None:
        with _exclusive_folder(cache_folder() / f".{key}.part", on_progress) as part:
            if (entry := read_entry(key)) is None:  # nobody else wrote it while we waited
                undecoded = prepare()
                _check_space(undecoded)
                with _translated_os_errors(undecoded):
                    _write(part, undecoded, on_progress)
                    shutil.rmtree(cache_folder() / key, ignore_errors=True)  # a damaged one
                    part.rename(cache_folder() / key)
                    sync(cache_folder())
                entry = read_entry(key)
    if entry is None:
        raise DataError(f"{cache_folder() / key} cannot be read back; expected what was just written; is another program at work in it?")
    if entry.meta.first_damage is not None and not skip_damaged:
        raise DamagedImageError(*entry.meta.first_damage)
    return entry


def _check_space(undecoded: DecodeJob) -> None:
    free = shutil.disk_usage(cache_folder()).free
    if free < undecoded.nbytes:
        raise DataError(
            f"decoding needs {undecoded.nbytes:,} bytes in {cache_folder()}, of which {free:,} are free; "
            "make room, take a smaller size, or let XDG_CACHE_HOME name a folder on a larger disk"
        )


@contextmanager
def _translated_os_errors(undecoded: DecodeJob | None = None) -> Iterator[None]:
    """Raise a `DataError` where the cache cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and undecoded is not None:
            raise DataError(
                f"the disk of {cache_folder()} was full before all images were decoded ({error.strerror}): they need "
                f"{undecoded.nbytes:,} bytes; what was written is removed; make room, "
                "or let XDG_CACHE_HOME name a folder on a larger disk"
            ) from error
        raise DataError(
            f"the cache of decoded images, {cache_folder()}, cannot be written: {error}; "
            "mend its permissions, or let XDG_CACHE_HOME name another folder"
        ) from error


@contextmanager
def _exclusive_folder(part: Path, on_progress: OnProgress) -> Iterator[Path]:
    """Hold an empty folder that no other process holds; it is removed in the end unless it was renamed."""
    while True:
        try:
            with _translated_os_errors():
                part.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # its holder was done with it in between
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress("waiting for another process that decodes the same images", 0, 1)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same_inode(part, descriptor):  # renamed or removed by its holder
                continue
            for left in part.iterdir():  # by a process that was killed
                left.unlink()
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


def _write(folder: Path, undecoded: DecodeJob, on_progress: OnProgress) -> None:
    source, origin = undecoded.source, undecoded.origin
    parts: list[WrittenPart] = []
    for split, part in (("train", source.train), ("test", source.test)):
        shape = (undecoded.channels, undecoded.size, undecoded.size)
        parts.append(write_part(folder, split, part, shape, undecoded.options, on_progress))
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
