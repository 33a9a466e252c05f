"""What a dataset looks like before it is decoded: labels, encoded images, and the files that hold them, whatever the layout."""

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
    "expected train-*.parquet and test-*.parquet (or validation-*, valid-*, val-*), in the folder itself or one folder below it; "
    "or TRAIN/CLASS/IMAGE and TEST/CLASS/IMAGE with the folders train and test (or val, validation, valid); or CLASS/IMAGE alone"
)


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """The labels (n,) of one part, int64, and a function that goes through its n images in the same order."""

    labels: npt.NDArray[np.int64]
    images: Callable[[], Iterator[EncodedImage]]


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset on the disk."""

    layout: str  # what was recognised, in a few words
    class_names: tuple[str, ...]  # label i is class_names[i]
    train: EncodedPart
    test: EncodedPart
    files: tuple[FileState, ...]  # the state of every file that was read or will be
    skipped: SkippedFiles = field(default_factory=SkippedFiles)  # in class folders


def check_classes(
    class_names: Sequence[str], train_labels: npt.NDArray[np.int64], test_labels: npt.NDArray[np.int64], where: object
) -> None:
    """Raise a `DataError` unless there are two classes or more, and both parts hold images of every one."""
    if len(class_names) == 1:
        raise DataError(
            f"{where}: found one class, {class_names[0]}; expected at least 2 class folders (or labels, in parquet files), "
            "as there is nothing to tell apart otherwise"
        )
    for split, labels in (("training", train_labels), ("test", test_labels)):
        if labels.size == 0:
            raise DataError(f"the {split} part of {where} holds no image; expected at least one")
    unseen = np.setdiff1d(test_labels, train_labels)
    if unseen.size:
        named = ", ".join(class_names[label] for label in unseen[:10])
        raise DataError(
            f"the test part of {where} has {unseen.size} of {len(class_names)} classes that the training part has no image of: {named}; "
            "expected the same classes in both; add training images, or remove these from the test part"
        )
    unjudged = np.setdiff1d(np.arange(len(class_names)), test_labels)
    if unjudged.size:
        named = ", ".join(class_names[label] for label in unjudged[:10]) + (", ..." if unjudged.size > 10 else "")
        what, them = ("class", "it") if unjudged.size == 1 else (f"{unjudged.size} classes,", "them")
        raise DataError(
            f"no test images of {what} {named} in {where}: accuracy would not speak of {them}; "
            f"expected at least one of each of the {len(class_names)} classes in the test part; add test images, or remove {them}"
        )


def file_state(folder: Path, path: Path) -> FileState:
    """Return the state of a file, by which a change is noticed; raise a `DataError` where it cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; mend or remove it") from error
    return FileState.of(path.relative_to(folder).as_posix(), status)
