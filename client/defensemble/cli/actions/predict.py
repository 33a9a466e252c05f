"""What `defensemble predict` does once its arguments are read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from defensemble_images import SUFFIXES, Preprocessing, StoredArray, check_memory, npy_array

from ..._client.client import Client
from ..._client.model_info import ModelInfo
from ..._client.prediction import Prediction
from ..._exceptions import InputError
from ..._image_files import (
    ReadCounts,
    ReadOptions,
    choose_preprocessing,
    decode_for_model,
    decode_memory_bytes,
    find_labelled_images,
    input_errors,
)
from ...results.intervals import rate
from ..notes import print_note
from ..progress import progress_bar

SCHEMA = "defensemble.predict/1"
_BATCH_SIZE = 64
_BATCH_BYTES = 64 << 20
_WIDTH_OF_A_FILE = 120


@dataclass(frozen=True)
class _Source:
    """What is to be predicted: image files, each with the index of its class or None, or one `.npy` file."""

    files: Sequence[Path]
    truth: Sequence[int | None]
    array: StoredArray | None = None

    def __len__(self) -> int:
        return len(self.files) if self.array is None else self.array.shape[0]


def predict_files(
    client: Client,
    files: Sequence[Path],
    outputs: Sequence[str],
    labelled: Path | None = None,
    *,
    top: int = 1,
    batch_size: int | None = None,
    options: ReadOptions | None = None,
    as_json: bool = False,
) -> None:
    """Print what the client's model answers to image and `.npy` files, and to a folder of class folders, with its accuracy.

    A call has `batch_size` images; None: 64, or fewer where the model takes fewer or they are large.
    """
    options = options or ReadOptions()
    outputs = outputs if "probabilities" in outputs else ["probabilities", *outputs]  # the table needs them
    info = client.describe()
    counts = ReadCounts()
    sources = _sources(files, info)
    if labelled is not None:
        images, classes = find_labelled_images(labelled, info, counts)
        sources.append(_Source(images, classes.tolist()))
    preprocessing, note = choose_preprocessing(info, options.resize) if any(source.files for source in sources) else (None, None)
    if note is not None:
        print_note(note)
    size = batch_size or min(_BATCH_SIZE, info.max_batch_size or _BATCH_SIZE)
    largest = None if batch_size else _BATCH_BYTES
    _check_memory(sources, info, size, largest, options.max_memory)
    rows: list[dict[str, Any]] = []
    total = sum(map(len, sources))
    with progress_bar(Console(stderr=True), shown=total > size) as progress:
        task = progress.add_task(f"asking {info.name}", total=total)
        for batch in _batches(_images(sources, info, preprocessing, options, counts), size, largest):
            prediction = client.predict(np.stack([image.values for image in batch]), outputs)
            rows += _rows(batch, prediction, top)
            progress.advance(task, len(batch))
    for line in counts.lines():
        print_note(line)
    if not rows:
        raise InputError(f"none of the {total} images can be decoded, the first: {counts.damaged[0]}")
    accuracy = None
    if labelled is not None:
        right = [row["label"] == row["truth"] for row in rows if "truth" in row]
        accuracy = {"folder": str(labelled), "model": info.name, **rate(np.array(right, np.bool_)).json()}
    if as_json:
        result = {"schema": SCHEMA, "model": info.name, "predictions": rows, "accuracy": accuracy, **counts.json()}
        result["preprocessing"] = None if preprocessing is None else preprocessing.to_values()
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    console.print(_table(info, rows, with_truth=labelled is not None))
    if accuracy is not None and accuracy["n"]:
        text = (
            f"accuracy {accuracy['value']:.4f}, Wilson 95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {accuracy['n']}"
        )
        console.print(text, highlight=False)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image with its name and, where it is known, its class."""

    name: str
    values: NDArray[np.float32]
    truth: int | None = None


def _sources(files: Sequence[Path], info: ModelInfo) -> list[_Source]:
    """Look at all files before the first is decoded; consecutive image files are decoded together."""
    sources: list[_Source] = []
    for is_array, group in groupby(files, lambda file: file.suffix.lower() == ".npy"):
        some = list(group)
        if not is_array:
            for file in some:
                if file.is_dir():
                    raise InputError(
                        f"{file} is a folder, expected files: pass those in it, or --labelled {file} where it has class folders"
                    )
                if not file.name.lower().endswith(SUFFIXES):
                    raise InputError(f"{file} is neither an image ({', '.join(SUFFIXES)}) nor a .npy file")
            sources.append(_Source(some, [None] * len(some)))
            continue
        for file in some:
            with input_errors():
                array = npy_array(file)
                if len(array.shape) == 3:
                    array = replace(array, shape=(1, *array.shape))
                array.check_images(info.image_shape)
            sources.append(_Source([], [], array))
    return sources


