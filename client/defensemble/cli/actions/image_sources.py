"""The images of `defensemble predict`: files, folders, patterns, arrays and standard input, found first and then read one by one."""

from __future__ import annotations

import glob
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from defensemble_images import SUFFIXES, EncodedImage, Preprocessing, StoredArray, check_memory, npy_array
from defensemble_images.folders import SkippedFiles, find_images, is_image

from ..._client.model_info import ModelInfo
from ..._exceptions import InputError
from ..._image_files import ReadCounts, ReadOptions, decode_for_model, decode_memory_bytes, find_labelled_images, input_errors
from ..paths import STANDARD_INPUT, is_pattern

_ARRAY_SUFFIX = ".npy"
_ARRAY_SIGNATURE = b"\x93NUMPY"
_STANDARD_INPUT_NAME = "standard input"


@dataclass(frozen=True)
class Source:
    """Image files that are decoded together, each perhaps with the index of its class, or one array."""

    files: list[Path | EncodedImage] = field(default_factory=list)
    classes: Sequence[int] | None = None
    array: StoredArray | None = None

    def __len__(self) -> int:
        return len(self.files) if self.array is None else self.array.shape[0]


@dataclass(frozen=True, eq=False)
class NamedImage:
    """An image with its name and, if known, the index of its class."""

    name: str
    values: NDArray[np.float32]
    class_index: int | None = None


def find_sources(names: Sequence[str], counts: ReadCounts, cleanup: ExitStack) -> list[Source]:
    """Find the images of all arguments, in order; read the headers of arrays.

    Args:
        names: Files, folders, patterns, and `-` for standard input.
        counts: Skipped files are added to it.
        cleanup: Removes the copy of standard input when it is closed.

    Raises:
        InputError: An argument has no images, or a file is no image and no array.
        OSError: A file or folder cannot be read.
    """
    if names.count(STANDARD_INPUT) > 1:
        raise InputError(f"standard input ({STANDARD_INPUT}) is named {names.count(STANDARD_INPUT)} times; it can be read once")
    sources: list[Source] = []
    for name in names:
        for file in _files_of(name, counts, cleanup):
            if isinstance(file, StoredArray):
                sources.append(Source(array=file))
            elif sources and sources[-1].array is None:
                sources[-1].files.append(file)
            else:
                sources.append(Source([file]))
    return sources


def find_labelled_source(folder: Path, info: ModelInfo, counts: ReadCounts) -> Source:
    """Return the images of a folder with one folder per class; see `find_labelled_images`."""
    files, classes = find_labelled_images(folder, info, counts)
    return Source(list(files), classes.tolist())


def check_sources(sources: Iterable[Source], info: ModelInfo, sent_bytes: int, limit: int | None) -> None:
    """Refuse arrays that the model does not take, and images that need more memory than allowed. Only headers are read.

    Args:
        sources: The images.
        info: The model.
        sent_bytes: Memory of the requests under way.
        limit: Memory limit in bytes; None for half of the free memory.

    Raises:
        InputError: The model does not take an array, or the images need too much memory.
        OSError: A file cannot be read.
    """
    for source in sources:
        with input_errors():
            if source.array is not None:
                source.array.check_images(info.image_shape)
                sent = min(sent_bytes, 2 * source.array.float_bytes)
                check_memory(source.array.where, sent + 2 * source.array.float_bytes * source.array.fortran_order, limit)
                continue
            first = _name_of(source.files[0])
            subject = first if len(source) == 1 else f"decoding {len(source)} images, the first of which is {first},"
            known = min(info.image_shape) > 0  # image files of any size: `decode_memory_bytes` counts the largest
            sent = min(sent_bytes, 8 * math.prod(info.image_shape) * len(source)) if known else 0
            check_memory(subject, sent + decode_memory_bytes(source.files, info), limit)


