"""Deleting what no ensemble, and no way back, uses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from .._exceptions import InputError
from .edit import Flow
from .server_models import Served, is_averaging, repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export import Prunable


def prune(flow: Flow, *, keep: int, dry_run: bool) -> list[Prunable]:
    """Deletes from all places what can be deleted at each: see `Ensembles.prune`.

    What a server still runs in an ensemble stays, whatever lies on disk.

    Raises:
        InputError: `keep` is below 0.
        ServiceError, defensemble_export.RepositoryError, OSError: Nothing was deleted there.
    """
    from defensemble_export import write_plan
    from defensemble_export.editing.pruning import prune_files, prune_plan
    from defensemble_repository.transaction import remove_files

    if keep < 0:
        raise InputError(f"keep must be 0 or more edits, got {keep}")
    found: list[Prunable] = []
    with flow.settled(writes=not dry_run):
        chosen = []
        for place in flow.places:
            used: set[str] = set()
            for served in place.served:
                used |= repeat_after_restart([served], partial(_used, served))
            chosen.append(prune_plan(place.repository, keep=keep, also_used=used, say=flow.warn))
            found += chosen[-1]
        if dry_run:
            return found
        for place, gone in zip(flow.places, chosen, strict=True):
            whole = [one.model for one in gone if one.version is None]
            versions = [one for one in gone if one.version is not None]
            for served in place.served:
                repeat_after_restart([served], partial(_update, served, whole, ()))
            writes, removals = prune_files(place.repository, gone)
            remove_files(place.repository, removals)
            if writes:
                write_plan(place.repository, writes)
            for served in place.served:
                # One that was restarted in between may have loaded what was still on disk.
                repeat_after_restart([served], partial(_update, served, whole, dict.fromkeys(one.model for one in versions)))
    return found


def _used(served: Served) -> set[str]:
    """The members, and the versions of members, that the ensembles run which a server has loaded."""
    steps = [step for model in served.ready() if not is_averaging(model) for step in served.steps(model)]
    return {model if version < 1 else f"{model}@{version}" for model, version in steps}


def _update(served: Served, gone: Iterable[str], changed: Iterable[str]) -> None:
    """Unload the loaded ones of the models that are `gone`, and load those again that are `changed`."""
    ready = served.ready()
    for model in gone:
        if model in ready:
            served.unload(model)
    for model in changed:
        if model in ready:
            served.load(model)
