"""What the demonstration finds out before it trains; the whole of it is in `tests/e2e/test_flow.py`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from defensemble.cli.actions.demo import _new_folder


def test_demonstrations_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: _new_folder(tmp_path / "runs/demo"), range(24)))
    assert len(set(folders)) == 24
    assert sorted(folders) == sorted((tmp_path / "runs/demo").iterdir())


def test_a_place_that_takes_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        _new_folder(tmp_path / "file")
