"""Find this package's data files (next to it in a checkout, inside it in a wheel) and the versions of other packages."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]  # of the package


def data_file(name: str) -> Path:
    """Return the path of the file or folder `name` of `server_config/` in this installation.

    Raises:
        FileNotFoundError: The installation is damaged.
    """
    for folder in (_HERE / "_data", _HERE.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing next to {_HERE}: reinstall defensemble")


def installed(package: str) -> str | None:
    """Return the name and version of a Python package, or None if it is not installed."""
    import importlib.metadata  # takes 0.03 s

    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None
