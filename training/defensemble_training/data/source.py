"""A dataset before decoding, in any layout: labels, encoded images, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from defensemble_images.folders import FileState, SkippedFiles
from defensemble_images.reader import EncodedImage

from ..errors import DataError

EXPECTED = (
    "expected train-*.parquet and test-*.parquet (or validation-*, valid-*, val-*), in the folder or one of its subfolders; "
    "or TRAIN/CLASS/IMAGE and TEST/CLASS/IMAGE with the folders train and test (or val, validation, valid); or only CLASS/IMAGE"
)


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """The labels and encoded images of one part."""

    labels: npt.NDArray[np.int64]  # (n,)
    images: Callable[[], Iterator[EncodedImage]]  # iterates over the n images in the order of the labels


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset on disk."""

    layout: str  # a short description
    class_names: tuple[str, ...]  # label i is class_names[i]
    train: EncodedPart
    test: EncodedPart
    files: tuple[FileState, ...]  # the state of every file of the dataset
    skipped: SkippedFiles = field(default_factory=SkippedFiles)  # in class folders


def check_classes(
    class_names: Sequence[str], train_labels: npt.NDArray[np.int64], test_labels: npt.NDArray[np.int64], where: object
) -> None:
    """Check that there are at least 2 classes and that both parts have images of every class.

    Args:
        class_names: Class names of the dataset.
        train_labels: Labels of the training part.
        test_labels: Labels of the test part.
        where: Name of the dataset, for errors.

    Raises:
        DataError: There are too few classes, or a part lacks images of a class.
    """
    if len(class_names) == 1:
        raise DataError(f"{where} has one class, {class_names[0]}; expected at least 2 class folders (or labels, in parquet files)")
    for split, labels in (("training", train_labels), ("test", test_labels)):
        if labels.size == 0:
            raise DataError(f"the {split} part of {where} holds no image; expected at least one")
    unseen = np.setdiff1d(test_labels, train_labels)
    if unseen.size:
        shown = ", ".join(class_names[label] for label in unseen[:10])
        raise DataError(
            f"the training part of {where} has no image of {unseen.size} of the {len(class_names)} classes: {shown}; "
            "expected the same classes in both parts. Add training images, or remove these classes from the test part."
        )
    untested = np.setdiff1d(np.arange(len(class_names)), test_labels)
    if untested.size:
        shown = ", ".join(class_names[label] for label in untested[:10]) + (", ..." if untested.size > 10 else "")
        which, them = ("class", "it") if untested.size == 1 else (f"{untested.size} classes:", "them")
        raise DataError(
            f"{where} has no test images of {which} {shown}, so the accuracy would not cover {them}; "
            f"expected at least one test image of each of the {len(class_names)} classes. Add test images, or remove {them}."
        )


def file_state(folder: Path, path: Path) -> FileState:
    """Return the state of a file, which reveals changes. Raise a `DataError` if it cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Fix its permissions, or remove it.") from error
    return FileState.from_stat(path.relative_to(folder).as_posix(), status)
