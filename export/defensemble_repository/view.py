"""A repository as it will be once a plan is written: the files on disk, with planned ones laid over them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from .errors import ConfigError
from .filesystem.regular_files import open_regular, read_regular, regular_file_exists
from .names import CONFIG_FILE, MODEL_NAME
from .pbtxt import config_from_pbtxt, schema
from .reader import checked_config, versions_in


@lru_cache(maxsize=1024)
def _digest(path: str, *version: int) -> str:
    """Of a file that is this version, by its number, size and times of change: networks are large, and seldom change between two edits."""
    digest = hashlib.sha256()
    with open_regular(path) as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file on disk, in hexadecimal; it is not held in memory as a whole."""
    known = file.stat()
    return _digest(str(file), known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)


class RepositoryView:
    """The files of ``repository`` after ``planned``: path relative to it, to the bytes of the file, or None where it will be gone.

    What cannot be read, such as a FIFO, is an OSError.
    """

    def __init__(self, repository: Path, planned: Mapping[str, bytes | None] | None = None) -> None:
        self.repository = repository
        self.planned = dict(planned or {})

    def content(self, path: str) -> bytes | None:
        """A file's bytes, None where there is none."""
        if path in self.planned:
            return self.planned[path]
        file = self.repository / path
        return read_regular(file) if regular_file_exists(file) else None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.planned[path] is not None if path in self.planned else regular_file_exists(self.repository / path)

    def size(self, path: str) -> int | None:
        """How many bytes a file has, None where there is no such file."""
        if path in self.planned:
            content = self.planned[path]
            return None if content is None else len(content)
        file = self.repository / path
        return file.stat().st_size if regular_file_exists(file) else None

    def folders(self, model: str) -> list[str]:
        """The names of the folders on disk in a model's folder, sorted."""
        folder = self.repository / model
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def dangling_links(self, model: str = "") -> dict[str, str]:
        """The names of the links on disk in a model's folder, or beside these, that lead to nothing, with what they say, sorted."""
        folder = self.repository / model
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        return {entry.name: os.readlink(entry) for entry in entries if entry.is_symlink() and not os.path.exists(entry)}

    def digest(self, path: str) -> str | None:
        """The SHA-256 of a file, in hexadecimal, None where there is none; a file on disk is not held in memory as a whole."""
        if path in self.planned:
            content = self.planned[path]
            return None if content is None else hashlib.sha256(content).hexdigest()
        file = self.repository / path
        return file_digest(file) if regular_file_exists(file) else None

    def has(self, model: str) -> bool:
        """Whether there is a configuration of ``model``."""
        return self.exists(f"{model}/{CONFIG_FILE}")

    def config(self, model: str) -> schema.ModelConfig:
        """The configuration of a model; ConfigError where there is none, or it cannot be read (``read_config``)."""
        path = f"{model}/{CONFIG_FILE}"
        content = self.content(path)
        if content is None:
            raise ConfigError(f"{self.repository / path} is not there: name a model or an ensemble of this repository")
        return checked_config(config_from_pbtxt(content.decode(errors="replace"), str(self.repository / path)), self.repository / model)

    def models(self) -> list[str]:
        """The names of all models that have a configuration, sorted; other folders are passed over (``read_models`` reports them)."""
        there = {entry.name for entry in self.repository.iterdir() if entry.is_dir()} if self.repository.exists() else set()
        there |= {path.partition("/")[0] for path in self.planned}
        return sorted(name for name in there if MODEL_NAME.fullmatch(name) and self.has(name))

    def versions(self, model: str) -> list[int]:
        """The numbers of a model's version folders, lowest first."""
        folder = self.repository / model
        numbers = {number for number in versions_in(folder) if (folder / str(number)).is_dir()} if folder.is_dir() else set()
        for path, content in self.planned.items():
            name, _, rest = path.partition("/")
            number = rest.partition("/")[0]
            if name == model and "/" in rest and number.isdecimal() and content is not None:
                numbers.add(int(number))
        return sorted(number for number in numbers if not self._emptied(model, number))

    def _emptied(self, model: str, number: int) -> bool:
        folder = self.repository / model / str(number)
        gone = {path for path, content in self.planned.items() if content is None}
        there = {file.relative_to(self.repository).as_posix() for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else set()
        return bool(gone & there) and there <= gone
