"""A repository of ensembles with two averaging models, as the code of commit 820acde wrote it."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = Path(__file__).parent / "two_model_form"


def write_old_repository(folder: Path) -> Path:
    """Copy the repository: members `alpha`, `beta` and `gamma`, and the ensembles `ensemble`, `trimmed` and `plain`."""
    shutil.copytree(_FILES / "model_repository", folder)
    return folder


def write_interrupted_edit(folder: Path, when: str) -> Path:
    """Copy the repository with an edit that was killed while it set the weight of `beta` in `ensemble` to 4.

    It was killed "before_config", after it wrote the averaging models, or "after_config", after it also wrote the ensemble's configuration.
    """
    write_old_repository(folder)
    shutil.copytree(_FILES / when, folder, dirs_exist_ok=True)
    journal = folder / "pending-edit.json"
    journal.write_text(journal.read_text().replace("/srv/model_repository", str(folder)))
    return folder
