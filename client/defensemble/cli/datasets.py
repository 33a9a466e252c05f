"""The value of `--dataset`: NAME, FOLDER or NAME=FOLDER."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .choices import DATASETS
from .paths import EMPTY_PATH, missing_path_message, similar_paths


@dataclass(frozen=True)
class DatasetLocation:
    """A dataset and where its files are.

    Attributes:
        name: One of `DATASETS`, or `folder` for the user's own images spelt folder=FOLDER; None: the user's own images.
        folder: Folder with the images; None: the usual places, or a download.
        archive: A file of arrays (.npz) instead, where the verb accepts one.
    """

    name: str | None = None
    folder: Path | None = None
    archive: Path | None = None


class DatasetType(click.ParamType[DatasetLocation]):
    """Parse NAME, FOLDER, NAME=FOLDER and, with `archives`, FILE.npz."""

    name = "dataset"

    def __init__(self, *, archives: bool = False) -> None:
        self._accepts_archives = archives

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the spellings."""
        return "NAME|FOLDER|NAME=FOLDER" + "|FILE.npz" * self._accepts_archives

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DatasetLocation:
        """Return the location; `check` looks at the files."""
        if isinstance(value, DatasetLocation):
            return value
        if not value:
            self.fail(f"{EMPTY_PATH}, or one of {', '.join(DATASETS)}", param, ctx)
        if value in DATASETS:
            return DatasetLocation(value)
        name, separator, folder = value.partition("=")
        if separator and name in (*DATASETS, "folder"):
            if not folder:
                self.fail(f"{value!r} names no folder; expected {name}=FOLDER", param, ctx)
            return DatasetLocation(name, Path(folder))
        if self._accepts_archives and value.lower().endswith(".npz"):
            return DatasetLocation(archive=Path(value))
        return DatasetLocation(folder=Path(value))

    def check(self, location: DatasetLocation, param: click.Parameter, ctx: click.Context) -> None:
        """Raise `click.BadParameter`, with similar names, unless the folder or archive exists."""
        path = location.folder or location.archive
        if path is None:
            return
        if path.is_file() and location.archive is None:
            expected = "a folder or an archive of arrays (.npz)" if self._accepts_archives else "a folder"
            self.fail(f"{path} is a file; expected {expected}", param, ctx)
        if not path.exists():
            self.fail(_missing_name_message(path) if location == DatasetLocation(folder=path) else missing_path_message(path), param, ctx)


def _missing_name_message(path: Path) -> str:
    """Return a sentence about a value without NAME=, which may be a misspelt name or folder."""
    name, separator, _ = str(path).partition("=")
    if "/" in name or path.is_symlink() or (not separator and similar_paths(path)):
        return missing_path_message(path)
    similar = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" Did you mean {similar[0]}?" if similar else ""
    expected = "a dataset" if separator else "a dataset or a folder"
    return f"{name!r:.120} is not {expected}; the datasets are {', '.join(DATASETS)}.{hint}"


def dataset_option(help: str, *, archives: bool = False, **attributes: Any) -> Callable[[Any], Any]:
    """Return the option `--dataset`, whose value is a `DatasetLocation`.

    Args:
        help: What the images are for.
        archives: Whether FILE.npz is accepted too.
        attributes: Further arguments of `click.option`, such as `default` or `required`.
    """
    return click.option("--dataset", type=DatasetType(archives=archives), help=help, **attributes)
