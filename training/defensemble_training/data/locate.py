"""Find the images of a dataset: in a local folder, then in the cache of decoded images, then on the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from defensemble_images.class_names import format_names
from defensemble_images.decoding import survey
from defensemble_images.folders import SkippedFiles, format_contents

from ..errors import DataError
from . import hub
from .cache import DecodeJob, Entry, entry_key, load_or_decode_entry
from .cache_writer import DecodeOptions, OnProgress
from .class_folders import source_from_class_folders
from .parquet import source_from_parquet
from .registry import DATASET_INFOS, LARGEST_SIZE, SMALLEST_SIZE, DatasetInfo
from .source import EXPECTED, Source, check_classes


def find_entry(
    name: str, size: int | None, data_dir: str | Path | None, options: DecodeOptions, on_progress: OnProgress
) -> tuple[Entry, SkippedFiles]:
    """Open a decoded dataset. Download and decode it first if necessary. The arguments are those of `load_dataset`.

    Returns:
        The dataset, and the number of files that were skipped in its class folders.

    Raises:
        DataError: The dataset is not available, has another layout, or cannot be cached.
        defensemble_images.ImagesError: An image is damaged, or a file has an invalid name or location.
    """
    info = DATASET_INFOS[name]
    size = size or info.size
    rule = None if options.preprocessing is None else options.preprocessing.to_values()
    folder = _local_folder(name, data_dir)
    if folder is not None:
        source = detect_source(folder, info.test_splits, options.max_memory)
        _check_number_of_classes(name, info, source, folder)
        origin = f"{'images' if name == 'folder' else name} from a local folder"
        prepare = partial(_decode_job, source, origin, info, size, folder, options)
        # The key includes the path: copies may be equal in everything else, such as bitmaps of one size with times set by an archive.
        key = entry_key(name, size, [rule, str(folder.resolve()), source.files])
        return load_or_decode_entry(key, prepare, skip_damaged=options.skip_damaged, on_progress=on_progress), source.skipped
    if info.repository is None:
        reason = "needs a folder of images" if name == "folder" else "is not on the Hugging Face hub"
        option = "FOLDER" if name == "folder" else f"{name}=FOLDER"
        raise DataError(f"the dataset {name!r} {reason}. Pass it as data_dir=FOLDER (--dataset {option}); {EXPECTED}")
    repository = info.repository

    def from_hub() -> DecodeJob:
        hub_folder, revision = hub.download_dataset(name, repository, info.test_splits, on_progress)
        origin = f"{repository} (revision {revision[:12]})"
        return _decode_job(detect_source(hub_folder, info.test_splits, options.max_memory), origin, info, size, hub_folder, options)

    # The key does not include the revision, so a decoded dataset is found without a network and never changes.
    key = entry_key(name, size, [rule, "hub", repository])
    return load_or_decode_entry(key, from_hub, skip_damaged=options.skip_damaged, on_progress=on_progress), SkippedFiles()


def detect_source(folder: Path, test_splits: Sequence[str], max_memory: int | None = None) -> Source:
    """Return the dataset in a folder: parquet files in the hub's layout, or class folders of images.

    Args:
        folder: The folder.
        test_splits: Names of the test part, the preferred one first.
        max_memory: Memory limit in bytes for a row group of a parquet file. None: half of the free memory.

    Raises:
        DataError: The folder does not exist, has another layout, or its files are damaged or incomplete.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {EXPECTED}")
    source = source_from_parquet(folder, test_splits, max_memory) or source_from_class_folders(folder, test_splits)
    if source is None:
        raise DataError(f"{folder} has no dataset of a known layout; it contains {format_contents(folder)}; {EXPECTED}")
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
            f"{folder} holds {len(source.class_names)} classes ({format_names(source.class_names)}); expected the {info.classes} of "
            f"{name}. Pass the folder of {name}, or use the dataset 'folder' (--dataset FOLDER) for your own images."
        )


def _decode_job(source: Source, origin: str, info: DatasetInfo, size: int | None, folder: Path, options: DecodeOptions) -> DecodeJob:
    """Determine the channels and the size to decode to, from the image headers if nothing else states them."""
    if info.channels is not None and size is not None:
        return DecodeJob(source, origin, info.channels, size, options)
    surveys = [survey(part.images()) for part in (source.train, source.test)]
    sizes = surveys[0].sizes + surveys[1].sizes
    channels = info.channels or (1 if surveys[0].all_grey and surveys[1].all_grey else 3)
    if size is not None or not sizes:  # without sizes all images are damaged, which decoding reports
        return DecodeJob(source, origin, channels, size or SMALLEST_SIZE, options)
    common_sizes = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(5))
    width, height = next(iter(sizes))
    if len(sizes) > 1 or width != height or not SMALLEST_SIZE <= width <= LARGEST_SIZE:
        raise DataError(
            f"the images of {folder} have {len(sizes)} {'sizes' if len(sizes) > 1 else 'size'} (width x height): {common_sizes}; expected "
            f"one square size from {SMALLEST_SIZE} to {LARGEST_SIZE}. Pass a size (--size) to scale and crop all images to it."
        )
    return DecodeJob(source, origin, channels, width, options)
