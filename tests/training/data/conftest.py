"""Every test has a cache of its own, and no dataset of the user's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded datasets, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    return tmp_path / "cache" / "defensemble" / "datasets"
