"""A dataset as image files: a folder for each class, below a folder for each split or without any."""

from collections.abc import Sequence
from pathlib import Path

from .sources import Source


def folders_source(folder: Path, test_splits: Sequence[str]) -> Source | None:
    """Recognise class folders; None where there are none."""
    return None
