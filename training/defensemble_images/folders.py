"""Class folders: CLASS/IMAGE, where a class folder may hold more folders.

Hidden entries and `__MACOSX` are skipped, and so are files that are not images; both are counted. Links are followed, but links to folders
only where they are class folders.
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

_CONTENTS_SHOWN = 10


class FileState(NamedTuple):
    """A file, by its name within the folder of the data set, and the state by which a change is noticed.

    `size` is in bytes; no program can set `changed_ns`, the time of the last change of the inode.
    """

    name: str
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> FileState:
        """Return the state of a file from its status."""
        return cls(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass
class SkippedFiles:
    """What was skipped in class folders: how many hidden entries, and how many files that are not images."""

    hidden: int = 0
    others: int = 0

    def __add__(self, other: SkippedFiles) -> SkippedFiles:
        """Return what was skipped in both."""
        return SkippedFiles(self.hidden + other.hidden, self.others + other.others)

    def __str__(self) -> str:
        """Return such as `2 hidden entries and 1 file that is not an image`, empty where nothing was skipped."""
        counted = ((self.hidden, "hidden entry", "hidden entries"), (self.others, "file that is not an image", "files that are not images"))
        return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in counted if count)


@dataclass
class LabelledFiles:
    """The images of class folders."""

    root: Path  # the folder that the names of the files are relative to
    below: str  # the folder with the class folders, within `root`
    class_names: tuple[str, ...]  # names of the class folders in NFC, sorted; some may hold no image
    folders: tuple[str, ...] = ()  # their names in the file system, in the same order
    files: list[FileState] = field(default_factory=list)  # sorted by class and name
    labels: list[int] = field(default_factory=list)  # for each file, the index of its class in `class_names`
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

    @property
    def place(self) -> Path:
        """The folder with the class folders."""
        return self.root / self.below

    @property
    def indices(self) -> NDArray[np.int64]:
        """The labels as int64 (n,)."""
        return np.array(self.labels, np.int64)

    @property
    def empty(self) -> list[str]:
        """The classes without an image."""
        filled = set(self.labels)
        return [name for label, name in enumerate(self.class_names) if label not in filled]


def labelled_files(root: Path, below: str = "") -> LabelledFiles:
    """List the images of the class folders in `root/below`; names of files are relative to `root`.

    Raises:
        ImagesError: there is no such folder, a name of a class folder is not one line of UTF-8 or equals another after NFC, or an image is
            next to the class folders.
        OSError: a folder cannot be read.
    """
    place = root / below
    if not place.is_dir():
        raise ImagesError(f"{place} is not a folder; expected a folder with a folder of images for each class: CLASS/IMAGE")
    folders = class_folders(place)
    named = sorted(zip(distinct_names(folders, str(place)), folders, strict=True))
    found = LabelledFiles(root, below, tuple(name for name, _ in named), tuple(folder for _, folder in named), skipped=_skipped_in(place))
    for label, folder in enumerate(found.folders):
        files = images_in(root, Path(below, folder).as_posix(), found.skipped)
        found.files += files
        found.labels += [label] * len(files)
    return found


def class_folders(place: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted, as the file system has them; raises where one cannot be a class name."""
    with os.scandir(place) as entries:
        names = sorted(one.name for one in entries if one.is_dir() and not _is_hidden(one.name))
    for name in names:
        if (fault := name_problem(name)) is not None:
            raise ImagesError(
                f"the name of the class folder {name!r} in {str(place)!r} {fault}; expected one line of UTF-8; rename the folder"
            )
    return names


def images_in(root: Path, name: str, skipped: SkippedFiles) -> list[FileState]:
    """Return the images in the folder `root/name` and in folders below it, sorted by name; what is skipped is added to `skipped`."""
    files: list[FileState] = []
    folders = [name]  # no recursion: paths can be deeper than Python's stack
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):  # macOS leaves ._a.jpg next to a.jpg
                    skipped.hidden += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
                elif is_image(entry.name):
                    files.append(FileState.of(f"{folder}/{entry.name}", _status(entry)))
                else:
                    skipped.others += 1
    return sorted(files, key=lambda file: file.name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file name has one of the suffixes of images."""
    return name.lower().endswith(SUFFIXES)


def contents(folder: Path) -> str:
    """Return the first ten names in a folder, for an error."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    more = f" and {len(names) - _CONTENTS_SHOWN} more" if len(names) > _CONTENTS_SHOWN else ""
    return ", ".join(names[:_CONTENTS_SHOWN]) + more or "nothing"


def _skipped_in(place: Path) -> SkippedFiles:
    """Count the entries of a folder that are no class folders; raise where one is an image, which has no class, or a broken link."""
    with os.scandir(place) as entries:
        others = [one for one in entries if _is_hidden(one.name) or not one.is_dir()]
    for one in others:
        if not _is_hidden(one.name):
            _status(one)
    names = sorted(one.name for one in others)
    hidden = [name for name in names if _is_hidden(name)]
    stray = [name for name in names if is_image(name) and not _is_hidden(name)]
    if stray:
        more = f" (and {len(stray) - 1} more images)" if len(stray) > 1 else ""
        raise ImagesError(
            f"the image {place / stray[0]}{more} is next to the class folders and has no class; expected CLASS/IMAGE; pass the folder "
            "that holds the class folders, or move the image into the folder of its class, or remove it"
        )
    return SkippedFiles(len(hidden), len(names) - len(hidden))


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of what an entry is or leads to; a broken link may stand for an image, or for a whole class."""
    try:
        return entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        raise ImagesError(
            f"{entry.path} cannot be read: {error.strerror}; it is a link: restore what it leads to, or remove the link"
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
