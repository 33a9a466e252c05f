"""Images that take long to make, each array in a `.npy` file that later runs use again.

A file grows by batches, each flushed to disk, and an interrupted run continues it. When it is complete, a `.json` file with the digest of
its content is written next to it. The name of both depends on everything that the images depend on. A complete file with other content
than the digest states is damaged and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError

_BATCH = 64
_CHUNK_BYTES = 1 << 22
Shape = tuple[int, int, int, int]


def cached_images(
    folder: Path,
    name: str,
    origin: Mapping[str, Any],
    shape: Shape,
    make: Callable[[int], NDArray[np.uint8]],
    on_done: Callable[[int], None],
) -> NDArray[np.uint8]:
    """Return images from their file, uint8 (n, C, H, W), mapped read-only. Make those that it lacks.

    Args:
        folder: Folder of the files. It is created.
        name: First part of the file's name.
        origin: Everything that the images depend on, as JSON.
        shape: (n, C, H, W).
        make: Returns the image with a number from 0 to n - 1, uint8 (C, H, W).
        on_done: Called with the number of images in the file.

    Raises:
        InputError: There is not enough space.
        OSError: A file cannot be read or written. The images that were made are used by the next run.
    """
    from defensemble_repository.filesystem.atomic_write import os_errors_about, write_atomic

    path = cache_path(folder, name, origin)
    stated = path.with_suffix(".json")
    with os_errors_about(path):
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:  # created if missing, not truncated
            fcntl.flock(file, fcntl.LOCK_EX)  # another run that makes the same images is waited for
            header = _header(shape)
            if not (stated.exists() and _stated_digest(stated) == _digest(file)):
                if stated.exists():  # damaged
                    stated.unlink()
                    file.truncate(0)
                _fill(file, header, shape, make, on_done)
                write_atomic(stated, json.dumps({**origin, "shape": shape, "sha256": _digest(file)}, indent=1).encode())
        on_done(shape[0])
        mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", len(header), shape)
        return mapped


def cache_path(folder: Path, name: str, origin: Mapping[str, Any]) -> Path:
    """Return the path of the file with certain images.

    Args:
        folder: Folder of the files.
        name: First part of the file's name.
        origin: Everything that the images depend on, as JSON.
    """
    return folder / f"{name}-{hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]}.npy"


def check_space(folder: Path, needed: int) -> None:
    """Raise `InputError` if a folder, which need not exist, has less than `needed` bytes of free space."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if (free := shutil.disk_usage(existing).free) < needed:
        raise InputError(
            f"the images need {needed:,} bytes in {folder}, but only {free:,} are free: free space, pass --cache FOLDER on a larger disk, "
            "or measure fewer images or corruptions"
        )


def _fill(file: BinaryIO, header: bytes, shape: Shape, make: Callable[[int], NDArray[np.uint8]], on_done: Callable[[int], None]) -> None:
    """Append the images that a file lacks."""
    count, image_bytes = shape[0], math.prod(shape[1:])
    present = (file.seek(0, os.SEEK_END) - len(header)) // image_bytes
    # A batch begins only after the one before is on the disk; after a power failure, only the last one can have other content.
    done = max(present - 1, 0) // _BATCH * _BATCH
    file.truncate(len(header) + done * image_bytes if done else 0)
    if not done:
        file.write(header)
    for start in range(done, count, _BATCH):
        stop = min(start + _BATCH, count)
        for index in range(start, stop):
            file.write(make(index).tobytes())
        file.flush()
        os.fsync(file)
        on_done(stop)


def _header(shape: Shape) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _stated_digest(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["sha256"])
    except (ValueError, KeyError, TypeError):
        return None


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
