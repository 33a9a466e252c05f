"""A member loaded again, from a copy of its files, in all ensembles that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defensemble_repository.errors import EnsembleError
from defensemble_repository.transaction import write_files

from .._exceptions import InputError
from .edit import EditRunner
from .results import Applied
from .server_models import repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export.editing import EditRequest


def refresh(runner: EditRunner, member: str, *, message: str | None, dry_run: bool) -> list[Applied]:
    """Load a model again from a copy of its files; see `Ensembles.refresh`.

    Args:
        runner: The targets.
        member: `MODEL` or `MODEL@VERSION`.
        message: A message for the history.
        dry_run: Whether to only check and plan the edits.
    """
    from defensemble_export.editing import AddMembers, RefreshMember, ensemble_names, existing_ensemble
    from defensemble_repository.view import RepositoryView

    repository = runner.targets[0].repository
    model, _, number = member.partition("@")
    uses: list[tuple[str, int]] = []
    for name in ensemble_names(RepositoryView(repository)):
        try:
            members = existing_ensemble(repository, name).members
        except EnsembleError as error:
            runner.on_warning(f"skipped '{name}': {error}")
            continue
        uses += [(name, member.version) for member in members if member.model == model and number in ("", str(member.version))]
    used = sorted({version for _, version in uses})
    if len(used) > 1:
        raise EnsembleError(f"'{model}' is a member at the versions {', '.join(map(str, used))}; name one, such as {model}@{used[0]}")
    if not used:
        _refresh_alone(runner, member, dry_run=dry_run)
        return []
    results: list[Applied] = []
    old = f"{model}@{used[0]}"
    for name, _ in uses:
        request: EditRequest = RefreshMember(name, old)
        if results and not dry_run:
            request = AddMembers(name, (model,), in_place_of=old)  # the newest version, which the first edit has written
        results.append(runner.run(request, message=message, dry_run=dry_run))
    return results


def _refresh_alone(runner: EditRunner, member: str, *, dry_run: bool) -> None:
    """Add a copy of a version of a model that is no member, and load it where the model is loaded."""
    from defensemble_export.editing import version_copy
    from defensemble_repository.reader import versions_in

    model, at, number = member.partition("@")
    if at and not number.isdecimal():
        raise InputError(f"expected MODEL or MODEL@VERSION, got {member!r:.120}")
    with runner.locked_and_recovered(writes=not dry_run):
        for target in runner.targets:
            folder = target.repository / model
            versions = versions_in(folder) if folder.is_dir() else []
            if not versions:
                raise EnsembleError(f"{target.repository} has no model '{model}'; `defensemble ensemble check` lists its models")
            _, files = version_copy(target.repository, model, int(number) if at else versions[-1])
            if dry_run:
                continue
            write_files(target.repository, files)
            for server in target.servers:
                if model in server.ready():
                    repeat_after_restart([server], lambda: server.load_and_verify(target.repository, model))  # noqa: B023
