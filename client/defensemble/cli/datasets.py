"""The value of `--dataset`: NAME, FOLDER or NAME=FOLDER."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .choices import DATASETS
from .paths import missing_path_message


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


class DatasetType(click.ParamType):
    """Parse NAME, FOLDER, NAME=FOLDER and, with `archives`, FILE.npz."""

    name = "dataset"

    def __init__(self, *, archives: bool = False) -> None:
        self._archives = archives

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the spellings."""
        return "NAME|FOLDER|NAME=FOLDER" + "|FILE.npz" * self._archives

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DatasetLocation:
        """Return the location, or raise `click.BadParameter` unless the name is known and the path exists."""
        if isinstance(value, DatasetLocation):
            return value
        if value in DATASETS:
            return DatasetLocation(value)
        name, separator, folder = value.partition("=")
        if separator and name in (*DATASETS, "folder"):
            return DatasetLocation(name, self._existing_folder(folder, param, ctx))
        path = Path(value)
        if self._archives and path.suffix == ".npz":
            if not path.exists():
                self.fail(missing_path_message(path), param, ctx)
            return DatasetLocation(archive=path)
        if separator and not path.exists():
            self.fail(f"{name!r:.120} is not a dataset; expected one of {', '.join(DATASETS)}, such as cifar10=data/cifar10", param, ctx)
        if not path.exists() and len(path.parts) == 1:
            similar = difflib.get_close_matches(value, DATASETS, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            self.fail(f"{value!r:.120} is neither a dataset ({', '.join(DATASETS)}) nor a folder.{hint}", param, ctx)
        return DatasetLocation(folder=self._existing_folder(value, param, ctx))

    def _existing_folder(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if not value or not path.exists():
            self.fail(missing_path_message(path) if value else "a folder is missing after '='", param, ctx)
        if not path.is_dir():
            expected = "a folder or an archive of arrays (.npz)" if self._archives else "a folder"
            self.fail(f"{path} is a file; expected {expected}", param, ctx)
        return path


def dataset_option(help: str, *, archives: bool = False, **attributes: Any) -> Callable[[Any], Any]:
    """Return the option `--dataset`, whose value is a `DatasetLocation`.

    Args:
        help: What the images are for.
        archives: Whether FILE.npz is accepted too.
        attributes: Further arguments of `click.option`, such as `default` or `required`.
    """
    return click.option("--dataset", type=DatasetType(archives=archives), help=help, **attributes)
