"""Files that belong to this package but are no Python: beside it in a checkout, inside it in a wheel."""

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
