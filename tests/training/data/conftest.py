"""Every test has a cache of its own, and no dataset of the user's."""

from dataclasses import replace
from pathlib import Path

import pytest

from defensemble_training.data.registry import KNOWN


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded datasets, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    return tmp_path / "cache" / "defensemble" / "datasets"


@pytest.fixture
def three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dataset that goes by a name has three classes, as the small stand-ins have."""
    for name, known in KNOWN.items():
        monkeypatch.setitem(KNOWN, name, replace(known, classes=3))
