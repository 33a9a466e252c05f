"""Load datasets by name, from a folder or the Hugging Face hub, with a fixed split into training and test images."""

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
MAX_COPY_BYTES = 2**31  # larger parts are not copied when they are split
CHECK_CHUNK = 1024  # images per range check
CROP = Preprocessing()

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Selection = slice | npt.NDArray[Any]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Part:
    """The training or test part of a dataset: images with labels.

    Attributes:
        pixels: (n, C, H, W), uint8 in 0 to 255 or float32 in [0, 1]. It may be a read-only memory map.
        labels: int64 (n,).

    Raises:
        DataError: The dtype or shape is wrong, the lengths differ, or there are no images. Pixel values are not checked.

    Example:
        >>> dataset = load_dataset("digits")
        >>> images, labels = dataset.test.images(slice(0, 10)), dataset.test.labels[:10]
    """

    pixels: Pixels
    labels: Labels

    def __post_init__(self) -> None:
        pixels: object = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.dtype not in (np.uint8, np.float32) or 0 in pixels.shape[1:]:
            raise DataError(f"pixels must be an array (n, C, H, W) of uint8 or float32, got {_describe(pixels)}")
        labels: object = self.labels
        if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype != np.int64:
            raise DataError(f"labels must be an array (n,) of int64, got {_describe(labels)}")
        if len(pixels) != len(labels):
            raise DataError(f"pixels and labels must have the same length, got {len(pixels)} images and {len(labels)} labels")
        if not len(labels):
            raise DataError("a part must hold at least one image, got none")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of all pixels in bytes, in their stored dtype."""
        return self.pixels.nbytes

    def raw_pixels(self, selection: Selection = slice(None)) -> Pixels:
        """Return the pixels of some images in their stored dtype, (n', C, H, W). The result may be a view."""
        return self.pixels[selection]

    def images(self, selection: Selection = slice(None)) -> Images:
        """Return a copy of some images as float32 (n', C, H, W) in [0, 1]. uint8 pixels are divided by 255."""
        pixels = self.raw_pixels(selection)
        images = pixels.astype(np.float32)
        if pixels.dtype == np.uint8:
            images /= np.float32(255)
        return images


class PartSubset(Part):
    """Some rows of a part that is too large to copy. The part was checked, so the subset is not."""

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
        """All pixels, copied at every access."""
        return self.raw_pixels()

    @property
    def nbytes(self) -> int:
        """See `Part.nbytes`."""
        return self._base.nbytes // max(1, len(self._base)) * len(self)

    def raw_pixels(self, selection: Selection = slice(None)) -> Pixels:
        """See `Part.raw_pixels`; the result is a copy."""
        return self._base.raw_pixels(self._rows[selection])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with labels.

    Attributes:
        name: Name for `load_dataset`.
        class_names: Label i is class_names[i].
        train: The training part.
        test: The test part. Nothing is selected by its accuracy.
        mean: Mean of the training images, one value per channel, rounded to 4 decimals.
        std: Standard deviation, like `mean`.
        flip: Whether a mirrored image keeps its class.
        source: Where the images came from, and their version; one line.
        digest: 16 hexadecimal digits over pixels and labels of both parts.
        preprocessing: How image files were resized. None if the images came as arrays.
        notes: Notes for the user on how the images were read, such as skipped files; one line each.

    Raises:
        DataError: The parts have different image shapes, there are fewer than 2 classes, a label has no class, `mean` or `std` does not
            match the channels, or float32 pixels are outside [0, 1].

    Example:
        >>> dataset = load_dataset("digits")
        >>> dataset.input_shape, len(dataset.train), dataset.class_names
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
        shapes = [part.raw_pixels(slice(0, 1)).shape[1:] for part in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(f"both parts of {self.name!r} must have the same image shape (C, H, W), got {shapes[0]} and {shapes[1]}")
        for statistic, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) != shapes[0][:1]:
                raise DataError(f"{statistic} of {self.name!r} must hold one value for each of {shapes[0][0]} channels, got {values}")
        if len(self.class_names) < 2:
            raise DataError(f"class_names of {self.name!r} must hold at least 2 names, got {self.class_names}")
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
        """Shape (C, H, W) of one image."""
        _, channels, height, width = self.train.raw_pixels(slice(0, 1)).shape
        return channels, height, width

    def align_classes(self, class_names: Sequence[str], model: str) -> Dataset:
        """Return this dataset with the class indices of a model. Classes are matched by name, in Unicode NFC.

        Args:
            class_names: Class names of the model, in the order of its outputs.
            model: Name of the model, for errors.

        Raises:
            DataError: The model lacks a class of the dataset.
        """
        if self.class_names == tuple(class_names):
            return self
        try:
            indices = match_classes(self.class_names, class_names, f"the dataset {self.name!r} ({self.source})", model)
        except ClassNamesError as error:
            raise DataError(str(error)) from error
        train, test = (Part(part.pixels, indices[part.labels]) for part in (self.train, self.test))
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
    """Load a dataset: the digits of scikit-learn, or images from a folder or the Hugging Face hub.

    Images are searched in `data_dir`, then in `$DEFENSEMBLE_DATA_DIR/<name>` if that folder exists, then in the cache of decoded and
    downloaded images, then on the hub. They are decoded once into the user's cache and memory-mapped from there. The page "Data" of the
    documentation describes layouts, sources and the cache.

    Args:
        name: `digits`, `mnist`, `cifar10`, `tiny-imagenet`, `imagenet`, `stylized-imagenet`, or `folder` for the images in `data_dir`.
        size: Height and width of the images, 8 to 1024 (`digits`: 8 to 128). None: 16 for `digits`, the images' own size for `folder` (all
            must have the same), and the usual size for the others.
        data_dir: Folder with the dataset, as parquet files or class folders.
        preprocessing: How images are resized to `size`. None requires that all have this size. Not used for `digits`.
        skip_damaged: Whether to leave out images that cannot be decoded. `source` and `notes` then mention them.
        max_memory: Memory limit in bytes for a row group of a parquet file and for decoding. None: half of the free memory.
        on_progress: Called with what is being done, the number of images done, and their total.

    Raises:
        DataError: The dataset is unknown, has another layout or size, has damaged or missing files, or there is no disk space or no
            network.

    Example:
        >>> dataset = load_dataset("cifar10", data_dir="data/cifar10")
        >>> photos = load_dataset("folder", 64, data_dir="photos")  # photos/CLASS/IMAGE
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; expected one of {', '.join(DATASETS)}")
    if name == "digits":
        if data_dir is not None:
            raise DataError(f"the dataset 'digits' comes with scikit-learn, got data_dir={str(data_dir)!r}; omit it, or use 'folder'")
        return _load_digits(USUAL_SIZE if size is None else size)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE):
        raise DataError(f"size must be an integer from {SMALLEST_SIZE} to {LARGEST_SIZE}, got {size!r}")
    # Imported here because `digits` needs neither Pillow nor pyarrow nor the hub's client.
    from .cache_writer import DecodeOptions
    from .locate import find_entry

    options = DecodeOptions(preprocessing, skip_damaged, max_memory)
    try:
        entry, skipped = find_entry(name, size, data_dir, options, on_progress or (lambda task, done, total: None))
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


def split_held_out(part: Part, count: int, seed_text: str) -> tuple[Part, Part]:
    """Split a part into the rest and exactly `count` held-out images, balanced over the classes.

    Both keep the order of the images. Parts of more than 2 GiB are not copied: the results read their rows from `part`.

    Args:
        part: The part to split.
        count: Number of held-out images, 1 to n - 1.
        seed_text: Seed of the split. The same text gives the same split on every platform.

    Returns:
        The rest and the held-out images.

    Raises:
        SpecError: `count` is out of range.
    """
    number = "the number of held-out images"
    if len(part) < 2:
        raise SpecError(f"{number} must leave at least one image, got a part of {len(part)}; expected 2 or more")
    if isinstance(count, bool) or not isinstance(count, INTEGRAL) or not 1 <= int(count) < len(part):
        raise SpecError(f"{number} must be an integer from 1 to {len(part) - 1}, got {count!r}; both parts need at least one image")
    count = int(count)
    is_held_out = stratified_choice(part.labels, count, seed_text)
    if part.nbytes > MAX_COPY_BYTES:
        return PartSubset(part, np.flatnonzero(~is_held_out)), PartSubset(part, np.flatnonzero(is_held_out))
    rest = Part(part.pixels[~is_held_out], part.labels[~is_held_out])
    return rest, Part(part.pixels[is_held_out], part.labels[is_held_out])


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"the {type(value).__name__} {value!r:.60}"


def _check_range(name: str, part: Part) -> None:
    if part.raw_pixels(slice(0, 1)).dtype == np.uint8:
        return
    for start in range(0, len(part), CHECK_CHUNK):
        pixels = part.raw_pixels(slice(start, start + CHECK_CHUNK))
        problem = range_problem(pixels, f"the {name}, images {start} to {start + len(pixels) - 1},")
        if problem is not None:
            raise DataError(problem)


def _load_digits(size: int) -> Dataset:
    images, labels = digits_of_size(size)
    is_test = stratified_test_part(labels, seed_text="defensemble-split-v1:digits")
    parts = Part(images[~is_test], labels[~is_test]), Part(images[is_test], labels[is_test])
    digest = hashlib.sha256(b"".join(array.tobytes() for part in parts for array in (part.pixels, part.labels)))
    return Dataset(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=parts[0],
        test=parts[1],
        # Rounded, because the order of a sum, and so its last bits, depends on the CPU. The spec must not.
        mean=(round(float(parts[0].pixels.mean(dtype=np.float64)), 4),),
        std=(round(float(parts[0].pixels.std(dtype=np.float64)), 4),),
        flip=False,
        source=f"scikit-learn's digits, enlarged from 8x8 to {size}x{size}, a fifth of every class as the test part",
        digest=digest.hexdigest()[:16],
    )
