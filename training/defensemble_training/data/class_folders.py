"""A dataset as image files: a folder for each class, below a folder for each split or, without any, with a fifth for the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from defensemble_images.class_names import listed, normalised
from defensemble_images.folders import FileState, LabelledFiles, SkippedFiles, class_folders, contents, images_in, labelled_files
from defensemble_images.reader import SUFFIXES, EncodedImage
from defensemble_images.regular_files import irregular

from ..errors import DataError
from .source import EXPECTED, EncodedPart, Source
from .splits import stratified_test_part

SPLIT_SEED = "defensemble-split-v1:folder"
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's own layout: the classes of val/images/, a line each


def folders_source(folder: Path, test_splits: Sequence[str]) -> Source | None:
    """Recognise class folders of images; None where there are none.

    Raises:
        DataError: a split is missing, a class folder is empty, an image is of no class, the test part has other classes, or a folder is
            unreadable.
        defensemble_images.ImagesError: a class folder has a name that cannot be kept, or an image is next to the class folders.
    """
    try:
        below = class_folders(folder)
        test_split = next((split for split in test_splits if split in below), None)
        if "train" not in below and test_split is None:
            return _without_split(folder, below)
        if "train" not in below or test_split is None:
            missing = " or ".join(test_splits) if "train" in below else "train"
            raise DataError(f"{folder} lacks a split: it holds {contents(folder)}, expected a folder {missing} too")
        train = labelled_files(folder, "train")
        if not train.class_names:
            raise DataError(f"{folder / 'train'} holds no class folders, but {contents(folder / 'train')}; {EXPECTED}")
        if (folder / test_split / ANNOTATIONS).is_file():
            test = _annotated(folder, test_split, train.class_names)
        else:
            test = labelled_files(folder, test_split)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}; fix its permissions, or remove it") from error
    for part in (train, test) if test.folders else (train,):
        _check_filled(part)
    unknown = [name for name in test.class_names if name not in train.class_names]
    if unknown:
        raise DataError(
            f"{folder / test_split} holds folders of {len(unknown)} classes that the training part does not have: {listed(unknown)}; "
            f"expected some of {listed(train.class_names)}"
        )
    labels = np.array([train.class_names.index(test.class_names[label]) for label in test.labels], np.int64)
    return Source(
        "class folders",
        train.class_names,
        EncodedPart(train.indices, partial(_encoded, folder, train.files)),
        EncodedPart(labels, partial(_encoded, folder, test.files)),
        (*train.files, *test.files),
        train.skipped + test.skipped,
    )


def _without_split(folder: Path, names: Sequence[str]) -> Source | None:
    if not any(images_in(folder, name, SkippedFiles()) for name in names):
        return None
    found = labelled_files(folder)
    _check_filled(found)
    labels = found.indices
    test = stratified_test_part(labels, SPLIT_SEED)
    parts = []
    for chosen in (~test, test):
        files = [found.files[index] for index in np.flatnonzero(chosen)]
        parts.append(EncodedPart(labels[chosen], partial(_encoded, folder, files)))
    layout = "class folders without a split (of every class a fifth, chosen by a fixed seed, is the test part)"
    return Source(layout, found.class_names, parts[0], parts[1], tuple(found.files), found.skipped)


def _check_filled(part: LabelledFiles) -> None:
    if part.empty:
        place = part.place / part.folders[part.class_names.index(part.empty[0])]
        raise DataError(
            f"the class folder {place} holds no image, but {contents(place)}; expected {', '.join(SUFFIXES)}; fill or remove it"
        )


def _annotated(folder: Path, split: str, class_names: tuple[str, ...]) -> LabelledFiles:
    found = LabelledFiles(folder, split, class_names)
    there = {file.name: file for file in images_in(folder, split, found.skipped)}
    path = folder / split / ANNOTATIONS
    if (kind := irregular(path.stat().st_mode)) is not None:
        raise DataError(f"{path} is {kind}, expected a text file; unpack the archive again")
    found.skipped.others -= 1  # the annotations themselves
    for count, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        class_name = normalised(rest.partition("\t")[0])
        file = there.get(f"{split}/images/{name}")
        if file is None or class_name not in class_names:
            what = (
                f"the image {split}/images/{name}, which is not there" if file is None else f"the class {class_name!r}, which train lacks"
            )
            raise DataError(f"{path} names in line {count} {what}; expected image, tabulator, class; unpack the archive again")
        found.files.append(file)
        found.labels.append(class_names.index(class_name))
    return found


def _encoded(folder: Path, files: Sequence[FileState]) -> Iterator[EncodedImage]:
    return (EncodedImage(str(folder / file.name), folder / file.name) for file in files)
