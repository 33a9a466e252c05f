"""Decode one part of a dataset to `.npy` files in chunks, so that it need not fit into memory."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from defensemble_images.decoding import DecodedBatch, decode_images
from defensemble_images.errors import DamagedImageError
from defensemble_images.memory import check_memory, default_limit
from defensemble_images.preprocessing import Preprocessing

from ..errors import DataError
from .source import EncodedPart

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DecodeOptions:
    """How the images of a part are decoded."""

    preprocessing: Preprocessing | None  # how they are resized; None: all must have the size
    skip_damaged: bool = False  # whether to leave out images that cannot be decoded
    max_memory: int | None = None  # memory limit for decoding in bytes; None: half of the free memory

    def memory_check(self) -> Callable[[str, int], None]:
        """Return the `check` argument of `decode_images`, which raises for images that need too much memory."""
        limit = default_limit() if self.max_memory is None else self.max_memory  # once: it takes longer than decoding an image

        def check(where: str, needed: int) -> None:
            if needed > limit:
                check_memory(f"decoding {where}", needed, self.max_memory)

        return check


@dataclass(frozen=True, eq=False)
class WrittenPart:
    """Summary of a part that was written."""

    shape: tuple[int, int, int, int]  # (n, C, H, W) of the pixels
    labels: npt.NDArray[np.int64]  # (n,)
    mean: tuple[float, ...]  # of the images in [0, 1], one value per channel, rounded to 4 decimals
    std: tuple[float, ...]  # like mean
    digest: bytes  # SHA-256 over pixels and labels
    damage: tuple[DamagedImageError, ...]  # one error for each image that was left out
    formats: frozenset[str]  # such as {"JPEG"}
    animations: tuple[str, ...]  # images of which only the first frame was read


def write_part(
    folder: Path, split: str, part: EncodedPart, image_shape: tuple[int, int, int], options: DecodeOptions, on_progress: OnProgress
) -> WrittenPart:
    """Decode one part to `<split>.npy` and `<split>_labels.npy`, as uint8, or as float32 in [0, 1] if an image has 16 bits per pixel.

    Args:
        folder: Folder of the files.
        split: `train` or `test`.
        part: Encoded images and labels.
        image_shape: (C, H, W) of each image.
        options: How to decode the images.
        on_progress: Called with what is being done, the number of images done, and their total.

    Raises:
        defensemble_images.DamagedImageError: An image is damaged, and damaged images are not skipped.
        DataError: A file cannot be read.
    """
    try:
        return _write_split(folder, split, part, image_shape, options, on_progress, np.dtype(np.uint8))
    except _SixteenBitImageError:
        return _write_split(folder, split, part, image_shape, options, on_progress, np.dtype(np.float32))


class _SixteenBitImageError(Exception):
    """An image has 16 bits per pixel, but the file is being written as uint8."""


def _write_split(
    folder: Path,
    split: str,
    part: EncodedPart,
    image_shape: tuple[int, int, int],
    options: DecodeOptions,
    on_progress: OnProgress,
    dtype: np.dtype[np.uint8] | np.dtype[np.float32],
) -> WrittenPart:
    channels, size, _ = image_shape
    levels = 256 if dtype == np.uint8 else 65536
    total, seen, written = len(part.labels), 0, 0
    kept = np.zeros(total, dtype=np.bool_)
    counts = np.zeros((channels, levels), dtype=np.int64)  # histogram of pixel values: exact, so equal on every platform
    digest = hashlib.sha256()
    damage: list[DamagedImageError] = []
    formats: Counter[str] = Counter()
    animations: list[str] = []
    with (folder / f"{split}.npy").open("wb") as file:
        _write_header(file, dtype, (total, *image_shape))
        for batch in _decode(part, channels, size, options):
            if seen + len(batch.kept) > total:
                raise DataError(f"the {split} part has more images than labels ({total}); it may have changed during the read. Try again.")
            pixels = batch.pixels
            if pixels.dtype != dtype:
                if dtype == np.uint8:
                    raise _SixteenBitImageError
                pixels = batch.floats
            file.write(pixels.data)
            digest.update(pixels.data)
            for channel in range(channels):
                values = pixels[:, channel].ravel()
                integers = values if values.dtype == np.uint8 else np.rint(values * np.float32(levels - 1)).astype(np.int64)
                counts[channel] += np.bincount(integers, minlength=levels)
            damage += batch.damage
            formats += batch.formats
            animations += batch.animations
            kept[seen : seen + len(batch.kept)] = batch.kept
            seen += len(batch.kept)
            written += len(pixels)
            on_progress(f"decoding {split} images", seen, total)
        if seen != total:
            raise DataError(f"the {split} part has {seen} images and {total} labels; it may have changed during the read. Try again.")
        if written != total:
            # In place: numpy pads the header for the largest first axis, so its length does not change.
            file.seek(0)
            _write_header(file, dtype, (written, *image_shape))
        _flush(file)
    labels = part.labels[kept]
    with (folder / f"{split}_labels.npy").open("wb") as file:
        np.save(file, labels, allow_pickle=False)
        _flush(file)
    digest.update(labels.astype("<i8").tobytes())
    mean, std = mean_and_std(counts)
    shape = (written, *image_shape)
    return WrittenPart(shape, labels, mean, std, digest.digest(), tuple(damage), frozenset(formats), tuple(animations))


def _decode(part: EncodedPart, channels: int, size: int, options: DecodeOptions) -> Iterator[DecodedBatch]:
    try:
        yield from decode_images(
            part.images(), channels, (size, size), options.preprocessing, skip_damaged=options.skip_damaged, check=options.memory_check()
        )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Fix its permissions, or remove it.") from error


def mean_and_std(counts: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in [0, 1], from histograms (C, L) of L levels, rounded to 4 decimals."""
    values = np.arange(counts.shape[1]) / (counts.shape[1] - 1)
    totals = np.maximum(counts.sum(axis=1), 1)
    means = (counts * values).sum(axis=1) / totals
    variances = (counts * (values - means[:, None]) ** 2).sum(axis=1) / totals
    return tuple(round(float(mean), 4) for mean in means), tuple(round(float(variance) ** 0.5, 4) for variance in variances)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})


def _flush(file: BinaryIO) -> None:
    # Flush before the folder is renamed: after a crash of the machine, the files of the entry could otherwise hold zeros.
    file.flush()
    os.fsync(file.fileno())
