"""Hand edits of all ensembles, applied one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from defensemble_repository.errors import EnsembleError, RepositoryError
from defensemble_repository.reader import read_ensemble

from .._exceptions import DefensembleError
from .edit import EditRunner
from .results import Applied


def reload_all(runner: EditRunner, names: Sequence[str], *, message: str | None, dry_run: bool) -> list[Applied]:
    """Apply the hand edits of ensembles; see `Ensembles.reload`. An ensemble that was wired by hand is skipped.

    Args:
        runner: The targets.
        names: The ensembles.
        message: A message for the history.
        dry_run: Whether to only check and plan the edits.

    Raises:
        DefensembleError, RepositoryError: The first error, once all ensembles were tried.
    """
    from defensemble_export.editing import Reload

    results: list[Applied] = []
    errors: list[Exception] = []
    for ensemble in names:
        try:
            read_ensemble(runner.targets[0].repository, ensemble)
        except EnsembleError as error:
            runner.on_warning(f"skipped '{ensemble}': {error}")
            continue
        try:
            results.append(runner.run(Reload(ensemble), message=message, dry_run=dry_run))
        except (DefensembleError, RepositoryError) as error:
            errors.append(error)
    if errors:
        for applied in results:
            runner.on_warning(f"'{applied.ensemble}' was reloaded: {'; '.join(applied.changes) or 'no changes'}")
        for other in errors[1:]:
            runner.on_warning(str(other))
        raise errors[0]
    return results
