"""The ensembles that a repository contains, and one of them by its name."""

from __future__ import annotations

from pathlib import Path

from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import ConfigError, EnsembleError
from defensemble_repository.names import check_name
from defensemble_repository.reader import is_ensemble, read_ensemble
from defensemble_repository.view import RepositoryView


def ensemble_names(files: RepositoryView) -> list[str]:
    """Return the names of all ensembles, sorted; models whose configuration cannot be read are skipped."""
    names = []
    for name in files.models():
        try:
            if is_ensemble(files.config(name)):
                names.append(name)
        except ConfigError:
            continue
    return names


def check_ensemble_exists(repository: Path, name: str) -> None:
    """Check that a repository has an ensemble.

    Args:
        repository: The repository.
        name: The ensemble.

    Raises:
        EnsembleError: The name is not valid, or there is no such ensemble.
        ConfigError: Its configuration cannot be read.
    """
    files = RepositoryView(repository)
    exists = files.has(check_name(name))
    if exists and is_ensemble(files.config(name)):
        return
    known = ensemble_names(files)
    problem = f"'{name}' in {repository} is not an ensemble" if exists else f"{repository} has no ensemble '{name}'"
    create = "create one " + ("under another name " if exists else "") + "with `defensemble ensemble create`"
    fix = f"existing ensembles: {', '.join(known)}. Use one of these, or {create}" if known else f"it has no ensembles at all; {create}"
    raise EnsembleError(f"{problem}; {fix}")


def existing_ensemble(repository: Path, name: str) -> Ensemble:
    """Read an ensemble from disk.

    Args:
        repository: The repository.
        name: The ensemble.

    Raises:
        EnsembleError: There is no such ensemble, or it is not wired the way an export wires it.
        ConfigError, OSError: It cannot be read.
    """
    check_ensemble_exists(repository, name)
    return read_ensemble(repository, name)
