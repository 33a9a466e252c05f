"""Deletion of models that no ensemble and no rollback needs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from defensemble_repository.transaction import remove_files, write_files

from .._exceptions import InputError
from .edit import EditRunner
from .server_models import ModelServer, is_averaging, repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export.editing import Prunable


def prune(runner: EditRunner, *, keep_edits: int, dry_run: bool) -> list[Prunable]:
    """Delete unused models from all targets; see `Ensembles.prune`.

    Models that a server still runs in an ensemble are kept, even if no ensemble on disk uses them.

    Args:
        runner: The targets.
        keep_edits: The number of edits of each ensemble that can still be rolled back, at least 0.
        dry_run: Whether to only list what would be deleted.

    Raises:
        InputError: `keep_edits` is below 0.
    """
    from defensemble_export.editing import find_prunable, prune_files

    if keep_edits < 0:
        raise InputError(f"keep_edits must be 0 or more edits, got {keep_edits}")
    items: list[Prunable] = []
    with runner.locked_and_recovered(writes=not dry_run):
        by_target = []
        for target in runner.targets:
            used: set[str] = set()
            for server in target.servers:
                used |= repeat_after_restart([server], partial(_used_members, server))
            by_target.append(find_prunable(target.repository, keep_edits=keep_edits, also_used=used, on_progress=runner.on_warning))
            items += by_target[-1]
        if dry_run:
            return items
        for target, chosen in zip(runner.targets, by_target, strict=True):
            models = [item.model for item in chosen if item.version is None]
            changed = dict.fromkeys(item.model for item in chosen if item.version is not None)
            for server in target.servers:
                repeat_after_restart([server], partial(_update, server, models, ()))
            writes, removals = prune_files(target.repository, chosen)
            remove_files(target.repository, removals)
            if writes:
                write_files(target.repository, writes)
            for server in target.servers:
                # Unload again: a server that restarted meanwhile may have loaded models that were still on disk.
                repeat_after_restart([server], partial(_update, server, models, changed))
    return items


def _used_members(server: ModelServer) -> set[str]:
    """Return the members, with their versions, of all ensembles that a server has loaded."""
    steps = [step for model in server.ready() if not is_averaging(model) for step in server.steps(model)]
    return {model if version < 1 else f"{model}@{version}" for model, version in steps}


def _update(server: ModelServer, removed: Iterable[str], changed: Iterable[str]) -> None:
    """Unload the `removed` models and reload the `changed` models, as far as the server has loaded them."""
    ready = server.ready()
    for model in removed:
        if model in ready:
            server.unload(model)
    for model in changed:
        if model in ready:
            server.load(model)
