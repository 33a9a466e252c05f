"""Every test has a cache of its own, and no dataset of the user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from defensemble_training.data.registry import DATASET_INFOS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded datasets, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    return tmp_path / "cache" / "defensemble" / "datasets"


@pytest.fixture
def three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dataset that goes by a name has three classes, as the small stand-ins have."""
    for name, info in DATASET_INFOS.items():
        monkeypatch.setitem(DATASET_INFOS, name, replace(info, classes=3))
