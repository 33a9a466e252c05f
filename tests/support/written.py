"""Small datasets as real files: pictures by Pillow, tables by pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
from PIL import Image
from pyarrow import parquet

from tests.support.checkout import ROOT

Pixels = npt.NDArray[np.uint8]

CLASSES = ("ant", "bee", "cow")
CIFAR10 = ROOT.parent / "shared/cifar10"
WITHOUT_CIFAR10 = f"the CIFAR-10 images are not at {CIFAR10}"


def pictures(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> Pixels:
    """Random images as Pillow takes them, (n, size, size, 3) or (n, size, size)."""
    shape = (count, size, size, 3) if channels == 3 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(picture: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def write_class_folders(folder: Path, images: Pixels, labels: Sequence[int], suffix: str = ".png") -> None:
    """Write image i to folder/CLASS/i.png."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03d}{suffix}")


def write_split(folder: Path, n_train: int = 12, n_test: int = 6, size: int = 8) -> tuple[Pixels, Pixels]:
    """Write train/CLASS/*.png and test/CLASS/*.png, labels 0, 1, 2, 0, ...; returns the images in that order."""
    train, test = pictures(n_train, size, seed=1), pictures(n_test, size, seed=2)
    write_class_folders(folder / "train", train, [number % 3 for number in range(n_train)])
    write_class_folders(folder / "test", test, [number % 3 for number in range(n_test)])
    return train, test


def by_class(images: Pixels) -> Pixels:
    """Images that `write_split` wrote in the order in which class folders are read, as (n, C, H, W)."""
    order = np.argsort(np.arange(len(images)) % 3, kind="stable")
    return np.asarray(images[order].transpose(0, 3, 1, 2))


def write_table(
    path: Path,
    encoded: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    names: Sequence[str] | None = CLASSES,
    image: str = "img",
    label: str = "label",
) -> Path:
    """Write a parquet file as the Hugging Face hub has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [None if one is None else {"bytes": one, "path": None} for one in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names or ())}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return path


def write_tables(
    folder: Path, n_train: int = 12, n_test: int = 6, size: int = 8, test_split: str = "test", names: Sequence[str] = CLASSES
) -> tuple[Pixels, Pixels]:
    """Write train and test as parquet, labels 0, 1, 2, 0, ...; returns the images as (n, C, H, W)."""
    train, test = pictures(n_train, size, seed=1), pictures(n_test, size, seed=2)
    for split, images in (("train", train), (test_split, test)):
        labels = [number % len(names) for number in range(len(images))]
        write_table(folder / f"{split}-00000-of-00001.parquet", [png(one) for one in images], labels, names=names)
    return train.transpose(0, 3, 1, 2), test.transpose(0, 3, 1, 2)