def read_images(
    sources: Iterable[Source], info: ModelInfo, preprocessing: Preprocessing | None, options: ReadOptions, counts: ReadCounts
) -> Iterator[NamedImage]:
    """Read the images in order, as they are needed.

    Args:
        sources: The images.
        info: The model, to whose size they are brought.
        preprocessing: How they are brought to it.
        options: Whether damaged images are skipped.
        counts: Damaged images and animations are added to it.

    Raises:
        InputError: An image is damaged, or the model does not take it.
        OSError: A file cannot be read.
    """
    for source in sources:
        if source.array is None:
            for index, values in decode_for_model(source.files, info, preprocessing, options.skip_damaged, counts):
                yield NamedImage(_name_of(source.files[index]), values, None if source.classes is None else source.classes[index])
            continue
        number = 0
        with input_errors():
            for images in source.array.batches():
                for values in images:
                    name = source.array.where
                    yield NamedImage(name if len(source) == 1 else f"{name}[{number}]", values)
                    number += 1


def _files_of(name: str, counts: ReadCounts, cleanup: ExitStack) -> Iterator[Path | EncodedImage | StoredArray]:
    """Yield the images and arrays of one argument; raise if there are none."""
    path = Path(name)
    if name == STANDARD_INPUT:
        yield _read_standard_input(cleanup)
    elif is_pattern(name):
        yield from _files_of_pattern(name, counts)
    elif path.is_dir():
        yield from _files_of_folder(path, counts)
    elif path.suffix.lower() == _ARRAY_SUFFIX:
        yield _array(path)
    elif is_image(path.name):
        yield path
    else:
        raise InputError(f"{name} is neither an image ({', '.join(SUFFIXES)}) nor a .npy file")


def _files_of_folder(folder: Path, counts: ReadCounts) -> Iterator[Path]:
    skipped = SkippedFiles()
    with input_errors():
        found = find_images(folder, ".", skipped)
    if not found:
        raise InputError(f"{folder} has no images; it has {str(skipped) or 'nothing'}; expected image files ({', '.join(SUFFIXES)})")
    counts.skipped += skipped
    for file in found:
        yield folder / file.name


def _files_of_pattern(pattern: str, counts: ReadCounts) -> Iterator[Path | StoredArray]:
    """Yield what a shell's expansion of the pattern stands for, without the files that are no images: each file once."""
    skipped = SkippedFiles()
    found: dict[Path, None] = {}
    for path in map(Path, sorted(glob.iglob(pattern, recursive=True), key=lambda name: name.split("/"))):
        if path.is_dir():
            with input_errors():
                found |= dict.fromkeys(path / file.name for file in find_images(path, ".", SkippedFiles()))
        elif is_image(path.name) or path.suffix.lower() == _ARRAY_SUFFIX:
            found[path] = None
        else:
            skipped.others += 1
    if not found:
        others = f"; it matches {skipped}" if skipped.others else ""
        raise InputError(f"no image matches {pattern!r:.200}{others}; expected image files ({', '.join(SUFFIXES)}) or .npy files")
    counts.skipped += skipped
    for path in found:
        yield _array(path) if path.suffix.lower() == _ARRAY_SUFFIX else path


def _read_standard_input(cleanup: ExitStack) -> EncodedImage | StoredArray:
    """Copy standard input to a temporary file: an array is read in parts, and may be larger than the memory."""
    if sys.stdin.isatty():
        raise InputError(f"standard input ({STANDARD_INPUT}) is a terminal; expected an image or a .npy file, such as `... - < image.png`")
    copy: IO[bytes] = cleanup.enter_context(tempfile.NamedTemporaryFile(prefix="defensemble-"))
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.seek(0)
    signature, path = copy.read(len(_ARRAY_SIGNATURE)), Path(copy.name)
    if not signature:
        raise InputError(f"standard input ({STANDARD_INPUT}) is empty; expected the bytes of an image or of a .npy file")
    return _array(path, _STANDARD_INPUT_NAME) if signature == _ARRAY_SIGNATURE else EncodedImage(_STANDARD_INPUT_NAME, path)


def _array(path: Path, name: str | None = None) -> StoredArray:
    with input_errors():
        array = npy_array(path, name)
    return replace(array, shape=(1, *array.shape)) if len(array.shape) == 3 else array


def _name_of(file: Path | EncodedImage) -> str:
    return file.where if isinstance(file, EncodedImage) else str(file)
