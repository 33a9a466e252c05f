"""Load labelled images for a probe: a dataset by name, a folder, or a `.npz` file.

The memory they need is compared with the limit before they are read, and a sample is chosen before it is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defensemble_images import StoredArray, check_memory, match_classes, npz_arrays

from .._client.model_info import ModelInfo
from .._exceptions import InputError, MissingExtraError
from .._image_files import (
    ReadCounts,
    ReadOptions,
    choose_preprocessing,
    decode_for_model,
    decode_memory_bytes,
    find_labelled_images,
    input_errors,
)
from .base import LabelledImages, OnProgress

if TYPE_CHECKING:
    from defensemble_training import Dataset

_MAX_NAMES = 1 << 20
_MAX_NAME_BYTES = 1 << 26


@dataclass(frozen=True)
class ProbeData:
    """Labelled images that match a model, and their source.

    Attributes:
        data: The images, labelled with the model's class indices.
        rows: int64 (n,): their positions in the dataset.
        source: Where the images are from, as JSON.
        notes: Notes for the user, one line each.
    """

    data: LabelledImages
    rows: NDArray[np.int64]
    source: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Request:
    """The arguments of `load_probe_data`."""

    name: str
    info: ModelInfo
    limit: int | None
    seed: int
    shard: tuple[int, int] | None
    options: ReadOptions
    on_progress: OnProgress

    def sample(self, available: int) -> NDArray[np.intp]:
        """Return the indices of this shard of a random sample, in ascending order; the same for the same seed and number."""
        sample = np.arange(available)
        if self.limit is not None and self.limit < available:
            sample = np.sort(np.random.default_rng(self.seed).permutation(available)[: self.limit])
        number, count = self.shard or (1, 1)
        if len(sample) < count:
            raise InputError(f"{self.name} has {len(sample)} images, too few for {count} shards: use fewer")
        return sample[number - 1 :: count]

    def check_memory(self, count: int, image_shape: tuple[int, ...], to_read: int = 0) -> None:
        """Reject images that need too much memory: as float32 while they are read, and twice with noise."""
        floats = 4 * count * math.prod(image_shape)
        with input_errors():
            check_memory(f"{count:,} images of {self.name}", floats + max(floats, to_read), self.options.max_memory)

    def result(
        self,
        kind: str,
        data: tuple[NDArray[np.float32], NDArray[np.int64]],
        rows: NDArray[np.intp],
        available: int,
        notes: tuple[str, ...] = (),
        **details: Any,
    ) -> ProbeData:
        """Return images with a description of their source."""
        if self.limit is not None and self.limit > available:
            notes = (*notes, f"{self.name} has {available:,} images, fewer than --limit {self.limit:,}: all of them are used")
        source = {"name": self.name, "kind": kind, "n_available": available, "limit": self.limit, "sample_seed": self.seed, **details}
        return ProbeData(LabelledImages(*data, self.info.class_names), rows.astype(np.int64), source, notes)


def load_probe_data(
    source: str,
    info: ModelInfo,
    limit: int | None,
    seed: int,
    data_dir: Path | None = None,
    *,
    shard: tuple[int, int] | None = None,
    options: ReadOptions | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> ProbeData:
    """Load the test images of a dataset by name (such as `digits`), of a folder of class folders, or of a `.npz` file.

    A `.npz` file has `images` (n, C, H, W), floats in [0, 1], uint8 or uint16, and `labels` (n,): the model's class indices or, if the file
    has an array `class_names` (K,), indices into it. Classes are matched with the model's by name.

    Args:
        source: Name of a dataset, or path of a folder or a `.npz` file.
        info: The model.
        limit: Size of a random sample; None for all images.
        seed: Seed of the sample.
        data_dir: Folder of the dataset; `source` is then its name.
        shard: (k, n) for every n-th image of the sample, from the k-th on; None for all.
        options: How image files are read.
        on_progress: Called with the current step, the number of images done, and the number of all images.

    Raises:
        InputError: The data does not exist, does not match the model, or needs too much memory.
        MissingExtraError: The dataset needs a part of this distribution that is not installed.
        OSError: A file cannot be read.
    """
    path = Path(source)
    request = _Request(source, info, limit, seed, shard, options or ReadOptions(), on_progress)
    if data_dir is not None:
        return _from_dataset(request, data_dir)
    if path.is_dir():
        return _from_folder(request, path)
    if path.suffix.lower() == ".npz":
        return _from_npz(request, path)
    if path.exists() or "/" in source:
        raise InputError(f"{source} is neither a folder nor a .npz file: pass one of these, or the name of a dataset, such as digits")
    return _from_dataset(request, None)


def _from_folder(request: _Request, folder: Path) -> ProbeData:
    info, options, counts = request.info, request.options, ReadCounts()
    files, labels = find_labelled_images(folder, info, counts)
    preprocessing, note = choose_preprocessing(info, options.resize)
    rows = request.sample(len(files))
    sampled = [files[row] for row in rows]
    to_read = decode_memory_bytes(sampled, info)
    any_size = min(info.image_shape) <= 0
    request.check_memory(1 if any_size else len(sampled), info.image_shape, to_read)
    images: NDArray[np.float32] | None = None
    kept: list[int] = []
    for index, image in decode_for_model(sampled, info, preprocessing, options.skip_damaged, counts):
        if images is None:  # if the model accepts any size, all images must have that of the first
            request.check_memory(len(sampled), image.shape, to_read)
            images = np.empty((len(sampled), *image.shape), np.float32)
        elif image.shape != images.shape[1:]:
            raise InputError(
                f"{sampled[index]} has the shape {image.shape} and {sampled[kept[0]]} {images.shape[1:]}; model {info.name!r} accepts any "
                "size, but a probe needs images of one size: resize them"
            )
        images[len(kept)] = image
        kept.append(index)
        request.on_progress("reading images", len(kept), len(sampled))
    if images is None:
        raise InputError(f"none of the {len(sampled)} images in {folder} can be decoded; the first: {counts.damaged[0]}")
    rows = rows[kept]
    notes = (*(() if note is None else (note,)), *counts.lines())
    rule = None if preprocessing is None else preprocessing.to_values()
    data = images[: len(kept)], labels[rows]
    return request.result("folder", data, rows, len(files), notes, preprocessing=rule, **counts.json())


def _from_npz(request: _Request, path: Path) -> ProbeData:
    with input_errors():
        arrays = npz_arrays(path, ("images", "labels"), ("class_names",))
        stored, stored_labels = arrays["images"], arrays["labels"]
        stored.check_images(request.info.image_shape)
        available = stored.shape[0]
        if stored_labels.shape != (available,) or stored_labels.dtype.kind not in "iu":
            raise InputError(
                f"{stored_labels.where} is {stored_labels.dtype} of shape {stored_labels.shape}; expected integers of shape "
                f"({available},), one label for each image"
            )
        rows = request.sample(available)
        request.check_memory(len(rows), stored.shape[1:])
        labels = stored_labels.values()
        names = _class_names(arrays["class_names"]) if "class_names" in arrays else None
        labels = _model_indices(labels[rows], names, str(path), request.info)
        images = stored.images(rows)
    notes = () if request.options.resize is None else (f"{path} contains arrays: --resize has no effect",)
    return request.result("npz", (images, labels), rows, available, notes)


def _class_names(stored: StoredArray) -> list[str]:
    count = math.prod(stored.shape)
    if len(stored.shape) != 1 or stored.dtype.kind != "U" or count > _MAX_NAMES or count * stored.dtype.itemsize > _MAX_NAME_BYTES:
        raise InputError(
            f"{stored.where} is {stored.dtype} of shape {stored.shape}; expected at most {_MAX_NAMES} strings (K,) of together at most "
            f"{_MAX_NAME_BYTES >> 20} MiB: numpy.array(names)"
        )
    names: list[str] = stored.values().tolist()
    return names


def _model_indices(labels: NDArray[Any], names: list[str] | None, where: str, info: ModelInfo) -> NDArray[np.int64]:
    """Return labels as the model's class indices. Without class names, they already are."""
    count = len(info.class_names) if names is None else len(names)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        meaning = f"the classes of {info.name!r}" if names is None else "one for each of its class names"
        raise InputError(f"the labels of {where} must be in [0, {count}), {meaning}; got {low} to {high}")
    indices = labels.astype(np.int64)
    return indices if names is None else match_classes(names, info.class_names, where, info.name)[indices]


