"""The action of `defensemble predict`."""

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
_FILE_WIDTH = 120  # characters per line where standard output is not a terminal


@dataclass(frozen=True)
class _Source:
    """Image files, each with the index of its class or None, or one `.npy` file."""

    files: Sequence[Path]
    classes: Sequence[int | None]
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
    """Classify images with the client's model and print the predictions.

    Args:
        client: The server, and the model.
        files: Image files and `.npy` files.
        outputs: Outputs to request; `probabilities` are always requested.
        labelled: Folder with one folder per class, whose images are classified too, with the accuracy.
        top: Classes to print per image.
        batch_size: Images per request; None: 64, or fewer if the model's max_batch_size is smaller or the images are large.
        options: How image files are read.
        as_json: Whether to print JSON instead of a table.

    Raises:
        InputError: A file is no image, or no image can be decoded.
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
        task = progress.add_task(f"predicting with {info.name}", total=total)
        for batch in _batches(_images(sources, info, preprocessing, options, counts), size, largest):
            prediction = client.predict(np.stack([image.values for image in batch]), outputs)
            rows += _rows(batch, prediction, top)
            progress.advance(task, len(batch))
    for line in counts.lines():
        print_note(line)
    if not rows:
        raise InputError(f"none of the {total} images can be decoded; the first error: {counts.damaged[0]}")
    accuracy = None
    if labelled is not None:
        correct = [row["label"] == row["truth"] for row in rows if "truth" in row]
        accuracy = {"folder": str(labelled), "model": info.name, **rate(np.array(correct, np.bool_)).json()}
    if as_json:
        result = {"schema": SCHEMA, "model": info.name, "predictions": rows, "accuracy": accuracy, **counts.json()}
        result["preprocessing"] = None if preprocessing is None else preprocessing.to_values()
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(_table(info, rows, with_truth=labelled is not None))
    if accuracy is not None and accuracy["n"]:
        text = (
            f"accuracy {accuracy['value']:.4f}, Wilson 95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {accuracy['n']}"
        )
        console.print(text, highlight=False)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image with its name and, if known, its class."""

    name: str
    values: NDArray[np.float32]
    class_index: int | None = None


def _sources(files: Sequence[Path], info: ModelInfo) -> list[_Source]:
    """Check all files before the first is decoded; group consecutive image files, which are decoded together."""
    sources: list[_Source] = []
    for is_array, group in groupby(files, lambda file: file.suffix.lower() == ".npy"):
        grouped = list(group)
        if not is_array:
            for file in grouped:
                if file.is_dir():
                    raise InputError(
                        f"{file} is a folder; expected files. Pass the files in it, or --labelled {file} if it has one folder per class."
                    )
                if not file.name.lower().endswith(SUFFIXES):
                    raise InputError(f"{file} is neither an image ({', '.join(SUFFIXES)}) nor a .npy file")
            sources.append(_Source(grouped, [None] * len(grouped)))
            continue
        for file in grouped:
            with input_errors():
                array = npy_array(file)
                if len(array.shape) == 3:
                    array = replace(array, shape=(1, *array.shape))
                array.check_images(info.image_shape)
            sources.append(_Source([], [], array))
    return sources


def _check_memory(sources: Sequence[_Source], info: ModelInfo, size: int, largest: int | None, limit: int | None) -> None:
    """Refuse sources that need more memory than allowed: images are decoded batch by batch, arrays in Fortran order as a whole."""
    for source in sources:
        shape = info.image_shape if source.array is None else source.array.shape[1:]
        image = 4 * math.prod(shape) if min(shape) > 0 else 0  # image files of any size: `decode_memory_bytes` counts the largest
        batch = 2 * min(size * image, max(largest, image) if largest else size * image, len(source) * image)
        with input_errors():
            if source.array is not None:
                check_memory(str(source.array.path), batch + 2 * source.array.float_bytes * source.array.fortran_order, limit)
            elif source.files:
                first = source.files[0]
                subject = str(first) if len(source.files) == 1 else f"decoding {len(source.files)} images, the first of which is {first},"
                check_memory(subject, batch + decode_memory_bytes(source.files, info), limit)


def _images(
    sources: Sequence[_Source], info: ModelInfo, preprocessing: Preprocessing | None, options: ReadOptions, counts: ReadCounts
) -> Iterator[_Image]:
    for source in sources:
        if source.array is None:
            for index, values in decode_for_model(source.files, info, preprocessing, options.skip_damaged, counts):
                yield _Image(str(source.files[index]), values, source.classes[index])
            continue
        number = 0
        with input_errors():
            for images in source.array.batches():
                for values in images:
                    name = str(source.array.path)
                    yield _Image(name if len(source) == 1 else f"{name}[{number}]", values)
                    number += 1


def _batches(images: Iterator[_Image], size: int, largest: int | None) -> Iterator[list[_Image]]:
    """Group consecutive images of one shape, up to `size` images and `largest` bytes, but at least one image."""
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
        if image.class_index is not None:
            row["truth"] = prediction.class_names[image.class_index]
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
        cells.append("\n".join(entry["label"] for entry in row["top"]))
        cells.append("\n".join(f"{entry['probability']:.4f}" for entry in row["top"]))
        cells.append(f"{row['entropy']:.4f}")
        if with_information:
            cells.append(f"{row['mutual_information']:.4f}")
        table.add_row(*(escape(cell) for cell in cells))
    return table
