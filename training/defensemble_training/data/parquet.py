"""A dataset as parquet files in the layout of the Hugging Face hub: one row an image, encoded bytes in it, and a label."""

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
from defensemble_images.regular_files import irregular

from ..errors import DataError
from .source import EncodedPart, Source, file_state

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
ROWS_AT_ONCE = 64
MOST_CLASSES = 100_000  # where a file does not name them

_FILE = re.compile(r"(?P<split>[a-z]+)(-(?P<shard>\d+)-of-(?P<shards>\d+))?(-[^/]*)?\.parquet")
_POINTER = b"version https://git-lfs"


def parquet_source(folder: Path, test_splits: Sequence[str], max_memory: int | None = None) -> Source | None:
    """Recognise parquet files in a folder or in one below it (such as data/ or plain_text/); None where there are none."""
    # Sorted, but the folder itself before those below it.
    places = [folder, *sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))]
    for place in places:
        splits = split_files([path.name for path in place.iterdir()])
        if splits.keys() & {"train", *test_splits}:
            return _of_splits(place, splits, test_splits, max_memory)
    return None


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Sort names of parquet files (no folders) by their split; other names are left out."""
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := _FILE.fullmatch(name):
            splits.setdefault(match["split"], []).append(name)
    return splits


def _of_splits(folder: Path, splits: dict[str, list[str]], test_splits: Sequence[str], max_memory: int | None) -> Source:
    test_split = next((split for split in test_splits if split in splits), None)
    if "train" not in splits or test_split is None:
        missing = "train-*.parquet" if "train" not in splits else " or ".join(f"{split}-*.parquet" for split in test_splits)
        raise DataError(f"{folder} lacks a split: it holds parquet files of {', '.join(sorted(splits))}, expected {missing} too")
    for split in ("train", test_split):
        _check_complete(folder, splits[split])
    train, test = ([_opened(folder / name) for name in splits[split]] for split in ("train", test_split))
    first = train[0]
    for other in (*train[1:], *test):
        if other.class_names != first.class_names:
            raise DataError(f"{other.path} names other classes than {first.path}; expected the same in every file")
    parts = [EncodedPart(np.concatenate([file.labels for file in files]), partial(_images, files, max_memory)) for files in (train, test)]
    class_names = first.class_names or tuple(str(label) for label in range(1 + max(int(part.labels.max(initial=-1)) for part in parts)))
    return Source("parquet", class_names, parts[0], parts[1], tuple(file_state(folder, file.path) for file in (*train, *test)))


def _check_complete(folder: Path, names: Sequence[str]) -> None:
    """Raise where names state how many files a split has, and some are missing."""
    matches = [match for name in names if (match := _FILE.fullmatch(name)) and match["shards"]]
    for expected in {int(match["shards"]) for match in matches}:
        missing = set(range(expected)) - {int(match["shard"]) for match in matches if int(match["shards"]) == expected}
        if missing:
            numbers = ", ".join(f"{number:05d}" for number in sorted(missing)[:10])
            raise DataError(
                f"{folder} lacks {len(missing)} of {expected} files of the split {matches[0]['split']!r}, with the numbers {numbers}"
                f"{', ...' if len(missing) > 10 else ''}; expected all; download the rest"
            )


@dataclass(frozen=True, eq=False)
class _File:
    path: Path
    image_column: str
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def _opened(path: Path) -> _File:
    file = _parquet_file(path)
    schema = file.schema_arrow
    image_column = next((name for name in IMAGE_COLUMNS if schema.names.count(name) == 1), None)
    label_column = next((name for name in LABEL_COLUMNS if schema.names.count(name) == 1), None)
    if image_column is None or label_column is None or not _fit(schema.field(image_column).type, schema.field(label_column).type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path} holds the columns {columns}; expected {' or '.join(IMAGE_COLUMNS)} (struct of bytes and path) and "
            f"{' or '.join(LABEL_COLUMNS)} (int64), as the Hugging Face hub has image datasets"
        )
    try:
        column = file.read(columns=[label_column]).column(0)
        missing = column.is_null().to_numpy()
        labels = column.fill_null(0).to_numpy()
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    finally:
        file.close()
    names = distinct_names(_class_names(schema.metadata, label_column, path), str(path))
    # -1 is how the hub marks an image whose class is not published.
    wrong = np.flatnonzero(missing | (labels < 0) | (labels >= (len(names) or MOST_CLASSES)))
    if wrong.size:
        expected = f"0 to {len(names) - 1}" if names else f"0 to {MOST_CLASSES - 1}, as no class names are stated,"
        raise DataError(
            f"{path} has the {label_column} {'null' if missing[wrong[0]] else labels[wrong[0]]} in row {wrong[0]} (null or -1: none); "
            f"expected {expected} in every row; take a split whose classes are published"
        )
    return _File(path, image_column, labels.astype(np.int64), names)


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow; install it with: pip install 'defensemble[train]'") from error
    try:
        if (kind := irregular(path.stat().st_mode)) is not None:
            raise DataError(f"{path} is no regular file but {kind}; expected a parquet file; mend or remove it")
        with path.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise DataError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
        return parquet.ParquetFile(path)
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise DataError(f"{path} cannot be read: {error.strerror}; mend its permissions, or remove it") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid and ArrowNotImplementedError
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged, cut short or no parquet file ({str(error).splitlines()[0]}); download or copy it again")


def _fit(image: Any, label: Any) -> bool:
    from pyarrow import types  # type: ignore[import-untyped,unused-ignore]

    if not types.is_struct(image) or image.get_field_index("bytes") < 0:
        return False
    held = image.field("bytes").type
    return bool(types.is_integer(label) and (types.is_binary(held) or types.is_large_binary(held)))


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str, path: Path) -> tuple[str, ...]:
    """The names in the metadata that the library `datasets` writes; empty where there are none."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{path} states the class names {str(names)[:100]} in its `huggingface` metadata, expected a list of texts; correct them, or "
            "remove the metadata (labels are numbers then)"
        )
    for name in names:
        if (fault := name_problem(name)) is not None:
            raise DataError(f"{path} states the class name {name!r}, which {fault}; expected one line of text; correct the metadata")
    return tuple(names)


def _check_memory(file: Any, held: _File, max_memory: int | None) -> None:
    """Raise where the images of one row group, which pyarrow may hold at once, are too large."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = (group.column(index) for index in range(group.num_columns))
        size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == f"{held.image_column}.bytes")
        check_memory(f"the images in row group {number} of {held.path}", size, max_memory)


def _images(files: Sequence[_File], max_memory: int | None) -> Iterator[EncodedImage]:
    for held in files:
        file = _parquet_file(held.path)
        row = 0
        try:
            _check_memory(file, held, max_memory)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[held.image_column]):
                # `flatten` and not `field`: a row that is null as a whole has no bytes either.
                column = batch.column(0)
                for data in column.flatten()[column.type.get_field_index("bytes")].to_pylist():
                    yield EncodedImage(f"{held.path}, row {row}", data)
                    row += 1
        except (OSError, ValueError) as error:
            raise DataError(f"{held.path} is damaged after row {row} ({str(error).splitlines()[0]}); download or copy it again") from error
        finally:
            file.close()
        if row != len(held.labels):
            raise DataError(f"{held.path} holds {row} images and {len(held.labels)} labels; download or copy it again")
