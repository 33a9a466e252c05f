"""Labelled images to probe with: a dataset by name, a folder, or an `.npz` file."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from defensemble._exceptions import InputError, MissingExtraError
from defensemble._images import check_not_endless, floats_from_array, images_from_file, labelled_files
from defensemble._model import ModelInfo
from defensemble.probes._base import Data


@dataclass(frozen=True)
class ChosenData:
    """Images that fit a model, and where they are from, as JSON."""

    data: Data
    source: dict[str, Any]


def choose_data(source: str, info: ModelInfo, limit: int | None, seed: int, data_dir: Path | None = None) -> ChosenData:
    """The test images of a dataset by name (such as `digits`), of a folder of class folders, or of an `.npz` file; at most `limit`.

    An `.npz` file holds `images` (n, C, H, W), floats in [0, 1] or uint8, and `labels` (n,). Of more than `limit` images, a random sample
    is taken, the same for the same seed. With `data_dir`, `source` names a dataset (such as `cifar10`) that lies in that folder.

    Raises:
        InputError: There is no such data, or it does not fit the model.
        MissingExtraError: The dataset needs a part of this distribution that is not installed.
        OSError: A file cannot be read.
    """
    path = Path(source)
    images: NDArray[Any]
    if data_dir is not None:
        kind, (images, labels) = "dataset, test split", _from_dataset(source, info, data_dir)
    elif path.is_dir():
        kind, (images, labels) = "folder", _from_folder(path, info)
    elif path.suffix == ".npz":
        kind, (images, labels) = "npz", _from_npz(path)
    elif path.exists() or "/" in source:
        raise InputError(f"{source} is neither a folder nor a .npz file: pass one, or the name of a dataset, such as digits")
    else:
        kind, (images, labels) = "dataset, test split", _from_dataset(source, info, None)
    if images.shape[1:] != info.image_shape:
        raise InputError(f"the images of {source} have the shape {images.shape[1:]}, model {info.name!r} takes {info.image_shape}")
    if not 0 <= labels.min() <= labels.max() < len(info.class_names):
        got = f"from {labels.min()} to {labels.max()}"
        raise InputError(f"the labels of {source} must lie in [0, {len(info.class_names)}), the classes of {info.name!r}, got {got}")
    available = len(labels)
    indices = np.arange(available)
    if limit is not None and limit < available:
        indices = np.sort(np.random.default_rng(seed).permutation(available)[:limit])
        images, labels = images[indices], labels[indices]
    # Only now, as what a dataset keeps as bytes takes four times as much as floats.
    data = Data(floats_from_array(images, source), labels)
    digest = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
    return ChosenData(data, {"name": source, "kind": kind, "n_available": available, "indices_sha256": digest})


def _from_folder(folder: Path, info: ModelInfo) -> tuple[NDArray[Any], NDArray[np.int64]]:
    files, labels = labelled_files(folder, info.class_names)
    return np.concatenate([images_from_file(file, info.image_shape) for file in files]), labels


def _from_npz(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    check_not_endless(path)
    expected = "expected an .npz file with arrays `images` (n, C, H, W) and `labels` (n,)"
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if not isinstance(held, NpzFile):
                raise InputError(f"{path} holds a single array, {expected}")
            if not {"images", "labels"} <= set(held.files):
                raise InputError(f"{path} holds {', '.join(held.files) or 'nothing'}, {expected}")
            images, labels = held["images"], held["labels"]
    except InputError:
        raise
    except (ValueError, EOFError, BadZipFile, RuntimeError, MemoryError, TokenError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}), {expected}") from error
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        raise InputError(f"{path} holds other things than arrays, {expected}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"the labels of {path} are {labels.dtype}, expected integers")
    return floats_from_array(images, str(path)), labels.astype(np.int64)


def _from_dataset(name: str, info: ModelInfo, data_dir: Path | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    try:
        from defensemble_training import load_dataset
    except ImportError as error:
        raise MissingExtraError(f"the dataset {name!r} needs the training extra ({error}): pip install 'defensemble[train]'") from error
    _, height, width = info.image_shape
    if height != width:
        raise InputError(f"the dataset {name!r} has square images, model {info.name!r} takes {height} x {width}")
    test = load_dataset(name, size=height if height > 0 else None, data_dir=data_dir).test
    return test.pixels, np.asarray(test.labels, np.int64)
