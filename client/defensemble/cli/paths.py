"""Paths and URLs on the command line: a path that does not exist is an error that lists similar names."""

from __future__ import annotations

import difflib
import errno
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .choices import IMAGE_SUFFIXES

STANDARD_INPUT = "-"
EMPTY_PATH = "the path is empty; expected a path, such as . for the current folder"
_LARGEST_FOLDER = 10_000  # entries that are compared


class AnyPath(click.Path):
    """A file or folder, as a `Path`.

    An empty text, which `Path` takes as the current folder, is refused: a variable was not set. So is a link that leads back to itself.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or raise `click.BadParameter` for an empty text or a circular link."""
        if value == "":
            self.fail(EMPTY_PATH, param, ctx)
        try:
            os.stat(value)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.fail(f"{value} is a link that leads back to itself: correct the link", param, ctx)
        return super().convert(value, param, ctx)


class ExistingPath(AnyPath):
    """A file or folder, as a `Path`, that must exist when the command is invoked."""

    def check(self, path: Path, param: click.Parameter, ctx: click.Context) -> None:
        """Raise `click.BadParameter`, with similar names, unless the path exists."""
        if not os.path.lexists(path):
            self.fail(missing_path_message(path), param, ctx)


class ExistingRepository(AnyPath):
    """A model repository that must exist; the commands' own errors report one that does not and has no similar name."""

    def check(self, path: Path, param: click.Parameter, ctx: click.Context) -> None:
        """Raise `click.BadParameter` with similar names, unless the folder exists, has none, or `--replica` replaces it."""
        if not ctx.params.get("replicas") and not os.path.lexists(path) and similar_paths(path):
            self.fail(missing_path_message(path), param, ctx)


class ImageSource(ExistingPath):
    """Image files, a folder, a pattern such as `'photos/*.png'`, or `-`: as text, since `./-` is a file."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or raise `click.BadParameter` for an empty text, a circular link, or a server's URL."""
        text = os.fsdecode(value)
        if re.match(r"(http|grpc)s?://", text):
            self.fail(f"{text!r:.120} is a server's URL and not a file: pass it as --url {text:.120}", param, ctx)
        super().convert(value, param, ctx)
        return text

    def check(self, path: Any, param: click.Parameter, ctx: click.Context) -> None:
        """Raise `click.BadParameter`, with similar names, for a path that does not exist; a pattern's files are found later."""
        if path != STANDARD_INPUT and not is_pattern(path):
            super().check(Path(path), param, ctx)


class ServerUrl(click.ParamType[str]):
    """The URL of a server, http://HOST:PORT or grpc://HOST:PORT; a file in its place means that the URL is missing.

    An environment variable may have several, with commas or spaces between them.
    """

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or raise `click.BadParameter` for a file, or another text that is not the URL of a server."""
        from .._exceptions import InputError
        from .._transport.address import address_from_url

        text = str(value)
        path = Path(text)
        source = None if ctx is None or param is None else ctx.get_parameter_source(str(param.name))
        end = "" if param is None or source is not ParameterSource.ENVIRONMENT else f" It is in the environment variable {param.envvar}."
        if not text:
            self.fail("the URL is empty; expected the server's URL, such as http://localhost:8000", param, ctx)
        if "://" not in text and (path.exists() or path.suffix.lower() in (*IMAGE_SUFFIXES, ".npy")):
            self.fail(
                f"the URL is missing: {text!r:.120} is a file. Pass the server's URL, such as http://localhost:8000.{end}", param, ctx
            )
        try:
            address_from_url(text)
        except InputError as error:
            self.fail(f"{error}.{end}" if end else str(error), param, ctx)
        return text

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the URLs of an environment variable."""
        return rv.replace(",", " ").split()


EXISTING_PATH = ExistingPath()
SERVER_URL = ServerUrl()
PATH = AnyPath()
IMAGE_SOURCE = ImageSource()
EXISTING_REPOSITORY = ExistingRepository()


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern of file names, and no file of that name exists."""
    return not os.path.lexists(text) and not set("*?[").isdisjoint(text)


def missing_path_message(path: Path) -> str:
    """Return a sentence about a path that does not exist, with similar names from its folder."""
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, which does not exist or leads back to the link. Correct the link."
    similar = similar_paths(path)
    if similar:
        return f"{path} does not exist. Did you mean {' or '.join(map(str, similar))}?"
    parent = path.parent
    where = "the current folder" if str(parent) == "." else f"the folder {parent}"
    if not parent.is_dir():
        return f"{path} does not exist, and neither does {where}. A path without a leading / starts in {Path.cwd()}."
    return f"{path} does not exist, and {where} has no similar name. A path without a leading / starts in {Path.cwd()}."


def similar_paths(path: Path) -> list[Path]:
    """Return up to three paths in the same folder whose names are similar, the most similar first."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _LARGEST_FOLDER) if entry.name != path.name]
    except OSError:
        return []
    by_lower_name = {name.lower(): name for name in sorted(names)}
    matches = difflib.get_close_matches(path.name.lower(), by_lower_name, n=3)
    return [path.parent / by_lower_name[match] for match in matches]
