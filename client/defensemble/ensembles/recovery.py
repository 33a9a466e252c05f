"""An edit that was cut short: found by the next command, and finished or undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.view import RepositoryView

from .._exceptions import ConnectionFailedError, DeadlineExceededError, ForbiddenError, InputError, ServiceError
from .server_models import Served, repeat_after_restart, unused_models
from .targets import EditTarget

if TYPE_CHECKING:
    from defensemble_export.editing import EditJournal


def group_of(repositories: Sequence[Path]) -> list[Path]:
    """The repositories, and those that an edit which was cut short in one of them had changed too, where they can be reached."""
    from defensemble_export.editing import read_journal

    found = {repository.resolve(): repository for repository in repositories}
    for repository in repositories:
        journal = read_journal(repository)
        for other in () if journal is None else journal.group:
            if Path(other).is_dir():
                found.setdefault(Path(other).resolve(), Path(other))
    return list(found.values())


def recover(targets: Sequence[EditTarget], group: Sequence[Path], on_progress: Callable[[str], None]) -> None:
    """Finishes or undoes an edit that was cut short in any of `group`, on disk and in the servers of `targets`; hold the locks.

    It is finished where the new ensemble's configuration was in place everywhere, and undone otherwise, or where a server refuses it.
    """
    from defensemble_export.editing import append_edit, read_history, read_journal, remove_stale_temporaries

    found = [journal for repository in group if (journal := read_journal(repository)) is not None]
    for first in {journal.edit.id: journal for journal in found}.values():
        same = [journal for journal in found if journal.edit.id == first.edit.id]
        edit = first.edit
        what = f"an edit that was cut short ({edit.action} '{edit.ensemble}', {edit.time}, by {edit.who}: {'; '.join(edit.changes)})"
        recorded = any(one.id == edit.id for folder in _folders(same) for one in read_history(folder))
        everywhere = len(same) == len(edit_group(same))  # counted, since a folder can be known by another path elsewhere
        finishes = recorded or (everywhere and all(journal.is_applied for journal in same))
        gone = sorted(other for other in edit_group(same) if not Path(other).is_dir())
        if gone and not recorded and not everywhere and any(journal.is_applied for journal in same):
            raise InputError(
                f"found {what}; {', '.join(gone)} cannot be reached, so whether it took place there is not known: make it reachable, or, "
                f"where it is gone for good, move {same[0].repository / 'pending-edit.json'} away and say what is to be "
                "(`defensemble ensemble apply FILE`)"
            )
        refused = any(journal.is_rolled_back for journal in same)
        on_progress(f"found {what}: {'finishing' if finishes else 'undoing'} it")
        if finishes:
            try:
                _reconcile_servers(targets, same)
            except (ConnectionFailedError, DeadlineExceededError, ForbiddenError):
                raise  # no word of the server's on the edit: the next command goes on
            except ServiceError as error:
                if recorded:
                    raise
                on_progress(f"it cannot be finished ({error}): undoing it")
                finishes, refused = False, True
        if finishes:
            for journal in same:
                journal.sync_files()
                append_edit(journal.repository, journal.edit)
        else:
            for journal in same:
                if journal.conflicting_config() is not None:
                    on_progress(f"somebody else has changed '{edit.ensemble}' since: that is kept as {journal.rejected_file}")
                journal.restore_ensemble(refused=refused)
                if journal.rejected is not None and refused:
                    on_progress(f"the hand edit is kept as {journal.rejected_file}")
            _reconcile_servers(targets, same, undone=True)
            for journal in same:
                journal.remove_new_models()
                journal.sync_files()
        for journal in same:
            remove_stale_temporaries(journal.repository)
            journal.clear()
        lost = sorted({url for journal in same for url in journal.urls} - {served.url for target in targets for served in target.servers})
        urls = " ".join(f"--url {url}" for url in lost)
        mend = f"; {', '.join(lost)} was to be told too: `defensemble ensemble reload {edit.ensemble} {urls}`" if lost else ""
        on_progress(f"{'finished' if finishes else 'undone'}{mend}")


def _folders(found: Sequence[EditJournal]) -> list[Path]:
    """The repositories of an edit that can be reached."""
    own = {journal.repository.resolve() for journal in found}
    return sorted(own | {Path(other).resolve() for other in edit_group(found) if Path(other).is_dir()})


def edit_group(found: Sequence[EditJournal]) -> set[str]:
    """The repositories of an edit."""
    return {other for journal in found for other in journal.group}


def _reconcile_servers(targets: Sequence[EditTarget], found: Sequence[EditJournal], *, undone: bool = False) -> None:
    """Makes each server serve what lies on disk, and unload what the edit had loaded, or has released.

    One that fails does not keep the others from it. A hand edit that is to be taken up another time is not loaded.
    """
    by_folder = {journal.repository.resolve(): journal for journal in found}
    failed: list[ServiceError] = []
    for target in targets:
        journal = by_folder.get(target.repository.resolve())
        for served in target.servers if journal is not None else ():
            assert journal is not None
            candidates = {*journal.new_models, *journal.loads, *journal.released}
            waits = undone and journal.rejected is not None and not journal.is_rolled_back
            name = None if waits else journal.edit.ensemble
            try:
                repeat_after_restart([served], partial(reconcile_server, served, target.repository, name, candidates))
            except ServiceError as error:
                failed.append(error)
    if failed:
        raise failed[0]


def reconcile_server(served: Served, repository: Path, name: str | None, candidates: set[str]) -> None:
    """Makes a server serve the ensemble `name` as it lies on disk, and unload those of `candidates` that no ensemble runs."""
    files = RepositoryView(repository)
    ready = served.ready()
    if name is not None and files.has(name):
        if name not in ready or served.differs(repository, name):
            served.load_and_verify(repository, name)
    elif name is not None and name in ready:
        served.unload(name)
    for model in unused_models(repository, served, candidates):
        served.unload(model)