def _from_dataset(request: _Request, data_dir: Path | None) -> ProbeData:
    dataset, rule, note = _load_dataset(request, data_dir)
    test, shape = dataset.test, dataset.input_shape
    expected = request.info.image_shape
    if any(got != size and size > 0 for got, size in zip(shape, expected, strict=True)):
        raise InputError(f"the images of {request.name} have shape {shape}; model {request.info.name!r} takes {expected}")
    rows = request.sample(len(test))
    request.check_memory(len(rows), shape)
    with input_errors():
        where = f"the dataset {request.name!r}" + ("" if data_dir is None else f" in {data_dir}")
        labels = _model_indices(np.asarray(test.labels)[rows], list(dataset.class_names), where, request.info)
    notes = (*dataset.notes, *(() if note is None else (note,)))
    data = test.images(rows), labels
    return request.result("dataset, test split", data, rows, len(test), notes, origin=dataset.source, preprocessing=rule)


def _load_dataset(request: _Request, data_dir: Path | None) -> tuple[Dataset, dict[str, Any] | None, str | None]:
    """Load a dataset in the size of the model. Returns also the resize rule, and a note for the user."""
    try:
        from defensemble_training import DataError, load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"the dataset {request.name!r} needs the training extra ({error}): pip install 'defensemble[train]'"
        ) from error
    info = request.info
    _, height, width = info.image_shape
    if height != width:
        raise InputError(
            f"the dataset {request.name!r} has square images, but model {info.name!r} takes {height} x {width}: pass a folder of class "
            "folders, --dataset FOLDER"
        )
    rule, note = choose_preprocessing(info, request.options.resize)
    try:
        dataset = load_dataset(
            request.name,
            size=height if height > 0 else None,
            data_dir=data_dir,
            preprocessing=rule,
            skip_damaged=request.options.skip_damaged,
            max_memory=request.options.max_memory,
            on_progress=request.on_progress,
        )
    except DataError as error:
        any_size = "" if height > 0 else f" (model {info.name!r} accepts any size, but a probe needs images of one size)"
        raise InputError(f"{error}{any_size}") from error
    return dataset, None if rule is None else rule.to_values(), note