def _check_memory(sources: Sequence[_Source], info: ModelInfo, size: int, largest: int | None, limit: int | None) -> None:
    """Refuse what would take too much memory: images are decoded and asked about a batch at a time, Fortran order is read as a whole."""
    for source in sources:
        shape = info.image_shape if source.array is None else source.array.shape[1:]
        one = 4 * math.prod(shape) if min(shape) > 0 else 0  # image files of any size: `decode_memory_bytes` counts the largest
        batch = 2 * min(size * one, max(largest, one) if largest else size * one, len(source) * one)
        with input_errors():
            if source.array is not None:
                check_memory(str(source.array.path), batch + 2 * source.array.float_bytes * source.array.fortran_order, limit)
            elif source.files:
                what = str(source.files[0]) if len(source.files) == 1 else f"decoding {len(source.files)} images from {source.files[0]} on"
                check_memory(what, batch + decode_memory_bytes(source.files, info), limit)


def _images(
    sources: Sequence[_Source], info: ModelInfo, preprocessing: Preprocessing | None, options: ReadOptions, counts: ReadCounts
) -> Iterator[_Image]:
    for source in sources:
        if source.array is None:
            for index, values in decode_for_model(source.files, info, preprocessing, options.skip_damaged, counts):
                yield _Image(str(source.files[index]), values, source.truth[index])
            continue
        number = 0
        with input_errors():
            for images in source.array.batches():
                for values in images:
                    name = str(source.array.path)
                    yield _Image(name if len(source) == 1 else f"{name}[{number}]", values)
                    number += 1


def _batches(images: Iterator[_Image], size: int, largest: int | None) -> Iterator[list[_Image]]:
    """Group consecutive images of one shape; of no more than `largest` bytes, but of one image at least."""
    batch: list[_Image] = []
    for image in images:
        if batch:
            first = batch[0].values
            too_large = largest is not None and (len(batch) + 1) * first.nbytes > largest
            if len(batch) == size or too_large or image.values.shape != first.shape:
                yield batch
                batch = []
        batch.append(image)
    if batch:
        yield batch


def _rows(images: Sequence[_Image], prediction: Prediction, top: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    best = np.argsort(-prediction.probabilities, axis=1, kind="stable")[:, :top]
    for index, (image, label, nats) in enumerate(zip(images, prediction.labels, prediction.entropy, strict=True)):
        scores = prediction.probabilities[index]
        row: dict[str, Any] = {
            "file": image.name,
            "label": label,
            "index": int(best[index, 0]),
            "probability": float(scores[best[index, 0]]),
            "entropy": float(nats),
            "top": [{"label": prediction.class_names[k], "index": int(k), "probability": float(scores[k])} for k in best[index]],
        }
        for name in ("mutual_information", "member_probabilities"):
            if name in prediction.received:
                row[name] = prediction.received[name][index].tolist()
        if image.truth is not None:
            row["truth"] = prediction.class_names[image.truth]
        rows.append(row)
    return rows


def _table(info: ModelInfo, rows: Sequence[dict[str, Any]], with_truth: bool) -> Table:
    table = Table(title=f"{escape(info.name)}: {len(rows)} image{'' if len(rows) == 1 else 's'}")
    table.add_column("file", overflow="fold")
    if with_truth:
        table.add_column("truth")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("entropy (nats)", justify="right")
    with_information = bool(rows) and "mutual_information" in rows[0]
    if with_information:
        table.add_column("mutual information (nats)", justify="right")
    for row in rows:
        cells = [row["file"]]
        if with_truth:
            cells.append(row.get("truth", ""))
        cells.append("\n".join(one["label"] for one in row["top"]))
        cells.append("\n".join(f"{one['probability']:.4f}" for one in row["top"]))
        cells.append(f"{row['entropy']:.4f}")
        if with_information:
            cells.append(f"{row['mutual_information']:.4f}")
        table.add_row(*(escape(cell) for cell in cells))
    return table
