"""Deleting what no ensemble, and no way back, uses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from defensemble_repository.transaction import remove_files, write_files

from .._exceptions import InputError
from .edit import EditRunner
from .server_models import Served, is_averaging, repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export.editing import Prunable


def prune(runner: EditRunner, *, keep: int, dry_run: bool) -> list[Prunable]:
    """Deletes from all targets what can be deleted at each: see `Ensembles.prune`.

    What a server still runs in an ensemble stays, whatever lies on disk.

    Raises:
        InputError: `keep` is below 0.
    """
    from defensemble_export.editing import prune_files, prune_plan

    if keep < 0:
        raise InputError(f"keep must be 0 or more edits, got {keep}")
    found: list[Prunable] = []
    with runner.locked_and_recovered(writes=not dry_run):
        chosen = []
        for target in runner.targets:
            used: set[str] = set()
            for served in target.servers:
                used |= repeat_after_restart([served], partial(_used, served))
            chosen.append(prune_plan(target.repository, keep=keep, also_used=used, on_progress=runner.on_warning))
            found += chosen[-1]
        if dry_run:
            return found
        for target, gone in zip(runner.targets, chosen, strict=True):
            whole = [one.model for one in gone if one.version is None]
            versions = [one for one in gone if one.version is not None]
            for served in target.servers:
                repeat_after_restart([served], partial(_update, served, whole, ()))
            writes, removals = prune_files(target.repository, gone)
            remove_files(target.repository, removals)
            if writes:
                write_files(target.repository, writes)
            for served in target.servers:
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
