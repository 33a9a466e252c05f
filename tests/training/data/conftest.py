"""Each test has its own cache and does not use the user's datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from defensemble_training.data.registry import DATASET_INFOS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder of decoded datasets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    return tmp_path / "cache" / "defensemble" / "datasets"


@pytest.fixture
def three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all named datasets three classes, like the small test datasets."""
    for name, info in DATASET_INFOS.items():
        monkeypatch.setitem(DATASET_INFOS, name, replace(info, classes=3))
