"""Recovery of interrupted edits: the next command finds them and finishes or undoes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.view import RepositoryView

from .._exceptions import ConnectionFailedError, DeadlineExceededError, ForbiddenError, InputError, ServiceError
from .server_models import ModelServer, repeat_after_restart, unused_models
from .targets import EditTarget

if TYPE_CHECKING:
    from defensemble_export.editing import EditJournal


def group_of(repositories: Sequence[Path]) -> list[Path]:
    """Return the repositories, and the other repositories of interrupted edits in them, as far as these can be reached."""
    from defensemble_export.editing import read_journal

    group = {repository.resolve(): repository for repository in repositories}
    for repository in repositories:
        journal = read_journal(repository)
        for other in () if journal is None else journal.group:
            if Path(other).is_dir():
                group.setdefault(Path(other).resolve(), Path(other))
    return list(group.values())


def recover(targets: Sequence[EditTarget], group: Sequence[Path], on_progress: Callable[[str], None]) -> None:
    """Finish or undo the interrupted edits of repositories, on disk and on servers. Hold the locks of the repositories.

    An edit is finished if its new ensemble is on disk in all repositories. Otherwise, or if a server refuses that ensemble, it is undone.

    Args:
        targets: The repositories whose servers are updated.
        group: All repositories, from `group_of`.
        on_progress: Receives messages.

    Raises:
        InputError: Another repository of an edit cannot be reached, so it is unknown whether the edit was applied there.
        ServiceError: A server does not answer; the next command tries again.
    """
    from defensemble_export.editing import append_edit, read_history, read_journal, remove_stale_temporaries

    all_journals = [journal for repository in group if (journal := read_journal(repository)) is not None]
    for edit in {journal.edit.id: journal.edit for journal in all_journals}.values():
        journals = [journal for journal in all_journals if journal.edit.id == edit.id]
        description = f"an interrupted edit ({edit.action} '{edit.ensemble}', {edit.time}, by {edit.who}: {'; '.join(edit.changes)})"
        is_recorded = any(other.id == edit.id for folder in _reachable(journals) for other in read_history(folder))
        is_everywhere = len(journals) == len(_edit_group(journals))  # counted, because a folder can have several paths
        finishes = is_recorded or (is_everywhere and all(journal.is_applied for journal in journals))
        missing = sorted(other for other in _edit_group(journals) if not Path(other).is_dir())
        if missing and not is_recorded and not is_everywhere and any(journal.is_applied for journal in journals):
            raise InputError(
                f"found {description}, but {', '.join(missing)} cannot be reached, so it is unknown whether the edit was applied there. "
                f"Make it reachable or, if it no longer exists, move {journals[0].repository / 'pending-edit.json'} away and declare the "
                "ensemble that you want (`defensemble ensemble apply FILE`)"
            )
        refused = any(journal.is_rolled_back for journal in journals)
        on_progress(f"found {description}; {'finishing' if finishes else 'undoing'} it")
        if finishes:
            try:
                _reconcile_servers(targets, journals)
            except (ConnectionFailedError, DeadlineExceededError, ForbiddenError):
                raise  # not a fault of the edit: the next command tries again
            except ServiceError as error:
                if is_recorded:
                    raise
                on_progress(f"it cannot be finished ({error}); undoing it")
                finishes, refused = False, True
        if finishes:
            for journal in journals:
                journal.sync_files()
                append_edit(journal.repository, journal.edit)
        else:
            for journal in journals:
                if journal.conflicting_config() is not None:
                    on_progress(f"another program changed '{edit.ensemble}' since; its configuration is kept as {journal.rejected_file}")
                journal.restore_ensemble(refused=refused)
                if journal.rejected is not None and refused:
                    on_progress(f"the hand edit is kept as {journal.rejected_file}")
            _reconcile_servers(targets, journals, undone=True)
            for journal in journals:
                journal.remove_new_models()
                journal.sync_files()
        for journal in journals:
            remove_stale_temporaries(journal.repository)
            journal.clear()
        known = {server.url for target in targets for server in target.servers}
        others = sorted({url for journal in journals for url in journal.urls} - known)
        options = " ".join(f"--url {url}" for url in others)
        fix = f"; also update {', '.join(others)}: `defensemble ensemble reload {edit.ensemble} {options}`" if others else ""
        on_progress(f"{'finished' if finishes else 'undone'}{fix}")


def _reachable(journals: Sequence[EditJournal]) -> list[Path]:
    """Return the repositories of an edit that can be reached."""
    own = {journal.repository.resolve() for journal in journals}
    return sorted(own | {Path(other).resolve() for other in _edit_group(journals) if Path(other).is_dir()})


def _edit_group(journals: Sequence[EditJournal]) -> set[str]:
    """Return all repositories of an edit."""
    return {other for journal in journals for other in journal.group}


def _reconcile_servers(targets: Sequence[EditTarget], journals: Sequence[EditJournal], *, undone: bool = False) -> None:
    """Make each server serve what is on disk, and unload the models that the edit loaded or no longer needs.

    All servers are tried, even if one fails. With `undone`, a hand edit that stays on disk is not loaded.
    """
    by_folder = {journal.repository.resolve(): journal for journal in journals}
    errors: list[ServiceError] = []
    for target in targets:
        journal = by_folder.get(target.repository.resolve())
        for server in target.servers if journal is not None else ():
            assert journal is not None
            candidates = {*journal.new_models, *journal.loads, *journal.released}
            rewritten = {path.partition("/")[0] for path in journal.before} - {journal.edit.ensemble, *journal.new_models}
            keeps_hand_edit = undone and journal.rejected is not None and not journal.is_rolled_back
            name = None if keeps_hand_edit else journal.edit.ensemble
            try:
                repeat_after_restart([server], partial(reconcile_server, server, target.repository, name, candidates, rewritten))
            except ServiceError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def reconcile_server(
    server: ModelServer, repository: Path, name: str | None, candidates: set[str], rewritten: Collection[str] = ()
) -> None:
    """Make a server serve an ensemble as it is on disk, and unload the `candidates` that no ensemble runs.

    Args:
        server: The server.
        repository: The repository.
        name: The ensemble; None to leave it as it is.
        candidates: Models that may be unloaded.
        rewritten: Other models whose configurations the edit has changed.
    """
    files = RepositoryView(repository)
    ready = server.ready()
    for model in rewritten:
        if model in ready and server.is_outdated(repository, model):
            server.load_and_verify(repository, model)
    if name is not None and files.has(name):
        if name not in ready or server.is_outdated(repository, name):
            server.load_and_verify(repository, name)
    elif name is not None and name in ready:
        server.unload(name)
    for model in unused_models(repository, server, candidates):
        server.unload(model)
