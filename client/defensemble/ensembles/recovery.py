"""An edit that was cut short: found by the next command, and finished or undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .._exceptions import ConnectionFailedError, DeadlineExceededError, ForbiddenError, InputError, ServiceError
from .execution import Place, unused_models
from .server_models import Served, repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export.editing.journal import Pending


def group_of(repositories: Sequence[Path]) -> list[Path]:
    """The repositories, and those that an edit which was cut short in one of them had changed too, where they can be reached.

    Raises:
        defensemble_export.HistoryError: What was written down of it is damaged.
    """
    from defensemble_export.editing.journal import read_pending

    found = {repository.resolve(): repository for repository in repositories}
    for repository in repositories:
        pending = read_pending(repository)
        for other in () if pending is None else pending.group:
            if Path(other).is_dir():
                found.setdefault(Path(other).resolve(), Path(other))
    return list(found.values())


def recover(places: Sequence[Place], group: Sequence[Path], say: Callable[[str], None]) -> None:
    """Finishes or undoes an edit that was cut short in any of `group`, on disk and in the servers of `places`; hold the locks.

    It is finished where the new ensemble's configuration was in place everywhere, and undone otherwise, or where a server refuses it.

    Raises:
        DefensembleError, defensemble_export.RepositoryError, OSError: It could be neither finished nor undone.
    """
    from defensemble_export import read_history
    from defensemble_export.editing.history import append_edit
    from defensemble_export.editing.journal import read_pending, remove_stale_temporaries

    found = [pending for repository in group if (pending := read_pending(repository)) is not None]
    for first in {pending.edit.id: pending for pending in found}.values():
        same = [pending for pending in found if pending.edit.id == first.edit.id]
        edit = first.edit
        what = f"an edit that was cut short ({edit.action} '{edit.ensemble}', {edit.time}, by {edit.who}: {'; '.join(edit.changes)})"
        recorded = any(one.id == edit.id for folder in _folders(same) for one in read_history(folder))
        everywhere = len(same) == len(edit_group(same))  # counted, since a folder can be known by another path elsewhere
        finishes = recorded or (everywhere and all(pending.took_place for pending in same))
        gone = sorted(other for other in edit_group(same) if not Path(other).is_dir())
        if gone and not recorded and not everywhere and any(pending.took_place for pending in same):
            raise InputError(
                f"found {what}; {', '.join(gone)} cannot be reached, so whether it took place there is not known: make it reachable, or, "
                f"where it is gone for good, move {same[0].repository / 'pending-edit.json'} away and say what is to be "
                "(`defensemble ensemble apply FILE`)"
            )
        refused = any(pending.turned_back for pending in same)
        say(f"found {what}: {'finishing' if finishes else 'undoing'} it")
        if finishes:
            try:
                _bring_in_line(places, same)
            except (ConnectionFailedError, DeadlineExceededError, ForbiddenError):
                raise  # no word of the server's on the edit: the next command goes on
            except ServiceError as error:
                if recorded:
                    raise
                say(f"it cannot be finished ({error}): undoing it")
                finishes, refused = False, True
        if finishes:
            for pending in same:
                pending.sync_files()
                append_edit(pending.repository, pending.edit)
        else:
            for pending in same:
                if pending.foreign() is not None:
                    say(f"somebody else has changed '{edit.ensemble}' since: that is kept as {pending.rejected_file}")
                pending.restore_ensemble(refused=refused)
                if pending.rejected is not None and refused:
                    say(f"the hand edit is kept as {pending.rejected_file}")
            _bring_in_line(places, same, undone=True)
            for pending in same:
                pending.remove_new_models()
                pending.sync_files()
        for pending in same:
            remove_stale_temporaries(pending.repository)
            pending.clear()
        lost = sorted({url for pending in same for url in pending.urls} - {served.url for place in places for served in place.served})
        urls = " ".join(f"--url {url}" for url in lost)
        mend = f"; {', '.join(lost)} was to be told too: `defensemble ensemble reload {edit.ensemble} {urls}`" if lost else ""
        say(f"{'finished' if finishes else 'undone'}{mend}")


def _folders(found: Sequence[Pending]) -> list[Path]:
    """The repositories of an edit that can be reached."""
    own = {pending.repository.resolve() for pending in found}
    return sorted(own | {Path(other).resolve() for other in edit_group(found) if Path(other).is_dir()})


def edit_group(found: Sequence[Pending]) -> set[str]:
    """The repositories of an edit."""
    return {other for pending in found for other in pending.group}


def _bring_in_line(places: Sequence[Place], found: Sequence[Pending], *, undone: bool = False) -> None:
    """Makes each server serve what lies on disk, and unload what the edit had loaded, or has released.

    One that fails does not keep the others from it. A hand edit that is to be taken up another time is not loaded.
    """
    by_folder = {pending.repository.resolve(): pending for pending in found}
    failed: list[ServiceError] = []
    for place in places:
        pending = by_folder.get(place.repository.resolve())
        for served in place.served if pending is not None else ():
            assert pending is not None
            candidates = {*pending.new_models, *pending.loads, *pending.released}
            waits = undone and pending.rejected is not None and not pending.turned_back
            name = None if waits else pending.edit.ensemble
            try:
                repeat_after_restart([served], partial(bring_in_line, served, place.repository, name, candidates))
            except ServiceError as error:
                failed.append(error)
    if failed:
        raise failed[0]


def bring_in_line(served: Served, repository: Path, name: str | None, candidates: set[str]) -> None:
    """Makes a server serve the ensemble `name` as it lies on disk, and unload those of `candidates` that no ensemble runs.

    Raises:
        ServiceError: It refuses, or does not answer.
        defensemble_export.ConfigError: The ensemble's configuration cannot be read.
    """
    from defensemble_repository.view import RepositoryView

    files = RepositoryView(repository)
    ready = served.ready()
    if name is not None and files.has(name):
        if name not in ready or served.differs(repository, name):
            served.load_surely(repository, name)
    elif name is not None and name in ready:
        served.unload(name)
    for model in unused_models(repository, served, candidates):
        served.unload(model)
