"""Which images a network is trained and judged on: datasets by name, from a folder or the hub, with a split that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from defensemble_images import ClassNamesError, ImagesError, Preprocessing, match_classes, range_problem, reading_notes

from ..errors import DataError, SpecError
from ..validation import INTEGRAL
from .digits import USUAL_SIZE, digits_of_size
from .registry import DATASET_INFOS, LARGEST_SIZE, SMALLEST_SIZE
from .splits import stratified_choice, stratified_test_part

DATASETS = ("digits", *DATASET_INFOS)
LARGEST_COPY = 2**31  # bytes that a split may take of memory
CHECKED_AT_ONCE = 1024  # images
CROP = Preprocessing()

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Selection = slice | npt.NDArray[Any]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Part:
    """Images with labels, as they are stored: one part of a dataset.

    Attributes:
        pixels: (n, C, H, W), uint8 in 0 to 255 or float32 in [0, 1]; it may be a read-only memory map.
        labels: int64 (n,).

    Raises:
        DataError: they are of another type or shape, not equally many, or none. The values of pixels are not looked at.
    """

    pixels: Pixels
    labels: Labels

    def __post_init__(self) -> None:
        pixels: object = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.dtype not in (np.uint8, np.float32) or 0 in pixels.shape[1:]:
            raise DataError(f"pixels must be an array (n, C, H, W) of uint8 or float32, got {_described(pixels)}")
        labels: object = self.labels
        if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype != np.int64:
            raise DataError(f"labels must be an array (n,) of int64, got {_described(labels)}")
        if len(pixels) != len(labels):
            raise DataError(f"pixels and labels must be equally many, got {len(pixels)} images and {len(labels)} labels")
        if not len(labels):
            raise DataError("a part must hold at least one image, got none")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels as they are stored."""
        return self.pixels.nbytes

    def stored(self, selection: Selection = slice(None)) -> Pixels:
        """Return some of the images as they are stored, (n', C, H, W), uint8 in 0 to 255 or float32 in [0, 1]; it may be a view."""
        return self.pixels[selection]

    def images(self, selection: Selection = slice(None)) -> Images:
        """Return some of the images, a copy, float32 (n', C, H, W) in [0, 1]; uint8 is divided by 255."""
        chosen = self.stored(selection)
        images = chosen.astype(np.float32)
        if chosen.dtype == np.uint8:
            images /= np.float32(255)
        return images


