"""Datasets as parquet files in the layout of the Hugging Face hub: each row has an encoded image and a label."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from defensemble_images.class_names import distinct_names, name_problem
from defensemble_images.memory import check_memory
from defensemble_images.reader import EncodedImage
from defensemble_images.regular_files import irregular_file_kind

from ..errors import DataError
from .source import EncodedPart, Source, file_state

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
ROWS_PER_BATCH = 64
_BYTES_PER_LABEL = 32  # measured: 28 at the peak. Equal labels and missing images take almost no space in a file.
MAX_CLASSES = 100_000  # if a file does not name its classes

_FILE = re.compile(r"(?P<split>[a-z]+)(-(?P<shard>\d+)-of-(?P<shards>\d+))?(-[^/]*)?\.parquet")
_LFS_POINTER = b"version https://git-lfs"


def source_from_parquet(folder: Path, test_splits: Sequence[str], max_memory: int | None = None) -> Source | None:
    """Return the dataset of parquet files in a folder or its subfolders (such as data/ or plain_text/), or None if there are none.

    Args:
        folder: The dataset's folder.
        test_splits: Names of the test part, the preferred one first.
        max_memory: Memory limit in bytes for a row group. None: half of the free memory.

    Raises:
        DataError: A split or a file is missing, damaged or not readable, or a label is invalid.
    """
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for candidate in (folder, *subfolders):
        splits = split_files([path.name for path in candidate.iterdir()])
        if splits.keys() & {"train", *test_splits}:
            return _source_from_splits(candidate, splits, test_splits, max_memory)
    return None


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Group the names of parquet files (without folders) by split. Other names are ignored."""
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := _FILE.fullmatch(name):
            splits.setdefault(match["split"], []).append(name)
    return splits


def _source_from_splits(folder: Path, splits: dict[str, list[str]], test_splits: Sequence[str], max_memory: int | None) -> Source:
    test_split = next((split for split in test_splits if split in splits), None)
    if "train" not in splits or test_split is None:
        missing = "train-*.parquet" if "train" not in splits else " or ".join(f"{split}-*.parquet" for split in test_splits)
        raise DataError(f"{folder} lacks a split: it holds parquet files of {', '.join(sorted(splits))}; expected {missing} too")
    for split in ("train", test_split):
        _check_complete(folder, splits[split])
    train, test = ([_open_shard(folder / name, max_memory) for name in splits[split]] for split in ("train", test_split))
    first = train[0]
    for other in (*train[1:], *test):
        if other.class_names != first.class_names:
            raise DataError(f"{other.path} has other class names than {first.path}; expected the same names in every file")
    parts = [EncodedPart(np.concatenate([file.labels for file in files]), partial(_images, files, max_memory)) for files in (train, test)]
    class_names = first.class_names or tuple(str(label) for label in range(1 + max(int(part.labels.max(initial=-1)) for part in parts)))
    return Source("parquet", class_names, parts[0], parts[1], tuple(file_state(folder, file.path) for file in (*train, *test)))


def _check_complete(folder: Path, names: Sequence[str]) -> None:
    """Raise if file names state how many files a split has, and some are missing."""
    matches = [match for name in names if (match := _FILE.fullmatch(name)) and match["shards"]]
    for expected in {int(match["shards"]) for match in matches}:
        missing = set(range(expected)) - {int(match["shard"]) for match in matches if int(match["shards"]) == expected}
        if missing:
            numbers = ", ".join(f"{number:05d}" for number in sorted(missing)[:10])
            raise DataError(
                f"{folder} lacks {len(missing)} of the {expected} files of the split {matches[0]['split']!r}: numbers {numbers}"
                f"{', ...' if len(missing) > 10 else ''}. Download the missing files."
            )


