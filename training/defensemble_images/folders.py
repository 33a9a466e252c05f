"""List the images of class folders, CLASS/IMAGE. A class folder may have subfolders.

Hidden entries, `__MACOSX` and files that are not images are skipped and counted. Symbolic links to files are followed; links to folders
are followed only if they are class folders.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .class_names import distinct_names, name_problem
from .errors import ImagesError
from .reader import SUFFIXES

_MAX_SHOWN = 10


class FileState(NamedTuple):
    """A file of a dataset and the state that reveals a change."""

    name: str  # relative to the dataset's folder
    size: int  # bytes
    modified_ns: int
    changed_ns: int  # last change of the inode, which no program can set

    @classmethod
    def from_stat(cls, name: str, status: os.stat_result) -> FileState:
        """Return the state of a file from its `stat` result."""
        return cls(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass
class SkippedFiles:
    """Number of entries of class folders that were skipped."""

    hidden: int = 0  # hidden entries
    others: int = 0  # files that are not images

    def __add__(self, other: SkippedFiles) -> SkippedFiles:
        """Return the sum of both counts."""
        return SkippedFiles(self.hidden + other.hidden, self.others + other.others)

    def __str__(self) -> str:
        """Return a text such as `2 hidden entries and 1 file that is not an image`; empty if nothing was skipped."""
        counts = ((self.hidden, "hidden entry", "hidden entries"), (self.others, "file that is not an image", "files that are not images"))
        return " and ".join(f"{count} {singular if count == 1 else plural}" for count, singular, plural in counts if count)


@dataclass
class LabelledFiles:
    """The images of class folders."""

    root: Path  # file names are relative to this folder
    subfolder: str  # the folder with the class folders, relative to `root`
    class_names: tuple[str, ...]  # names of the class folders in NFC, sorted; some classes may have no image
    folders: tuple[str, ...] = ()  # their names in the file system, in the same order
    files: list[FileState] = field(default_factory=list)  # sorted by class and name
    labels: list[int] = field(default_factory=list)  # for each file, the index of its class in `class_names`
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

    @property
    def classes_folder(self) -> Path:
        """The folder that holds the class folders."""
        return self.root / self.subfolder

    @property
    def indices(self) -> NDArray[np.int64]:
        """The labels as int64 (n,)."""
        return np.array(self.labels, np.int64)

    @property
    def empty_classes(self) -> list[str]:
        """The classes without an image."""
        filled = set(self.labels)
        return [name for label, name in enumerate(self.class_names) if label not in filled]


def labelled_files(root: Path, subfolder: str = "") -> LabelledFiles:
    """List the images of the class folders in `root/subfolder`.

    Args:
        root: Folder that file names are relative to.
        subfolder: Folder with the class folders, relative to `root`.

    Raises:
        ImagesError: The folder does not exist, the name of a class folder is not one line of UTF-8 or equals another in NFC, or an image
            is next to the class folders.
        OSError: A folder cannot be read.

    Example:
        >>> files = labelled_files(Path("photos"))
        >>> files.class_names, files.indices
    """
    parent = root / subfolder
    if not parent.is_dir():
        raise ImagesError(f"{parent} is not a folder; expected a folder with a folder of images for each class: CLASS/IMAGE")
    folders = class_folders(parent)
    by_name = sorted(zip(distinct_names(folders, str(parent)), folders, strict=True))
    result = LabelledFiles(
        root, subfolder, tuple(name for name, _ in by_name), tuple(folder for _, folder in by_name), skipped=_count_skipped(parent)
    )
    for label, folder in enumerate(result.folders):
        files = find_images(root, Path(subfolder, folder).as_posix(), result.skipped)
        result.files += files
        result.labels += [label] * len(files)
    return result


def class_folders(parent: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted, as in the file system.

    Raises:
        ImagesError: A name cannot be a class name.
    """
    with os.scandir(parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))
    for name in names:
        if (problem := name_problem(name)) is not None:
            raise ImagesError(
                f"the name of the class folder {name!r} in {str(parent)!r} {problem}; expected one line of UTF-8. Rename the folder."
            )
    return names


def find_images(root: Path, name: str, skipped: SkippedFiles) -> list[FileState]:
    """Return the images in the folder `root/name` and its subfolders, sorted by name. Add the number of skipped entries to `skipped`."""
    files: list[FileState] = []
    folders = [name]  # no recursion: paths can be deeper than Python's stack
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):  # macOS creates ._a.jpg next to a.jpg
                    skipped.hidden += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
                elif is_image(entry.name):
                    files.append(FileState.from_stat(f"{folder}/{entry.name}", _stat(entry)))
                else:
                    skipped.others += 1
    return sorted(files, key=lambda file: file.name.split("/"))


def is_image(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    return name.lower().endswith(SUFFIXES)


def format_contents(folder: Path) -> str:
    """List the first ten names in a folder, for an error message."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more or "nothing"


def _count_skipped(parent: Path) -> SkippedFiles:
    """Count the entries of a folder that are not class folders. Raise if one is an image, which has no class, or a broken link."""
    with os.scandir(parent) as entries:
        others = [entry for entry in entries if _is_hidden(entry.name) or not entry.is_dir()]
    for entry in others:
        if not _is_hidden(entry.name):
            _stat(entry)
    names = sorted(entry.name for entry in others)
    hidden = [name for name in names if _is_hidden(name)]
    stray = [name for name in names if is_image(name) and not _is_hidden(name)]
    if stray:
        more = f" (and {len(stray) - 1} more images)" if len(stray) > 1 else ""
        raise ImagesError(
            f"the image {parent / stray[0]}{more} is next to the class folders, so it has no class; expected CLASS/IMAGE. Pass the folder "
            "that holds the class folders, move the image into its class folder, or remove it."
        )
    return SkippedFiles(len(hidden), len(names) - len(hidden))


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of an entry, following links. Raise for a broken link: it may stand for an image or a whole class."""
    try:
        return entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        raise ImagesError(f"{entry.path} is a link that cannot be followed: {error.strerror}. Restore its target, or remove it.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
