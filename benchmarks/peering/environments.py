"""The Python environments of the peers. `--prepare` creates them once, in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

import platformdirs

from benchmarks.common.command_line import OnProgress, silent

REQUIREMENTS = Path(__file__).parent / "requirements"
_PREPARE = "python benchmarks/peers.py --prepare"
_INSTALL_TIMEOUT_S = 900.0
_SHOWN_CHARACTERS = 3000


class PeerEnvironmentError(Exception):
    """The environment of a peer is missing, or cannot be created."""


def environment_folder(name: str) -> Path:
    """Return the folder of an environment, which depends on its requirements and on this Python."""
    digest = hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()[:12]
    parent = os.environ.get("DEFENSEMBLE_TEST_ENVS") or platformdirs.user_cache_path("defensemble") / "peers"
    return Path(parent) / f"peer-{name}-python{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def environment_python(name: str) -> Path:
    """Return the Python of an environment.

    Raises:
        PeerEnvironmentError: The environment has not been created.
    """
    folder = environment_folder(name)
    if not folder.is_dir():
        raise PeerEnvironmentError(f"{name} has no environment in {folder}: create it with `{_PREPARE} --peers {name}`")
    return folder / "bin" / "python"


def installed_versions(name: str) -> dict[str, str]:
    """Return the version of each distribution in an environment, by its name in lower case."""
    folders = [str(folder) for folder in environment_folder(name).glob("lib/python*/site-packages")]
    return {found.name.lower(): found.version for found in distributions(path=folders)}


def create_environments(names: Iterable[str], on_progress: OnProgress = silent) -> None:
    """Create each environment that does not exist.

    Raises:
        PeerEnvironmentError: One cannot be created.
    """
    for name in names:
        folder = environment_folder(name)
        if folder.is_dir():
            on_progress(f"{name}: exists in {folder}")
            continue
        on_progress(f"{name}: installing {REQUIREMENTS / f'{name}.txt'}")
        _create(name, folder)
        on_progress(f"{name}: installed in {folder}")


def _create(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=folder.parent) as parent:
        new = Path(parent) / "environment"
        _run(name, [sys.executable, "-m", "venv", "--without-pip", str(new)])
        pip = [sys.executable, "-m", "pip", "--python", str(new / "bin" / "python"), "install", "--no-deps", "--quiet"]
        _run(name, [*pip, "--requirement", str(REQUIREMENTS / f"{name}.txt")])
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process has created it
                raise


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PeerEnvironmentError(f"{name} was not installed within {_INSTALL_TIMEOUT_S:g} s by: {' '.join(command)}") from error
    if done.returncode != 0:
        raise PeerEnvironmentError(f"{name} cannot be installed; `{' '.join(command)}` printed:\n{done.stderr[-_SHOWN_CHARACTERS:]}")