@dataclass(frozen=True, eq=False)
class _Shard:
    path: Path
    image_column: str
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def _open_shard(path: Path, max_memory: int | None) -> _Shard:
    file = _parquet_file(path)
    schema = file.schema_arrow
    image_column = next((name for name in IMAGE_COLUMNS if schema.names.count(name) == 1), None)
    label_column = next((name for name in LABEL_COLUMNS if schema.names.count(name) == 1), None)
    if (
        image_column is None
        or label_column is None
        or not _has_supported_types(schema.field(image_column).type, schema.field(label_column).type)
    ):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path} has the columns {columns}; expected {' or '.join(IMAGE_COLUMNS)} (struct of bytes and path) and "
            f"{' or '.join(LABEL_COLUMNS)} (integers), the layout of image datasets on the Hugging Face hub"
        )
    check_memory(f"the {file.metadata.num_rows:,} labels of {path}", _BYTES_PER_LABEL * file.metadata.num_rows, max_memory)
    try:
        column = file.read(columns=[label_column]).column(0)
        missing = column.is_null().to_numpy()
        labels = column.fill_null(0).to_numpy()
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    finally:
        file.close()
    names = distinct_names(_class_names(schema.metadata, label_column, path), str(path))
    # The hub marks images whose class is not published with -1.
    invalid = np.flatnonzero(missing | (labels < 0) | (labels >= (len(names) or MAX_CLASSES)))
    if invalid.size:
        row = invalid[0]
        expected = f"0 to {len(names) - 1}" if names else f"0 to {MAX_CLASSES - 1} (the file has no class names)"
        raise DataError(
            f"{path} has the {label_column} {'null' if missing[row] else labels[row]} in row {row} (null and -1 mean no class); "
            f"expected {expected} in every row. Use a split whose classes are published."
        )
    return _Shard(path, image_column, labels.astype(np.int64), names)


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow. Install it with: pip install 'defensemble[train]'") from error
    try:
        if (kind := irregular_file_kind(path.stat().st_mode)) is not None:
            raise DataError(f"{path} is {kind}, not a regular file; expected a parquet file. Replace or remove it.")
        with path.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise DataError(f"{path} is a Git LFS pointer, not the file itself. Fetch it with: git lfs pull")
        return parquet.ParquetFile(path)
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise DataError(f"{path} cannot be read: {error.strerror}. Fix its permissions, or remove it.") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid and ArrowNotImplementedError
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged, truncated or not a parquet file ({str(error).splitlines()[0]}). Download or copy it again.")


def _has_supported_types(image: Any, label: Any) -> bool:
    from pyarrow import types  # type: ignore[import-untyped,unused-ignore]

    if not types.is_struct(image) or image.get_field_index("bytes") < 0:
        return False
    image_bytes = image.field("bytes").type
    return bool(types.is_integer(label) and (types.is_binary(image_bytes) or types.is_large_binary(image_bytes)))


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str, path: Path) -> tuple[str, ...]:
    """Return the class names in the metadata that the library `datasets` writes; empty if there are none."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{path} has the class names {str(names)[:100]} in its `huggingface` metadata; expected a list of strings. Correct them, or "
            "remove the metadata (class names are then numbers)."
        )
    for name in names:
        if (problem := name_problem(name)) is not None:
            raise DataError(f"{path} has the class name {name!r}, which {problem}; expected one line of text. Correct the metadata.")
    return tuple(names)


def _check_memory(file: Any, shard: _Shard, max_memory: int | None) -> None:
    """Raise if the images of one row group, which pyarrow may load together, are too large."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = (group.column(index) for index in range(group.num_columns))
        size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == f"{shard.image_column}.bytes")
        check_memory(f"the images in row group {number} of {shard.path}", size, max_memory)


def _images(shards: Sequence[_Shard], max_memory: int | None) -> Iterator[EncodedImage]:
    for shard in shards:
        file = _parquet_file(shard.path)
        row = 0
        try:
            _check_memory(file, shard, max_memory)
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[shard.image_column]):
                # `flatten`, not `field`: it also gives None for rows whose whole struct is null.
                column = batch.column(0)
                for data in column.flatten()[column.type.get_field_index("bytes")].to_pylist():
                    yield EncodedImage(f"{shard.path}, row {row}", data)
                    row += 1
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shard.path} is damaged after row {row} ({str(error).splitlines()[0]}). Download or copy it again."
            ) from error
        finally:
            file.close()
        if row != len(shard.labels):
            raise DataError(f"{shard.path} holds {row} images but {len(shard.labels)} labels. Download or copy it again.")
