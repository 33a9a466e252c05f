"""View a repository as it will be after planned files are written: the planned files hide those on disk."""

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
    """Return the SHA-256 of a file. It is cached by inode, size and times, because networks are large and seldom change between edits."""
    digest = hashlib.sha256()
    with open_regular(path) as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def require_repository(repository: Path, error: type[Exception]) -> None:
    """Raise an error of a class unless a model repository is a folder."""
    if not repository.is_dir():
        problem = "is a file" if repository.exists() else "does not exist"
        raise error(f"model repository {repository} {problem}; name a folder that `defensemble export` has written (--repository FOLDER)")


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file on disk, in hexadecimal, without reading the whole file into memory."""
    status = file.stat()
    return _digest(str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class RepositoryView:
    """The files of a repository after planned changes.

    Every method raises an OSError for a file that cannot be read, such as a FIFO.

    Args:
        repository: The folder of the repository.
        planned: Paths relative to the repository, each with the bytes of the file to write, or None for a file to delete.

    Example:
        view = RepositoryView(Path("model_repository"), {"ensemble/config.pbtxt": content})
        view.config("ensemble").max_batch_size
    """

    def __init__(self, repository: Path, planned: Mapping[str, bytes | None] | None = None) -> None:
        self.repository = repository
        self.planned = dict(planned or {})

    def content(self, path: str) -> bytes | None:
        """Return the bytes of a file, or None if it does not exist."""
        if path in self.planned:
            return self.planned[path]
        file = self.repository / path
        return read_regular(file) if regular_file_exists(file) else None

    def exists(self, path: str) -> bool:
        """Return whether a file exists."""
        return self.planned[path] is not None if path in self.planned else regular_file_exists(self.repository / path)

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        if path in self.planned:
            content = self.planned[path]
            return None if content is None else len(content)
        file = self.repository / path
        return file.stat().st_size if regular_file_exists(file) else None

    def folders(self, model: str) -> list[str]:
        """Return the names of the folders in a model folder on disk, sorted."""
        folder = self.repository / model
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def dangling_links(self, model: str = "") -> dict[str, str]:
        """Return the dangling links in a model folder on disk, or at the root of the repository: name to target, sorted."""
        folder = self.repository / model
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        return {entry.name: os.readlink(entry) for entry in entries if entry.is_symlink() and not os.path.exists(entry)}

    def digest(self, path: str) -> str | None:
        """Return the SHA-256 of a file, in hexadecimal, or None if it does not exist."""
        if path in self.planned:
            content = self.planned[path]
            return None if content is None else hashlib.sha256(content).hexdigest()
        file = self.repository / path
        return file_digest(file) if regular_file_exists(file) else None

    def has(self, model: str) -> bool:
        """Return whether a model has a configuration."""
        return self.exists(f"{model}/{CONFIG_FILE}")

    def config(self, model: str) -> schema.ModelConfig:
        """Return the configuration of a model.

        Raises:
            ConfigError: The configuration is missing or not valid (see `read_config`).
        """
        path = f"{model}/{CONFIG_FILE}"
        content = self.content(path)
        if content is None:
            raise ConfigError(f"{self.repository / path} does not exist. Choose a model or an ensemble of this repository.")
        return checked_config(config_from_pbtxt(content.decode(errors="replace"), str(self.repository / path)), self.repository / model)

    def models(self) -> list[str]:
        """Return the names of all models that have a configuration, sorted. `read_models` reports the other folders."""
        names = {entry.name for entry in self.repository.iterdir() if entry.is_dir()} if self.repository.exists() else set()
        names |= {path.partition("/")[0] for path in self.planned}
        return sorted(name for name in names if MODEL_NAME.fullmatch(name) and self.has(name))

    def versions(self, model: str) -> list[int]:
        """Return the version numbers of a model, in ascending order."""
        folder = self.repository / model
        numbers = {number for number in versions_in(folder) if (folder / str(number)).is_dir()} if folder.is_dir() else set()
        for path, content in self.planned.items():
            name, _, rest = path.partition("/")
            number = rest.partition("/")[0]
            if name == model and "/" in rest and number.isdecimal() and content is not None:
                numbers.add(int(number))
        return sorted(number for number in numbers if not self._is_emptied(model, number))

    def _is_emptied(self, model: str, number: int) -> bool:
        """Return whether the planned changes delete every file of a version."""
        folder = self.repository / model / str(number)
        deleted = {path for path, content in self.planned.items() if content is None}
        existing = (
            {file.relative_to(self.repository).as_posix() for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else set()
        )
        return bool(deleted & existing) and existing <= deleted