class Rows(Part):
    """Some of the images of a part that is too large to be copied; that part was checked, so this one is not."""

    _base: Part
    _rows: npt.NDArray[np.intp]

    def __init__(self, base: Part, rows: npt.NDArray[np.intp]) -> None:
        if not len(rows):
            raise DataError("a part must hold at least one image, got no rows")
        object.__setattr__(self, "labels", base.labels[rows])
        object.__setattr__(self, "_base", base)
        object.__setattr__(self, "_rows", rows)

    @property
    def pixels(self) -> Pixels:
        """All of them, gathered at every access."""
        return self.stored()

    @property
    def nbytes(self) -> int:
        """As in `Part`."""
        return self._base.nbytes // max(1, len(self._base)) * len(self)

    def stored(self, selection: Selection = slice(None)) -> Pixels:
        """As in `Part`, and a copy."""
        return self._base.stored(self._rows[selection])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in a training part and a test part that share no image.

    Attributes:
        name: what `load_dataset` calls it.
        class_names: label i is class_names[i].
        train: the training part.
        test: the test part, which never chooses anything.
        mean: of the training images, one value a channel, rounded to 4 decimals.
        std: as mean.
        flip: whether a mirrored image is still an image of its class.
        source: one line, where the images came from and in which state.
        digest: 16 hexadecimal digits over pixels and labels of both parts.
        preprocessing: how image files were brought to this size; None where the images came as arrays.
        notes: what a user should know of how the images were read, such as files that were skipped; one line each.

    Raises:
        DataError: the parts differ in the shape of their images, fewer than 2 classes, a label of no class, another number of means
            or deviations than of channels, or float32 pixels outside of [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    train: Part
    test: Part
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    source: str
    digest: str
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes = [part.stored(slice(0, 1)).shape[1:] for part in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(f"both parts of {self.name!r} must have images of one shape (C, H, W), got {shapes[0]} and {shapes[1]}")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) != shapes[0][:1]:
                raise DataError(f"{what} of {self.name!r} must be one value for each of {shapes[0][0]} channels, got {values}")
        if len(self.class_names) < 2:
            raise DataError(f"class_names of {self.name!r} must be at least 2, got {self.class_names}")
        for split, part in (("training", self.train), ("test", self.test)):
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.class_names):
                raise DataError(
                    f"{split} labels of {self.name!r} must be from 0 to {len(self.class_names) - 1}, one for each of its "
                    f"{len(self.class_names)} class names, got {low if low < 0 else high}"
                )
            _check_range(f"{split} pixels of {self.name!r}", part)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.stored(slice(0, 1)).shape
        return channels, height, width

    def align_classes(self, class_names: Sequence[str], model: str) -> Dataset:
        """Return this dataset with the class numbers of a model; classes are matched by name, after Unicode NFC.

        `class_names` are those of the model, in the order of its outputs; `model` is its name, for errors.

        Raises:
            DataError: a class of the dataset is none of the model's.
        """
        if self.class_names == tuple(class_names):
            return self
        try:
            numbers = match_classes(self.class_names, class_names, f"the dataset {self.name!r} ({self.source})", model)
        except ClassNamesError as error:
            raise DataError(str(error)) from error
        train, test = (Part(part.pixels, numbers[part.labels]) for part in (self.train, self.test))
        return replace(self, class_names=tuple(class_names), train=train, test=test)

    def __repr__(self) -> str:
        shape = "x".join(str(extent) for extent in self.input_shape)
        counts = f"{len(self.train)} train, {len(self.test)} test, {len(self.class_names)} classes"
        return f"Dataset({self.name!r}, {shape}, {counts})"


def load_dataset(
    name: str,
    size: int | None = None,
    *,
    data_dir: str | Path | None = None,
    preprocessing: Preprocessing | None = CROP,
    skip_damaged: bool = False,
    max_memory: int | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Load a dataset: the digits that are installed, or images from a folder or the Hugging Face hub, decoded once.

    Images are looked for in `data_dir`; in `$DEFENSEMBLE_DATA_DIR/<name>` where that is a folder; among what was downloaded and decoded
    before; and on the hub. What is read is decoded into the user's cache, and memory-mapped from there from then on.
    The layouts, the sources and the cache are described in docs/data.md.

    Args:
        name: `digits`, `mnist`, `cifar10`, `tiny-imagenet`, `imagenet`, `stylized-imagenet`, or `folder` for any images in `data_dir`.
        size: height and width of the images, 8 to 1024 (digits: to 128); None: 16 for digits, for the others what they usually have, and
            for `folder` that of the images, if all have the same.
        data_dir: the folder that holds the dataset, as parquet files or class folders.
        preprocessing: how images of another size are brought to `size`; None: all images must have it. Digits are not files.
        skip_damaged: leave out images that cannot be decoded, and say so in `source` and `notes`.
        max_memory: bytes that a row group of a parquet file, and images while they are decoded, may take; None: half of the free memory.
        on_progress: called with what is being done, how many images are done, and of how many.

    Raises:
        DataError: no such dataset, a size that it cannot have, another layout, damaged or missing files, no room, or no network.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; there is {', '.join(DATASETS)}")
    if name == "digits":
        if data_dir is not None:
            raise DataError(f"the dataset 'digits' comes with scikit-learn, got data_dir {str(data_dir)!r}; leave it out, or take 'folder'")
        return _digits(USUAL_SIZE if size is None else size)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE):
        raise DataError(f"size must be an integer from {SMALLEST_SIZE} to {LARGEST_SIZE}, got {size!r}")
    # Pillow, pyarrow and the hub's client are not needed for digits.
    from .cache_writer import Reading
    from .locate import find_entry

    reading = Reading(preprocessing, skip_damaged, max_memory)
    try:
        entry, skipped = find_entry(name, size, data_dir, reading, on_progress or (lambda what, done, total: None))
    except ImagesError as error:
        raise DataError(str(error)) from error
    return Dataset(
        name=name,
        class_names=entry.meta.class_names,
        train=Part(entry.train_pixels, entry.train_labels),
        test=Part(entry.test_pixels, entry.test_labels),
        mean=entry.meta.mean,
        std=entry.meta.std,
        flip=DATASET_INFOS[name].flip,
        source=entry.meta.source,
        digest=entry.meta.digest,
        preprocessing=preprocessing,
        notes=reading_notes(
            skipped,
            damaged=entry.meta.damaged,
            first_damage=entry.meta.first_damage[0] if entry.meta.first_damage else None,
            animations=entry.meta.animations,
            first_animation=entry.meta.first_animation,
        ),
    )


