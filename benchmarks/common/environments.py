"""Python environments of foreign packages with pinned versions, in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

_INSTALL_TIMEOUT_S = 900.0
_SHOWN_CHARACTERS = 3000


class InstallationError(Exception):
    """An environment cannot be created."""


def environment_folder(name: str, requirements: Path, cache: str) -> Path:
    """Return the folder of an environment, which depends on its requirements and on this Python.

    Args:
        name: Its name.
        requirements: File of pinned requirements.
        cache: Folder in the user's cache; the variable `DEFENSEMBLE_TEST_ENVS` takes precedence.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    parent = os.environ.get("DEFENSEMBLE_TEST_ENVS") or platformdirs.user_cache_path("defensemble") / cache
    return Path(parent) / f"{name}-python{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def create_environment(requirements: Path, folder: Path, *, compiled: bool) -> None:
    """Create an environment, as a whole or not at all.

    Args:
        requirements: File of pinned requirements.
        folder: The new folder.
        compiled: Whether to compile all modules, which takes about as long as to install them.

    Raises:
        InstallationError: A package cannot be installed.
        OSError: The folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=folder.parent) as parent:
        new = Path(parent) / "environment"
        _run([sys.executable, "-m", "venv", "--without-pip", str(new)])
        pip = [sys.executable, "-m", "pip", "--python", str(new / "bin" / "python"), "install", "--no-deps", "--quiet"]
        _run([*pip, *([] if compiled else ["--no-compile"]), "--requirement", str(requirements)])
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process has created it
                raise


def _run(command: list[str]) -> None:
    text = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise InstallationError(f"`{text}` did not end within {_INSTALL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise InstallationError(f"`{text}` printed:\n{done.stderr[-_SHOWN_CHARACTERS:]}")
