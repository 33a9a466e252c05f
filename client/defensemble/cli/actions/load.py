"""The action of `defensemble load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..._client.model_info import ModelInfo
from ..._exceptions import InputError
from ..._image_files import ReadCounts, ReadOptions, choose_preprocessing
from ..._transport.base import TlsFiles
from ...load import LoadResult, LoadSettings, TargetResult, find_capacity, run_load
from ...probes.data import load_probe_data
from ...results.result_file import check_writable, write_result
from ..datasets import DatasetLocation
from ..notes import print_note, print_progress
from .image_sources import check_sources, find_sources, read_images
from .load_view import TABLE_WIDTH, LoadView, tables_from_result

_DEFAULT_CALLERS = (1, 2, 4, 8)
INTERRUPTED = 130


@dataclass(frozen=True)
class LoadOutput:
    """The files to write; None for none."""

    json_file: Path | None
    html_file: Path | None


@dataclass(frozen=True)
class ImageChoice:
    """The images to send; neither sources nor a dataset: random ones.

    Attributes:
        sources: Image files, folders, patterns, `.npy` files, and `-` for standard input.
        dataset: A dataset.
        limit: Most images to read.
    """

    sources: Sequence[str]
    dataset: DatasetLocation | None
    limit: int

    @property
    def name(self) -> str:
        """What the result calls the images."""
        if self.dataset is None:
            return ", ".join(self.sources)
        return str(self.dataset.archive or self.dataset.name or self.dataset.folder)


def load_test(
    urls: Sequence[str],
    settings: Mapping[str, Any],
    choice: ImageChoice,
    output: LoadOutput,
    *,
    searches_capacity: bool,
    tls: TlsFiles | None,
) -> int:
    """Run a test, print and write its result, and return the exit status.

    Args:
        urls: The servers.
        settings: The fields of `LoadSettings`.
        choice: The images.
        output: The files to write.
        searches_capacity: Whether to search the capacity.
        tls: PEM files for TLS.

    Raises:
        InputError: An argument is invalid, or a model does not accept the calls.
        MissingExtraError: The extra `load` is not installed.
        ServiceError: A server cannot be reached before the test.
        OSError: A file cannot be read or written; the latter is checked before the test.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not searches_capacity and not {"callers", "rates"} & given.keys():
        given["callers"] = _DEFAULT_CALLERS
    chosen = LoadSettings(**given)
    files = [path for path in (output.json_file, output.html_file) if path is not None]
    if len({path.resolve() for path in files}) < len(files):
        raise InputError(f"--json and --html name the same file, {output.html_file}: choose another name for one of them")
    for path in files:
        check_writable(path)
    if output.html_file is not None:
        from ...reports.charts import require_charts
        from ...reports.load import write_load_report

        require_charts("load")
    has_images = bool(choice.sources) or choice.dataset is not None
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # on a narrow terminal, lines wrap; rich would leave out digits
    test = find_capacity if searches_capacity else run_load
    with LoadView(Console(stderr=True), chosen, len(urls), searches_capacity=searches_capacity) as view:
        images = _ImageReader(choice, chosen.seed) if has_images else None
        result = test(urls, chosen, images, images_name=choice.name, tls=tls, on_progress=view.show)
    # First of all: standard output may be broken.
    if output.json_file is not None:
        earlier = write_result(output.json_file, result.json(), keep_earlier=True)
        print_progress(f"wrote {output.json_file}{'' if earlier is None else f' (the earlier file is kept as {earlier})'}")
    if output.html_file is not None:
        write_load_report(output.html_file, result, "html")
        print_progress(f"wrote {output.html_file}")
    for table in tables_from_result(result):
        console.print(table)
    for target in result.targets:
        if any(step.server_counters is None for step in target.steps):
            print_note(f"{target.url} reported no statistics for some steps: their server columns are empty")
    return exit_status(result, searches_capacity=searches_capacity)


def exit_status(result: LoadResult, *, searches_capacity: bool) -> int:
    """Return the exit status for a result.

    Args:
        result: The result.
        searches_capacity: Whether the capacity was searched.
    """
    if result.interrupted:
        return INTERRUPTED
    if searches_capacity:
        return int(any(target.capacity is None or target.capacity.rate_per_s is None for target in result.targets))
    return int(not all(_passes(target, result) for target in result.targets))


def _passes(target: TargetResult, result: LoadResult) -> bool:
    slo = result.settings.slo
    if not target.steps or not all(step.valid and step.answered for step in target.steps):
        return False
    return slo is None or target.steps[-1].holds(slo)


@dataclass(frozen=True)
class _ImageReader:
    """Reads the images in the size of a model."""

    choice: ImageChoice
    seed: int

    def __call__(self, info: ModelInfo) -> NDArray[np.float32]:
        choice = self.choice
        if choice.dataset is not None:
            folder = None if choice.dataset.name is None else choice.dataset.folder
            data = load_probe_data(choice.name, info, choice.limit, self.seed, folder)
            for text in data.notes:
                print_note(text)
            return data.data.images
        counts = ReadCounts()
        with ExitStack() as cleanup:
            sources = find_sources(choice.sources, counts, cleanup)
            preprocessing, note = choose_preprocessing(info, None) if any(source.files for source in sources) else (None, None)
            check_sources(sources, info, 0, None)
            found = [image.values for image in islice(read_images(sources, info, preprocessing, ReadOptions(), counts), choice.limit)]
        for text in (*(() if note is None else (note,)), *counts.lines()):
            print_note(text)
        shapes = sorted({values.shape for values in found})
        if len(shapes) > 1:
            raise InputError(f"{choice.name} has images of several sizes, {shapes[0]} and {shapes[-1]}; expected one: resize them")
        return np.stack(found)