def held_out(part: Part, count: int, seed_text: str) -> tuple[Part, Part]:
    """Split a part in two: the rest, and exactly `count` images as evenly over the classes as can be, chosen by a text alone.

    Both keep the order of the images. Of more than 2 GiB of pixels no copies are made: these parts read what they are asked for.

    Args:
        part: what to split.
        count: 1 to n - 1.
        seed_text: the same text gives the same split on every platform.

    Raises:
        SpecError: `count` is out of its range.
    """
    what = "the number of images to hold out"
    if len(part) < 2:
        raise SpecError(f"{what} must leave at least one image, got a part of {len(part)}; expected 2 or more")
    if isinstance(count, bool) or not isinstance(count, INTEGRAL) or not 1 <= int(count) < len(part):
        raise SpecError(f"{what} must be an integer from 1 to {len(part) - 1}, got {count!r}; both parts need at least one image")
    count = int(count)
    chosen = stratified_choice(part.labels, count, seed_text)
    if part.nbytes > LARGEST_COPY:
        return Rows(part, np.flatnonzero(~chosen)), Rows(part, np.flatnonzero(chosen))
    return Part(part.pixels[~chosen], part.labels[~chosen]), Part(part.pixels[chosen], part.labels[chosen])


def _described(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"the {type(value).__name__} {value!r:.60}"


def _check_range(what: str, part: Part) -> None:
    if part.stored(slice(0, 1)).dtype == np.uint8:
        return
    for start in range(0, len(part), CHECKED_AT_ONCE):
        some = part.stored(slice(start, start + CHECKED_AT_ONCE))
        fault = range_problem(some, f"the {what}, images {start} to {start + len(some) - 1},")
        if fault is not None:
            raise DataError(fault)


def _digits(size: int) -> Dataset:
    images, labels = digits_of_size(size)
    test = stratified_test_part(labels, seed_text="defensemble-split-v1:digits")
    parts = Part(images[~test], labels[~test]), Part(images[test], labels[test])
    digest = hashlib.sha256(b"".join(array.tobytes() for part in parts for array in (part.pixels, part.labels)))
    return Dataset(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=parts[0],
        test=parts[1],
        # Rounded, since the order of a sum, and with it the last bits, depends on the processor; the spec must not.
        mean=(round(float(parts[0].pixels.mean(dtype=np.float64)), 4),),
        std=(round(float(parts[0].pixels.std(dtype=np.float64)), 4),),
        flip=False,
        source=f"scikit-learn's digits, enlarged from 8x8 to {size}x{size}, a fifth of every class as the test part",
        digest=digest.hexdigest()[:16],
    )
