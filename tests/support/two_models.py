"""A repository in which two models average an ensemble, as the code of commit 820acde wrote it."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = Path(__file__).parent / "two_model_form"


def write_old_repository(folder: Path) -> Path:
    """Copy the repository: members `alpha`, `beta` and `gamma`, and the ensembles `ensemble`, `trimmed` and `plain`."""
    shutil.copytree(_FILES / "model_repository", folder)
    return folder


def write_cut_short(folder: Path, when: str) -> Path:
    """Copy the repository with an edit that was killed: `beta` of `ensemble` was to have the weight 4.

    It ended "before_config", the averaging models being written, or "after_config", the ensemble's configuration being written too.
    """
    write_old_repository(folder)
    shutil.copytree(_FILES / when, folder, dirs_exist_ok=True)
    note = folder / "pending-edit.json"
    note.write_text(note.read_text().replace("/srv/model_repository", str(folder)))
    return folder
