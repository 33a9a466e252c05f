"""One part of a dataset, decoded and written as .npy files image by image, so that it never has to fit into memory."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ._errors import DataError
from .decoding import Damage, decoded
from .sources import EncodedPart

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class WrittenPart:
    """What was written of one part.

    Attributes:
        shape: (n, C, H, W) of the pixels.
        labels: int64 (n,).
        mean: of the images in [0, 1], one value a channel, rounded to 4 decimals.
        std: as mean.
        digest: SHA-256 over pixels and labels.
        damage: the images that were left out.
        formats: such as {"JPEG"}.
    """

    shape: tuple[int, int, int, int]
    labels: npt.NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: bytes
    damage: tuple[Damage, ...]
    formats: frozenset[str]


def write_part(
    folder: Path, split: str, part: EncodedPart, image_shape: tuple[int, int, int], skip_damaged: bool, on_progress: OnProgress
) -> WrittenPart:
    """Decode one part into `<split>.npy` and `<split>_labels.npy`.

    Raises:
        DataError: an image is damaged and not to be left out, or a file cannot be read.
        OSError: what is decoded cannot be written.
    """
    channels, size, _ = image_shape
    total, seen, written = len(part.labels), 0, 0
    kept = np.zeros(total, dtype=np.bool_)
    counts = np.zeros((channels, 256), dtype=np.int64)  # of every pixel value: exact sums, the same on every platform
    digest = hashlib.sha256()
    damage: list[Damage] = []
    formats: Counter[str] = Counter()
    with (folder / f"{split}.npy").open("wb") as file:
        _write_header(file, (total, *image_shape))
        for some in decoded(part.images(), channels, size):
            if some.damage and not skip_damaged:
                raise some.damage[0].error()
            if seen + len(some.kept) > total:
                raise DataError(f"the {split} part has more images than labels ({total}); was it changed while it was read? try again")
            file.write(some.pixels.data)
            digest.update(some.pixels.data)
            for channel in range(channels):
                counts[channel] += np.bincount(some.pixels[:, channel].ravel(), minlength=256)
            damage += some.damage
            formats += some.formats
            kept[seen : seen + len(some.kept)] = some.kept
            seen += len(some.kept)
            written += len(some.pixels)
            on_progress(f"decoding {split} images", seen, total)
        if seen != total:
            raise DataError(f"the {split} part has {seen} images and {total} labels; was it changed while it was read? try again")
        if written != total:
            _rewrite_header(file, (written, *image_shape))
        _to_disk(file)
    labels = part.labels[kept]
    with (folder / f"{split}_labels.npy").open("wb") as file:
        np.save(file, labels, allow_pickle=False)
        _to_disk(file)
    digest.update(labels.astype("<i8").tobytes())
    mean, std = mean_and_std(counts)
    return WrittenPart((written, *image_shape), labels, mean, std, digest.digest(), tuple(damage), frozenset(formats))


def mean_and_std(counts: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of values in [0, 1] from how often every byte occurs, (C, 256), rounded to 4 decimals."""
    values = np.arange(256) / 255
    totals = np.maximum(counts.sum(axis=1), 1)
    means = (counts * values).sum(axis=1) / totals
    variances = (counts * (values - means[:, None]) ** 2).sum(axis=1) / totals
    return tuple(round(float(mean), 4) for mean in means), tuple(round(float(variance) ** 0.5, 4) for variance in variances)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _rewrite_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Lower the number of images in place; numpy leaves room for the largest number in the first axis, so the length stays."""
    file.seek(0)
    _write_header(file, shape)


def _to_disk(file: BinaryIO) -> None:
    # Before the folder is renamed, or a crash of the machine could leave an entry whose files hold zeros.
    file.flush()
    os.fsync(file.fileno())
