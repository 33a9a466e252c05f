"""Find the real images on which an export is verified and calibrated: those of the checkpoint's dataset, or the user's."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from defensemble_images import image_problem
from defensemble_repository.onnx_metadata import CLASS_NAMES, RECORD

from ..errors import DatasetMismatchWarning, ExportError
from ..graphs.traversal import metadata_of, shape_of

if TYPE_CHECKING:
    from defensemble_training import Dataset, TrainingRecord

# What a report contains if there are no real images.
RANDOM_ONLY = "random images alone"
USER_IMAGES = "user-supplied images"
# Number of test images to compare.
_MAX_TEST_IMAGES = 1000
_FIX = "Name the dataset's folder (--dataset NAME=FOLDER), or pass other images (--images FILE.npy)"


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images (N,C,H,W), float32 in [0, 1]; where they come from, in words; and their classes int64 (N,), if known."""

    images: np.ndarray[Any, Any]
    source: str
    labels: np.ndarray[Any, Any] | None = None

    def check_fit(self, input_shape: tuple[int, int, int], purpose: str = "verification") -> None:
        """Raise an ExportError if the images do not fit a network of `input_shape` (C, H, W)."""
        problem = image_problem(self.images, f"the images for the {purpose}", shape=input_shape, consumer="the network")
        if problem is not None:
            raise ExportError(problem)
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ExportError(
                f"the {purpose} has {len(self.images)} images and labels of the shape {self.labels.shape}: pass one label per image"
            )


@dataclass(frozen=True, eq=False)
class ImagePool:
    """Images to draw from.

    `images_at` returns the images at the given indices (0 to `total` - 1), float32 (n,C,H,W); `source` describes in words where they come
    from.
    """

    images_at: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    total: int
    source: str

    @classmethod
    def from_images(cls, images: np.ndarray[Any, Any], input_shape: tuple[int, int, int]) -> ImagePool:
        """Return a pool of the user's images to calibrate on, float32 (N,C,H,W) in [0, 1]; other images raise an ExportError."""
        RealImages(images, "").check_fit(input_shape, "calibration")
        return cls(images.__getitem__, len(images), USER_IMAGES)


def dataset_from_record(record: TrainingRecord, input_shape: tuple[int, int, int], data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Load the dataset that a checkpoint was trained on. If its digest differs, a `DatasetMismatchWarning` is emitted.

    Without `data_dir`, the dataset is searched in the cache of decoded images (by digest), in the folder that the training command named,
    and in the usual places.

    Args:
        record: The training record of the checkpoint.
        input_shape: (C, H, W) of the network.
        data_dir: The folder of the dataset, or None.

    Raises:
        ExportError: The dataset is not found, or has other classes.
    """
    return _load_dataset(record.to_values(), record.class_names, input_shape[1], data_dir, "the export is verified")


def _load_dataset(
    record: Mapping[str, Any], class_names: tuple[str, ...], size: int, data_dir: str | os.PathLike[str] | None, purpose: str
) -> Dataset:
    from defensemble_training import DataError, find_cached_dataset, load_dataset

    data, digest, command = (str(record.get(key, "")) for key in ("data", "data_digest", "command"))
    if data_dir is None:
        dataset = find_cached_dataset(data, digest, class_names)
        if dataset is not None:
            return dataset
        data_dir = _folder_of_command(command)
    try:
        # As a training with skip_damaged: if an image was damaged since then, the digest differs.
        dataset = load_dataset(data, size, data_dir=None if data_dir is None else Path(data_dir), skip_damaged=True)
    except DataError as error:
        by = f" by `defensemble {command:.300}`" if command else ""
        raise ExportError(f"{purpose} on test images of {data!r}, which the checkpoint was trained on{by}: {error}. {_FIX}") from error
    try:
        dataset = dataset.align_classes(class_names, "the checkpoint")
    except DataError as error:
        raise ExportError(
            f"the dataset for the verification has other classes than the checkpoint: {error}; name the folder of the dataset that the "
            "checkpoint was trained on (--dataset NAME=FOLDER), or pass other images (--images FILE.npy)"
        ) from error
    if digest and dataset.digest != digest:
        warnings.warn(
            f"the dataset for the verification ({dataset.source}) is not the one that the checkpoint was trained on: its digest is "
            f"{dataset.digest}, the training record contains {digest}; the accuracies in the report are those on this dataset",
            DatasetMismatchWarning,
            stacklevel=2,
        )
    return dataset


def _folder_of_command(command: str) -> str | None:
    """Return the dataset folder in a training command, if it exists: `--dataset [NAME=]FOLDER`, or the former `--data-dir FOLDER`."""
    try:
        words = shlex.split(command)
    except ValueError:  # other programs write records, too
        return None
    options = ("--dataset", "--data-dir")
    words = [part for word in words for part in (word.split("=", 1) if word.partition("=")[0] in options else (word,))]
    for option, value in pairwise(words):
        folders = (value, value.partition("=")[2]) if option in options else ()
        for folder in folders:
            if folder and Path(folder).is_dir():
                return folder
    return None


def images_from_record(graph: onnx.ModelProto, name: str, data_dir: str | os.PathLike[str] | None) -> RealImages | None:
    """Return test images of the dataset that the network of a graph was trained on, or None if its metadata contain no dataset.

    Args:
        graph: The graph, with its metadata.
        name: What errors call it.
        data_dir: The folder of the dataset, or None.

    Raises:
        ExportError: The dataset is not found, or has other classes.
    """
    metadata = metadata_of(graph)
    record = json.loads(metadata[RECORD]) if RECORD in metadata else {"data": ""}
    if not record["data"]:
        return None
    names = tuple(json.loads(metadata[CLASS_NAMES]))
    _, _, height, _ = shape_of(graph.graph.input[0])
    assert height is not None
    try:
        dataset = _load_dataset(record, names, height, data_dir, f"'{name}' is compared")
    except ModuleNotFoundError as error:
        raise ExportError(
            f"the dataset that '{name}' was trained on cannot be loaded: the package {error.name} is missing. Install it. {_FIX}"
        ) from error
    return images_for_verification(dataset)


def images_for_verification(dataset: Dataset) -> RealImages:
    """Return the first 1,000 test images of a dataset, or all if there are fewer."""
    selection = slice(0, _MAX_TEST_IMAGES)
    labels = dataset.test.labels[selection]
    source = f"the first {len(labels)} test images of {dataset.name} ({dataset.source}; digest {dataset.digest})"
    return RealImages(dataset.test.images(selection), source, labels)
