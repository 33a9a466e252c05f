"""A dataset as image files: a folder for each class, below a folder for each split or, without any, with a fifth for the test."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ._errors import DataError
from .sources import EXPECTED, Encoded, EncodedPart, FileState, Source, contents, irregular
from .splits import stratified_test_part

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_SEED = "defensemble-split-v1:folder"
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's own layout: the classes of val/images/, a line each


@dataclass(frozen=True)
class _File:
    name: str  # within the dataset's folder, with slashes
    size: int
    modified_ns: int
    changed_ns: int  # of the inode


@dataclass(frozen=True)
class _Listing:
    files: list[_File] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def folders_source(folder: Path, test_splits: Sequence[str]) -> Source | None:
    """Recognise class folders of images; None where there are none.

    Raises:
        DataError: a split is missing, a class folder holds no image, or has a name that cannot be kept, an image is of no class, or the
            classes of the test are others than those of the training.
    """
    below = _subfolders(folder)
    test_split = next((split for split in test_splits if split in below), None)
    if "train" not in below and test_split is None:
        return _without_split(folder, below)
    if "train" not in below or test_split is None:
        missing = " or ".join(test_splits) if "train" in below else "train"
        raise DataError(f"{folder} lacks a split: it holds {contents(folder)}, expected a folder {missing} too")
    class_names = tuple(_subfolders(folder / "train"))
    if not class_names:
        raise DataError(f"{folder / 'train'} holds no class folders, but {contents(folder / 'train')}; {EXPECTED}")
    _check_no_stray(folder / "train")
    train = _of_classes(folder, "train/", class_names, class_names)
    if (folder / test_split / ANNOTATIONS).is_file():
        test = _annotated(folder, test_split, class_names)
    else:
        _check_no_stray(folder / test_split)
        test = _of_classes(folder, f"{test_split}/", _subfolders(folder / test_split), class_names)
    parts = [EncodedPart(np.array(one.labels, np.int64), _Reader(folder, one.files)) for one in (train, test)]
    return Source("class folders", class_names, parts[0], parts[1], _states([*train.files, *test.files]))


def _without_split(folder: Path, class_names: Sequence[str]) -> Source | None:
    if not any(_images_in(folder, name) for name in class_names):
        return None
    listing = _of_classes(folder, "", class_names, class_names)
    labels = np.array(listing.labels, np.int64)
    test = stratified_test_part(labels, SPLIT_SEED)
    parts = []
    for chosen in (~test, test):
        files = [listing.files[index] for index in np.flatnonzero(chosen)]
        parts.append(EncodedPart(labels[chosen], _Reader(folder, files)))
    layout = "class folders without a split (of every class a fifth, chosen by a fixed seed, is the test part)"
    return Source(layout, tuple(class_names), parts[0], parts[1], _states(listing.files))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(one.name for one in entries if one.is_dir() and not one.name.startswith((".", "__")))


def _check_no_stray(place: Path) -> None:
    with os.scandir(place) as entries:
        stray = sorted(one.name for one in entries if not one.name.startswith(".") and _is_image(one) and not one.is_dir())
    if stray:
        more = f" (and {len(stray) - 1} more images)" if len(stray) > 1 else ""
        raise DataError(
            f"the image {place / stray[0]}{more} lies beside the class folders and is of no class; "
            "expected CLASS/IMAGE; move it into the folder of its class, or remove it"
        )


def _is_image(entry: "os.DirEntry[str]") -> bool:
    return entry.name.lower().endswith(SUFFIXES)


def _check_names(place: Path, names: Sequence[str]) -> None:
    """Raise where a folder's name cannot be a class name, which is kept as UTF-8 text and printed in one line."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            wrong = "is not valid UTF-8"
        else:
            if name.splitlines() == [name]:
                continue
            wrong = "holds a line break"
        raise DataError(f"the name of the class folder {name!r} in {str(place)!r} {wrong}; expected one line of UTF-8; rename the folder")


def _of_classes(folder: Path, prefix: str, found: Sequence[str], class_names: Sequence[str]) -> _Listing:
    _check_names(folder / prefix, found)
    listing = _Listing()
    number = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise DataError(
            f"{folder / prefix} holds folders of {len(unknown)} classes that the training part does not have: {', '.join(unknown[:10])}; "
            f"expected some of {', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}"
        )
    for name in found:
        files = _images_in(folder, prefix + name)
        if not files:
            place = folder / prefix / name
            raise DataError(
                f"the class folder {place} holds no image, but {contents(place)}; expected {', '.join(SUFFIXES)}; fill or remove it"
            )
        listing.files.extend(files)
        listing.labels.extend([number[name]] * len(files))
    return listing


def _images_in(folder: Path, name: str) -> list[_File]:
    """The images in a class folder or in folders below it, by name; links are followed, but to folders only at the first step."""
    files: list[_File] = []
    try:
        with os.scandir(folder / name) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.name.startswith("."):  # macOS leaves ._a.jpg beside a.jpg
                    continue
                if entry.is_dir(follow_symlinks=False):
                    files += _images_in(folder, f"{name}/{entry.name}")
                elif _is_image(entry):
                    status = entry.stat()
                    files.append(_File(f"{name}/{entry.name}", status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError as error:
        raise DataError(f"{error.filename or folder / name} cannot be read: {error.strerror}; mend or remove it") from error
    return files


def _annotated(folder: Path, split: str, class_names: Sequence[str]) -> _Listing:
    listing = _Listing()
    number = {name: label for label, name in enumerate(class_names)}
    there = {file.name: file for file in _images_in(folder, split)}
    path = folder / split / ANNOTATIONS
    if (kind := irregular(path.stat().st_mode)) is not None:
        raise DataError(f"{path} is {kind}, expected a text file; unpack the archive again")
    for count, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        class_name = rest.partition("\t")[0]
        file = there.get(f"{split}/images/{name}")
        if file is None or class_name not in number:
            what = (
                f"the image {split}/images/{name}, which is not there" if file is None else f"the class {class_name!r}, which train lacks"
            )
            raise DataError(f"{path} names in line {count} {what}; expected image, tabulator, class; unpack the archive again")
        listing.files.append(file)
        listing.labels.append(number[class_name])
    return listing


@dataclass(frozen=True)
class _Reader:
    folder: Path
    files: Sequence[_File]

    def __call__(self) -> Iterator[Encoded]:
        for file in self.files:
            path = self.folder / file.name
            yield Encoded(str(path), path)


def _states(files: Sequence[_File]) -> tuple[FileState, ...]:
    return tuple((file.name, file.size, file.modified_ns, file.changed_ns) for file in files)
