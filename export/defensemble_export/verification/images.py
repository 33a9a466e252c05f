"""On which real images an export is verified and calibrated: those of the data that a checkpoint was trained on, or what the user gives."""

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

# What a report says of the images where there are no real ones.
RANDOM_ONLY = "random images alone"
# Of the test images, so many are compared.
_COMPARED = 1000
_MEND = "Say where they are (--dataset FOLDER), or pass others (--images FILE.npy)"


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images (N,C,H,W), float32 in [0, 1], their classes int64 (N,) where they are known, and in words where they are from."""

    images: np.ndarray[Any, Any]
    source: str
    labels: np.ndarray[Any, Any] | None = None

    def check_fit(self, input_shape: tuple[int, int, int], what: str = "verification") -> None:
        """Refuse them for a network that takes other images than these of ``input_shape``."""
        fault = image_problem(self.images, f"the images for the {what}", shape=input_shape, consumer="the network")
        if fault is not None:
            raise ExportError(fault)
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ExportError(f"the {what} has {len(self.images)} images and classes of the shape {self.labels.shape}: one for each image")


@dataclass(frozen=True, eq=False)
class ImagePool:
    """``total`` images to draw from, of which ``images_at`` gives those with some numbers, float32 (n,C,H,W), and in words where from."""

    images_at: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    total: int
    source: str

    @classmethod
    def of(cls, images: np.ndarray[Any, Any], input_shape: tuple[int, int, int]) -> ImagePool:
        """The user's own images, to calibrate on: float32 (N,C,H,W) in [0, 1] of ``input_shape``, else an ExportError."""
        RealImages(images, "").check_fit(input_shape, "calibration")
        return cls(images.__getitem__, len(images), "images of the user's")


def dataset_of(record: TrainingRecord, input_shape: tuple[int, int, int], data_dir: str | os.PathLike[str] | None) -> Dataset:
    """The data that a checkpoint was trained on; others, by their digest, with an `DatasetMismatchWarning`.

    Looked for in `data_dir`; without it in the cache of decoded images, by their digest; in the folder that the command of the training
    named; and in the usual places. ExportError where they are not there, or have other classes.
    """
    return _dataset(record.to_values(), record.class_names, input_shape[1], data_dir, "the export is verified")


def _dataset(
    record: Mapping[str, Any], class_names: tuple[str, ...], size: int, data_dir: str | os.PathLike[str] | None, what: str
) -> Dataset:
    from defensemble_training import DataError, find_cached_dataset, load_dataset

    data, digest, command = (str(record.get(key, "")) for key in ("data", "data_digest", "command"))
    if data_dir is None:
        dataset = find_cached_dataset(data, digest, class_names)
        if dataset is not None:
            return dataset
        data_dir = _folder_in_command(command, data)
    try:
        # As in a training with skip_damaged; where an image was damaged since then, the digest differs.
        dataset = load_dataset(data, size, data_dir=None if data_dir is None else Path(data_dir), skip_damaged=True)
    except DataError as error:
        by = f" by `defensemble {command:.300}`" if command else ""
        raise ExportError(f"{what} on test images of {data!r}, which the checkpoint was trained on{by}: {error}. {_MEND}") from error
    try:
        dataset = dataset.align_classes(class_names, "the checkpoint")
    except DataError as error:
        raise ExportError(
            f"the data for the verification have other classes than the checkpoint was trained on: {error}; name the folder of the data "
            "that it was trained on (--dataset FOLDER), or pass other images (--images FILE.npy)"
        ) from error
    if digest and dataset.digest != digest:
        warnings.warn(
            f"the images for the verification ({dataset.source}) are not those that the checkpoint was trained on: their digest is "
            f"{dataset.digest}, the training record states {digest}; the report compares accuracies on these",
            DatasetMismatchWarning,
            stacklevel=2,
        )
    return dataset


def _folder_in_command(command: str, data: str) -> Path | None:
    """Return the folder of `--dataset [NAME=]FOLDER` in the command that trained on `data`, if it exists; earlier: `--data-dir FOLDER`."""
    try:
        words = shlex.split(command)
    except ValueError:  # other programs write records, too
        return None
    values = [value for option, value in pairwise(words) if option in ("--dataset", "--data-dir") and value != data]
    folders = [Path(folder) for value in values for folder in (value, value.partition("=")[2]) if folder]
    return next((folder for folder in folders if folder.is_dir()), None)


def images_of_record(graph: onnx.ModelProto, name: str, data_dir: str | os.PathLike[str] | None) -> RealImages | None:
    """Test images of the data that the network of a graph (``name`` in errors) was trained on; None where it has none, as foreign ones."""
    notes = metadata_of(graph)
    record = json.loads(notes[RECORD]) if RECORD in notes else {"data": ""}
    if not record["data"]:
        return None
    names = tuple(json.loads(notes[CLASS_NAMES]))
    _, _, height, _ = shape_of(graph.graph.input[0])
    assert height is not None
    try:
        dataset = _dataset(record, names, height, data_dir, f"'{name}' is compared")
    except ModuleNotFoundError as error:
        raise ExportError(f"the data that '{name}' was trained on cannot be loaded here, {error.name} is missing. {_MEND}") from error
    return images_for_verification(dataset)


def images_for_verification(dataset: Dataset) -> RealImages:
    """The first thousand test images, or all where they are fewer."""
    chosen = slice(0, _COMPARED)
    labels = dataset.test.labels[chosen]
    source = f"the first {len(labels)} test images of {dataset.name} ({dataset.source}; digest {dataset.digest})"
    return RealImages(dataset.test.images(chosen), source, labels)
