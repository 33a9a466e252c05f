"""The Python environments of the peers. `--prepare` creates them once, in the user's cache."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.environments import InstallationError, create_environment, environment_folder

REQUIREMENTS = Path(__file__).parent / "requirements"
_PREPARE = "python benchmarks/peers.py --prepare"


class PeerEnvironmentError(Exception):
    """The environment of a peer is missing, or cannot be created."""


def peer_folder(name: str) -> Path:
    """Return the folder of an environment."""
    return environment_folder(f"peer-{name}", REQUIREMENTS / f"{name}.txt", "peers")


def environment_python(name: str) -> Path:
    """Return the Python of an environment.

    Raises:
        PeerEnvironmentError: The environment has not been created.
    """
    folder = peer_folder(name)
    if not folder.is_dir():
        raise PeerEnvironmentError(f"{name} has no environment in {folder}: create it with `{_PREPARE} --peers {name}`")
    return folder / "bin" / "python"


def installed_versions(name: str) -> dict[str, str]:
    """Return the version of each distribution in an environment, by its name in lower case."""
    folders = [str(folder) for folder in peer_folder(name).glob("lib/python*/site-packages")]
    return {found.name.lower(): found.version for found in distributions(path=folders)}


def create_environments(names: Iterable[str], on_progress: OnProgress = silent) -> None:
    """Create each environment that does not exist.

    Raises:
        PeerEnvironmentError: One cannot be created.
    """
    for name in names:
        folder = peer_folder(name)
        if folder.is_dir():
            on_progress(f"{name}: exists in {folder}")
            continue
        on_progress(f"{name}: installing {REQUIREMENTS / f'{name}.txt'}")
        try:
            create_environment(REQUIREMENTS / f"{name}.txt", folder, compiled=True)
        except InstallationError as error:
            raise PeerEnvironmentError(f"{name} cannot be installed: {error}") from error
        on_progress(f"{name}: installed in {folder}")
