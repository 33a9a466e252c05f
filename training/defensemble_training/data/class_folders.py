"""Datasets as image files: SPLIT/CLASS/IMAGE, or CLASS/IMAGE, of which a fifth becomes the test part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from defensemble_images.class_names import format_names, normalised
from defensemble_images.folders import FileState, LabelledFiles, SkippedFiles, class_folders, find_images, format_contents, labelled_files
from defensemble_images.reader import SUFFIXES, EncodedImage
from defensemble_images.regular_files import irregular_file_kind

from ..errors import DataError
from .source import EXPECTED, EncodedPart, Source
from .splits import stratified_test_part

SPLIT_SEED = "defensemble-split-v1:folder"
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's own layout: the class of each image in val/images/, one per line


def source_from_class_folders(folder: Path, test_splits: Sequence[str]) -> Source | None:
    """Return the dataset in class folders of images, or None if there are no images.

    Args:
        folder: The dataset's folder.
        test_splits: Names of the test part, the preferred one first.

    Raises:
        DataError: A split is missing, a class folder is empty, an image has no class, the test part has other classes, or a folder is
            not readable.
        defensemble_images.ImagesError: A folder name cannot be a class name, or an image is next to the class folders.
    """
    try:
        names = class_folders(folder)
        test_split = next((split for split in test_splits if split in names), None)
        if "train" not in names and test_split is None:
            return _split_class_folders(folder, names)
        if "train" not in names or test_split is None:
            missing = " or ".join(test_splits) if "train" in names else "train"
            raise DataError(f"{folder} lacks a split: it holds {format_contents(folder)}; expected a folder {missing} too")
        train = labelled_files(folder, "train")
        if not train.class_names:
            raise DataError(f"{folder / 'train'} holds no class folders but {format_contents(folder / 'train')}; {EXPECTED}")
        if (folder / test_split / ANNOTATIONS).is_file():
            test = _annotated_files(folder, test_split, train.class_names)
        else:
            test = labelled_files(folder, test_split)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}. Fix its permissions, or remove it.") from error
    for part in (train, test) if test.folders else (train,):
        _check_no_empty_class(part)
    unknown = [name for name in test.class_names if name not in train.class_names]
    if unknown:
        raise DataError(
            f"{folder / test_split} has {len(unknown)} classes that the training part lacks: {format_names(unknown)}; "
            f"expected some of {format_names(train.class_names)}"
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


def _split_class_folders(folder: Path, names: Sequence[str]) -> Source | None:
    """Return the dataset in class folders without a split, with a fifth of each class as the test part."""
    if not any(find_images(folder, name, SkippedFiles()) for name in names):
        return None
    images = labelled_files(folder)
    _check_no_empty_class(images)
    labels = images.indices
    is_test = stratified_test_part(labels, SPLIT_SEED)
    parts = []
    for selection in (~is_test, is_test):
        files = [images.files[index] for index in np.flatnonzero(selection)]
        parts.append(EncodedPart(labels[selection], partial(_encoded, folder, files)))
    layout = "class folders without a split (the test part is a fifth of each class, chosen by a fixed seed)"
    return Source(layout, images.class_names, parts[0], parts[1], tuple(images.files), images.skipped)


def _check_no_empty_class(part: LabelledFiles) -> None:
    if part.empty_classes:
        path = part.classes_folder / part.folders[part.class_names.index(part.empty_classes[0])]
        raise DataError(
            f"the class folder {path} holds no image but {format_contents(path)}; expected {', '.join(SUFFIXES)}. Add images, or remove it."
        )


def _annotated_files(folder: Path, split: str, class_names: tuple[str, ...]) -> LabelledFiles:
    result = LabelledFiles(folder, split, class_names)
    files = {file.name: file for file in find_images(folder, split, result.skipped)}
    path = folder / split / ANNOTATIONS
    if (kind := irregular_file_kind(path.stat().st_mode)) is not None:
        raise DataError(f"{path} is {kind}; expected a text file. Unpack the archive again.")
    result.skipped.others -= 1  # the annotations file itself
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        class_name = normalised(rest.partition("\t")[0])
        file = files.get(f"{split}/images/{name}")
        if file is None or class_name not in class_names:
            problem = (
                f"the image {split}/images/{name}, which does not exist"
                if file is None
                else f"the class {class_name!r}, which the training part lacks"
            )
            raise DataError(f"line {number} of {path} names {problem}; expected IMAGE<tab>CLASS. Unpack the archive again.")
        result.files.append(file)
        result.labels.append(class_names.index(class_name))
    return result


def _encoded(folder: Path, files: Sequence[FileState]) -> Iterator[EncodedImage]:
    return (EncodedImage(str(folder / file.name), folder / file.name) for file in files)
