"""Which ensembles a repository holds, and one of them by its name."""

from __future__ import annotations

from pathlib import Path

from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import ConfigError, EnsembleError
from defensemble_repository.names import check_name
from defensemble_repository.reader import is_ensemble, read_ensemble
from defensemble_repository.view import RepositoryView


def ensemble_names(files: RepositoryView) -> list[str]:
    """Return the names of all ensembles, sorted; models whose configuration cannot be read are left out."""
    found = []
    for name in files.models():
        try:
            if is_ensemble(files.config(name)):
                found.append(name)
        except ConfigError:
            continue
    return found


def check_ensemble_exists(repository: Path, name: str) -> None:
    """Refuse a name that no ensemble of `repository` has.

    Raises:
        EnsembleError: It is not a valid name, or there is no such ensemble.
        ConfigError: Its configuration cannot be read.
    """
    files = RepositoryView(repository)
    there = files.has(check_name(name))
    if there and is_ensemble(files.config(name)):
        return
    known = ensemble_names(files)
    what = f"'{name}' in {repository} is not an ensemble" if there else f"{repository} holds no ensemble '{name}'"
    make = "make one " + ("under another name " if there else "") + "(`defensemble ensemble create`)"
    fix = f"the ensembles there are: {', '.join(known)}; name one, or {make}" if known else f"nor is there any other: {make}"
    raise EnsembleError(f"{what}, {fix}")


def existing_ensemble(repository: Path, name: str) -> Ensemble:
    """Read the ensemble `name` as it is on disk.

    Raises:
        EnsembleError: There is none, or it is not wired as an export wires one.
        ConfigError, OSError: It cannot be read.
    """
    check_ensemble_exists(repository, name)
    return read_ensemble(repository, name)
