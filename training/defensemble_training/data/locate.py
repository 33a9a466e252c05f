"""Where the images of a dataset are looked for, in order: a folder that is named, the cache of decoded images, the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from defensemble_images.class_names import listed
from defensemble_images.decoding import survey
from defensemble_images.folders import Skipped, contents

from ..errors import DataError
from . import hub
from .cache import Entry, Undecoded, entry_key, entry_of
from .cache_writer import OnProgress, Reading
from .class_folders import folders_source
from .parquet import parquet_source
from .registry import DATASET_INFOS, LARGEST_SIZE, SMALLEST_SIZE, DatasetInfo
from .source import EXPECTED, Source, check_classes


def find_entry(
    name: str, size: int | None, data_dir: str | Path | None, reading: Reading, on_progress: OnProgress
) -> tuple[Entry, Skipped]:
    """Open a dataset decoded, and decode or download it first where that was not done before; the arguments are those of `load_dataset`.

    Returns it with what was skipped in its class folders.

    Raises:
        DataError: it is nowhere, of another layout, or cannot be kept.
        defensemble_images.ImagesError: an image is damaged, or a name or a place of a file is not accepted.
    """
    info = DATASET_INFOS[name]
    size = size or info.size
    rule = None if reading.preprocessing is None else reading.preprocessing.to_values()
    folder = _local_folder(name, data_dir)
    if folder is not None:
        source = source_in(folder, info.test_splits, reading.max_memory)
        _check_number_of_classes(name, info, source, folder)
        origin = f"{'images' if name == 'folder' else name} from a local folder"
        undecoded = partial(_undecoded, source, origin, info, size, folder, reading)
        # With the path: copies may agree in all else, such as bitmaps of one size whose times were set by an archive.
        key = entry_key(name, size, [rule, str(folder.resolve()), source.files])
        return entry_of(key, undecoded, skip_damaged=reading.skip_damaged, on_progress=on_progress), source.skipped
    if info.repository is None:
        why = "is what you make of it" if name == "folder" else "has no copy on the Hugging Face hub"
        option = "--dataset FOLDER" if name == "folder" else f"--dataset {name}=FOLDER"
        raise DataError(f"the dataset {name!r} {why}: pass the folder that holds it, data_dir ({option}); {EXPECTED}")
    repository = info.repository

    def from_hub() -> Undecoded:
        place, revision = hub.downloaded(name, repository, info.test_splits, on_progress)
        origin = f"{repository} (revision {revision[:12]})"
        return _undecoded(source_in(place, info.test_splits, reading.max_memory), origin, info, size, place, reading)

    # The revision is no part of the key: what was decoded once is found without a network, and stays what it is.
    key = entry_key(name, size, [rule, "hub", repository])
    return entry_of(key, from_hub, skip_damaged=reading.skip_damaged, on_progress=on_progress), Skipped()


def source_in(folder: Path, test_splits: Sequence[str], max_memory: int | None = None) -> Source:
    """Recognise what a folder holds: parquet files as the Hugging Face hub has them, or class folders of images.

    `test_splits` are names of the test part, the preferred one first; a row group of a parquet file may take `max_memory` bytes (None: half
    of the free memory).

    Raises:
        DataError: there is no such folder, it holds neither, or what it holds is damaged or incomplete.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {EXPECTED}")
    source = parquet_source(folder, test_splits, max_memory) or folders_source(folder, test_splits)
    if source is None:
        raise DataError(f"{folder} holds no dataset of a known layout, but {contents(folder)}; {EXPECTED}")
    check_classes(source.class_names, source.train.labels, source.test.labels, folder)
    return source


def _local_folder(name: str, data_dir: str | Path | None) -> Path | None:
    if data_dir is not None:
        return Path(data_dir)
    base = os.environ.get("DEFENSEMBLE_DATA_DIR")
    return Path(base) / name if base and (Path(base) / name).is_dir() else None


def _check_number_of_classes(name: str, info: DatasetInfo, source: Source, folder: Path) -> None:
    if info.classes is not None and len(source.class_names) != info.classes:
        raise DataError(
            f"{folder} holds {len(source.class_names)} classes ({listed(source.class_names)}), expected the {info.classes} of {name}; pass "
            f"the folder of {name}, or take the dataset 'folder' (--dataset FOLDER) for a set of your own"
        )


def _undecoded(source: Source, origin: str, info: DatasetInfo, size: int | None, folder: Path, reading: Reading) -> Undecoded:
    """Find out which channels and which size images are decoded to, by their headers where nothing states it."""
    if info.channels is not None and size is not None:
        return Undecoded(source, origin, info.channels, size, reading)
    surveys = [survey(part.images()) for part in (source.train, source.test)]
    sizes = surveys[0].sizes + surveys[1].sizes
    channels = info.channels or (1 if surveys[0].all_grey and surveys[1].all_grey else 3)
    if size is not None or not sizes:  # without sizes all are damaged, which decoding reports
        return Undecoded(source, origin, channels, size or SMALLEST_SIZE, reading)
    shown = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(5))
    width, height = next(iter(sizes))
    if len(sizes) > 1 or width != height or not SMALLEST_SIZE <= width <= LARGEST_SIZE:
        raise DataError(
            f"the images of {folder} have {len(sizes)} {'sizes' if len(sizes) > 1 else 'size'} (width x height), {shown}; expected one "
            f"for all, square, from {SMALLEST_SIZE} to {LARGEST_SIZE}; pass a size (--size): they are scaled and cropped to it"
        )
    return Undecoded(source, origin, channels, width, reading)
