"""Members loaded again, from copies of their files, in all ensembles that have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defensemble_repository.errors import EnsembleError
from defensemble_repository.transaction import write_files

from .._exceptions import InputError
from .edit import EditRunner
from .results import Applied
from .server_models import repeat_after_restart

if TYPE_CHECKING:
    from pathlib import Path

    from defensemble_repository.ensemble import Ensemble


def refresh(runner: EditRunner, members: tuple[str, ...], *, message: str | None, dry_run: bool) -> list[Applied]:
    """Load models again from copies of their files; see `Ensembles.refresh`.

    Args:
        runner: The targets.
        members: The models, each as `MODEL` or `MODEL@VERSION`.
        message: A message for the history.
        dry_run: Whether to only check and plan the edits.
    """
    from defensemble_export.editing import RefreshMembers

    models = [member.partition("@")[0] for member in members]
    if len(set(models)) < len(models) or not models:
        raise InputError(f"expected one or more members of different models, got {', '.join(members) or 'none'}; refresh each by itself")
    ensembles = _ensembles(runner)
    labels_of = {member: _used_as(ensembles, member) for member in members}
    used = {label for found in labels_of.values() for label in found}
    unused = [member for member, found in labels_of.items() if not found]
    for is_dry_run in dict.fromkeys([True, dry_run]):  # all are checked before one is written
        for member in unused:
            _refresh_unused(runner, member, dry_run=is_dry_run)
    results: list[Applied] = []
    copied = set[str]()
    for ensemble in ensembles:
        labels = tuple(label for label in _labels(ensemble) if label in used)
        if labels:
            results.append(runner.run(RefreshMembers(ensemble.name, labels, frozenset(copied)), message=message, dry_run=dry_run))
            copied |= set() if dry_run else set(labels)
    return results


def _ensembles(runner: EditRunner) -> list[Ensemble]:
    from defensemble_export.editing import ensemble_names, existing_ensemble
    from defensemble_repository.view import RepositoryView

    repository = runner.targets[0].repository
    found = []
    for name in ensemble_names(RepositoryView(repository)):
        try:
            found.append(existing_ensemble(repository, name))
        except EnsembleError as error:
            runner.on_warning(f"skipped '{name}': {error}")
    return found


def _labels(ensemble: Ensemble) -> list[str]:
    return [f"{member.model}@{member.version}" for member in ensemble.members]


def _used_as(ensembles: list[Ensemble], member: str) -> list[str]:
    """Return the `MODEL@VERSION` as which a model is a member, or nothing if it is none.

    Raises:
        EnsembleError: It is a member at several versions, and `member` names none.
    """
    labels = sorted({label for ensemble in ensembles for label in _labels(ensemble) if member in (label, label.partition("@")[0])})
    if len(labels) > 1:
        versions = ", ".join(label.partition("@")[2] for label in labels)
        raise EnsembleError(f"'{member}' is a member at the versions {versions}; name one, such as {labels[0]}")
    return labels


def _refresh_unused(runner: EditRunner, member: str, *, dry_run: bool) -> None:
    """Add a copy of a version of a model that is no member, and load it where the model is loaded."""
    from defensemble_export.editing import version_copy
    from defensemble_repository.reader import versions_in

    model, at, number = member.partition("@")
    if at and not number.isdecimal():
        raise InputError(f"expected MODEL or MODEL@VERSION, got {member!r:.120}")
    with runner.locked_and_recovered(writes=not dry_run):
        for target in runner.targets:
            folder = target.repository / _checked_name(model)
            versions = versions_in(folder) if folder.is_dir() else []
            if not versions:
                raise EnsembleError(f"{target.repository} has no model '{model}'; `defensemble ensemble check` lists its models")
            _check_is_no_ensemble(folder)
            _, files = version_copy(target.repository, model, int(number) if at else versions[-1])
            if dry_run:
                continue
            write_files(target.repository, files)
            for server in target.servers:
                if model in server.ready():
                    repeat_after_restart([server], lambda: server.load_and_verify(target.repository, model))  # noqa: B023


def _checked_name(model: str) -> str:
    from defensemble_repository.names import AVERAGING_NAME, check_name

    if AVERAGING_NAME.fullmatch(model):
        raise EnsembleError(f"'{model}' is an averaging model, expected a member; `defensemble ensemble show` lists the members")
    return check_name(model)


def _check_is_no_ensemble(folder: Path) -> None:
    from defensemble_repository.reader import is_ensemble, read_config

    name = folder.name
    if is_ensemble(read_config(folder)):
        raise EnsembleError(f"'{name}' is an ensemble, expected a member of one; `defensemble ensemble show {name}` lists its members")
