"""The action of `defensemble predict`."""

from __future__ import annotations

import heapq
import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn

from ..._client.client import Client
from ..._client.model_info import ModelInfo
from ..._client.prediction import Prediction
from ..._exceptions import InputError
from ..._image_files import ReadCounts, ReadOptions, choose_preprocessing
from ...results.intervals import rate
from ...results.result_file import check_writable, write_text
from ..notes import print_note, print_progress
from ..progress import RateColumn, progress_bar
from .image_sources import NamedImage, check_sources, find_labelled_source, find_sources, read_images
from .prediction_output import CsvOutput, JsonLinesOutput, JsonOutput, PredictionOutput, TableOutput

_BATCH_SIZE = 64
_BATCH_BYTES = 16 << 20  # of float32 images; several batches are under way at the same time
_SHEET_IMAGES = 2000  # a page of 2,000 photographs has 14 MB
_MORE_OUTPUTS = ("mutual_information", "member_probabilities")  # in the order of the columns of CSV


def predict_files(
    client: Client,
    files: Sequence[str],
    outputs: Sequence[str],
    labelled: Path | None = None,
    *,
    top: int = 1,
    batch_size: int | None = None,
    options: ReadOptions | None = None,
    form: str = "table",
    contact_sheet: Path | None = None,
) -> None:
    """Classify images with the client's model and print the predictions.

    Args:
        client: The servers, and the model.
        files: Image files, `.npy` files, folders, patterns, and `-` for standard input.
        outputs: Outputs to request; `probabilities` are always requested.
        labelled: Folder with one folder per class, whose images are classified too, with the accuracy.
        top: Classes to print per image.
        batch_size: Images per request; None: 64, or fewer if the model's max_batch_size is smaller or the images are large.
        options: How image files are read.
        form: `table`, `json`, `jsonl` or `csv`. The last two are printed as the predictions come.
        contact_sheet: HTML page to write, with the images; an earlier one is kept under another name.

    Raises:
        InputError: An argument has no images, or an image cannot be decoded. The predictions of the images before it are printed first,
            by `jsonl` and `csv`.
        OSError: A file cannot be read, or the page cannot be written, which is checked before the first request.
    """
    options = options or ReadOptions()
    outputs = outputs if "probabilities" in outputs else ["probabilities", *outputs]  # the labels need them
    counts = ReadCounts()
    if contact_sheet is not None:
        check_writable(contact_sheet)
    with ExitStack() as cleanup:
        sources = find_sources(files, counts, cleanup)
        info = client.describe()
        if labelled is not None:
            sources.append(find_labelled_source(labelled, info, counts))
        preprocessing, note = choose_preprocessing(info, options.resize) if any(source.files for source in sources) else (None, None)
        if note is not None:
            print_note(note)
        size_of = partial(_batch_size, batch_size, info)
        image_bytes = 4 * math.prod(info.image_shape) if min(info.image_shape) > 0 else 0
        # Each image is in memory twice: as it was read, and in the batch; one batch is being read while others are under way.
        check_sources(sources, info, 2 * (client.max_parallel + 1) * size_of(image_bytes) * image_bytes, options.max_memory)
        output = _output(form, info, outputs, top, labelled is not None)
        sheet = None if contact_sheet is None else _ContactSheet()
        correct: list[bool] = []
        errors: list[Exception] = []
        total, done = sum(map(len, sources)), 0
        streams_to_terminal = form in ("jsonl", "csv") and sys.stdout.isatty()  # then the lines show the progress
        bar = progress_bar(
            Console(stderr=True), MofNCompleteColumn(), RateColumn("images"), shown=total > _BATCH_SIZE and not streams_to_terminal
        )
        with bar, closing(_until_error(read_images(sources, info, preprocessing, options, counts), errors)) as images:
            task = bar.add_task(f"predicting with {info.name}", total=total)
            for image, prediction in _predictions(client, info, images, outputs, size_of):
                row = {"file": image.name, **prediction.to_dict(top)["images"][0]}
                truth = None if image.class_index is None else info.class_names[image.class_index]
                if truth is not None:
                    row["truth"] = truth
                    correct.append(row["label"] == truth)
                output.add(row)
                if sheet is not None:
                    sheet.add(image, prediction, truth)
                done += 1
                bar.advance(task)
    if errors:
        raise errors[0]
    for line in counts.lines():
        print_note(line)
    if not done:
        raise InputError(f"none of the {total} images can be decoded; the first error: {counts.damaged[0]}")
    accuracy = None if labelled is None else {"folder": str(labelled), "model": info.name, **rate(np.array(correct, np.bool_)).json()}
    rule = None if preprocessing is None else preprocessing.to_values()
    output.finish({"model": info.name, "accuracy": accuracy, **counts.json(), "preprocessing": rule}, _accuracy_text(accuracy))
    if sheet is not None and contact_sheet is not None:
        sheet.write(contact_sheet, info.name)


