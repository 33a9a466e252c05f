"""The folder of a demonstration; `tests/e2e/test_flow.py` runs all of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from defensemble.cli.actions.demo import _new_folder


def test_concurrent_demos_create_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: _new_folder(tmp_path / "runs/demo"), range(24)))
    assert len(set(folders)) == 24
    assert sorted(folders) == sorted((tmp_path / "runs/demo").iterdir())


def test_a_demo_names_a_path_where_it_cannot_create_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        _new_folder(tmp_path / "file")
