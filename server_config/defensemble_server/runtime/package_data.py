"""What is installed: the files of this package that are no Python (beside it in a checkout, inside it in a wheel), and other packages."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]  # of the package


def data_file(name: str) -> Path:
    """The file or folder ``name`` of ``server_config/``, wherever this installation has it.

    Raises:
        FileNotFoundError: the installation is damaged.
    """
    for folder in (_HERE / "_data", _HERE.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing beside {_HERE}: install defensemble again")


def installed(package: str) -> str | None:
    """A package of Python with its version; None where it is not installed."""
    import importlib.metadata  # 0.03 s that no start waits for

    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None