def _batch_size(chosen: int | None, info: ModelInfo, image_bytes: int) -> int:
    """Return the images per request, for images of a size; 0 bytes: unknown."""
    if chosen is not None:
        return chosen
    return min(_BATCH_SIZE, info.max_batch_size or _BATCH_SIZE, max(1, _BATCH_BYTES // max(1, image_bytes)))


def _output(form: str, info: ModelInfo, outputs: Sequence[str], top: int, with_truth: bool) -> PredictionOutput:
    if form == "json":
        return JsonOutput()
    if form == "jsonl":
        return JsonLinesOutput()
    if form == "csv":
        columns = ["entropy", *(name for name in _MORE_OUTPUTS if name in outputs), *(["truth"] if with_truth else [])]
        return CsvOutput(columns, min(top, len(info.class_names)))
    return TableOutput(info.name, with_truth=with_truth, with_information="mutual_information" in outputs)


def _until_error(images: Iterator[NamedImage], errors: list[Exception]) -> Generator[NamedImage, None, None]:
    """Yield images until one cannot be read, so that those before it are predicted; the error is added to `errors`."""
    try:
        yield from images
    except (InputError, OSError) as error:
        errors.append(error)


def _predictions(
    client: Client, info: ModelInfo, images: Iterable[NamedImage], outputs: Sequence[str], size_of: Callable[[int], int]
) -> Iterator[tuple[NamedImage, Prediction]]:
    """Yield each image with its prediction. Images of one shape that follow each other are sent together."""
    for shape, group in groupby(images, key=lambda image: image.values.shape):
        pending: deque[NamedImage] = deque()  # read, not yet predicted: as many as the client pulls ahead
        size = size_of(4 * math.prod(shape))
        for prediction in client.predict_iter(_values(group, pending), outputs, info.name, batch_size=size):
            yield pending.popleft(), prediction


def _values(images: Iterator[NamedImage], pending: deque[NamedImage]) -> Iterator[NDArray[np.float32]]:
    for image in images:
        pending.append(image)
        yield image.values


def _accuracy_text(accuracy: dict[str, Any] | None) -> str | None:
    if accuracy is None or not accuracy["n"]:
        return None
    return f"accuracy {accuracy['value']:.4f}, Wilson 95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {accuracy['n']}"


class _ContactSheet:
    """Keeps the thumbnails of the most uncertain images, and writes them as a page."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, str, bytes, Prediction, str | None]] = []  # a heap, the most certain image first
        self._count = 0

    def add(self, image: NamedImage, prediction: Prediction, truth: str | None) -> None:
        from ..._client.contact_sheet import encode_thumbnail

        entropy = float(prediction.entropy[0])
        self._count += 1
        if len(self._kept) == _SHEET_IMAGES and entropy <= self._kept[0][0]:
            return
        # The index array copies: a slice would keep the whole batch in memory.
        entry = (entropy, -self._count, image.name, encode_thumbnail(image.values), prediction[[0]], truth)
        (heapq.heappushpop if len(self._kept) == _SHEET_IMAGES else heapq.heappush)(self._kept, entry)

    def write(self, path: Path, model: str) -> None:
        from ..._client.contact_sheet import write_contact_sheet

        kept = sorted(self._kept, key=lambda entry: -entry[1])
        title = f"Predictions of {model}"
        if self._count > len(kept):
            title += f": the {len(kept):,} most uncertain of {self._count:,} images"
        earlier = write_text(
            path,
            lambda file: write_contact_sheet(
                file,
                [(name, thumbnail) for _, _, name, thumbnail, _, _ in kept],
                [prediction for *_, prediction, _ in kept],
                title,
                true_labels=[truth for *_, truth in kept],
            ),
            keep_earlier=True,
        )
        print_progress(f"wrote {path}{'' if earlier is None else f' (the earlier file is kept as {earlier})'}")
