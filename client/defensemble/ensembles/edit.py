"""The phases of every edit: lock and recover, plan, check, write journals, execute, report; at all targets or at none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from defensemble_repository.lock import locked_within
from defensemble_repository.transaction import check_writable, remove_stale_staging

from .._exceptions import ConnectionFailedError, DeadlineExceededError, InputError
from .baseline import Baseline, baseline_before_reload
from .checks import check_target_edits, plan_target_edit
from .execution import EditExecution
from .records import edit_changes, prepare_journals
from .recovery import group_of, recover
from .results import Applied
from .server_models import ModelServer, repeat_after_restart
from .targets import EditTarget, TargetEdit
from .timings import Timings

if TYPE_CHECKING:
    from defensemble_export.editing import EditRequest


@dataclass(frozen=True)
class _CheckedEdit:
    """A planned edit that passed the checks, with the state before it at each target, and the remarks of the checks."""

    target_edits: Sequence[TargetEdit]
    baselines: Sequence[Baseline]
    remarks: tuple[str, ...]

    @property
    def changes_ensemble(self) -> bool:
        """Whether the history records it: it changes files, or applies a hand edit."""
        pairs = zip(self.target_edits, self.baselines, strict=True)
        return any(target_edit.plan.changes_files or baseline.was_edited_by_hand for target_edit, baseline in pairs)

    def has_outdated_server(self) -> bool:
        """Return whether a server does not serve the state that will be on disk."""
        return any(target_edit.has_outdated_server() for target_edit in self.target_edits)


class EditRunner:
    """Runs edits at all of its targets.

    Args:
        targets: The repositories and their servers.
        wait_s: How long to wait for another edit to finish.
        idle_timeout_s: How long to wait for a model to become idle before it is unloaded.
        on_progress: Receives each step.
        on_warning: Receives problems that did not stop the edit.
    """

    def __init__(
        self,
        targets: Sequence[EditTarget],
        *,
        wait_s: float,
        idle_timeout_s: float,
        on_progress: Callable[[str], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self.targets = list(targets)
        self._wait_s = wait_s
        self._idle_timeout_s = idle_timeout_s
        self._on_progress = on_progress
        self.on_warning = on_warning

    @property
    def servers(self) -> list[ModelServer]:
        """The servers of all targets."""
        return [server for target in self.targets for server in target.servers]

    def run(self, request: EditRequest, *, message: str | None, dry_run: bool, check: Callable[[], None] = lambda: None) -> Applied:
        """Run an edit at all targets, or at none; the errors are those of `Ensembles`.

        Args:
            request: The edit.
            message: A message for the history.
            dry_run: Whether to stop before anything is written.
            check: Called after the edit is planned; raises an error to refuse it. Later changes are detected before anything is written.
        """
        if message is not None and not isinstance(message, str):
            raise InputError(f"message must be a string or None, got {message!r:.80}")
        timings = Timings()
        start = time.perf_counter()
        with self.locked_and_recovered(writes=not dry_run):
            with timings.of("checks"), _nothing_changed_errors():
                checked = repeat_after_restart(self.servers, partial(self._plan_and_check, request, check))
                is_needed = checked.changes_ensemble or request.reloads or checked.has_outdated_server()
            target_edits, baselines, remarks = checked.target_edits, checked.baselines, checked.remarks
            if message is not None and not checked.changes_ensemble:
                remarks = (*remarks, "the ensemble does not change, so the history records no edit and the message is not saved")
            changes = edit_changes(target_edits, baselines)
            urls = tuple(server.url for server in self.servers)
            loads = {url: tuple(models) for target_edit in target_edits for url, models in target_edit.loads.items() if models}
            if dry_run or not is_needed:
                return Applied(request.name, None, changes, remarks, urls, loads, seconds=timings.seconds, dry_run=dry_run)
            edit = prepare_journals(request, target_edits, baselines, message) if checked.changes_ensemble else None
            execution = EditExecution(target_edits, edit, timings, self._on_progress, self.on_warning, self._idle_timeout_s)
            execution.execute()
        timings.seconds["total"] = time.perf_counter() - start
        return Applied(
            request.name,
            edit,
            changes,
            (*remarks, *execution.warnings),
            tuple(url for url in urls if url not in execution.unreachable_servers),
            loads,
            {url: tuple(models) for url, models in execution.unloaded.items()},
            execution.still_loaded,
            timings.seconds,
        )

    @contextmanager
    def locked_and_recovered(self, wait_s: float | None = None, *, writes: bool = True) -> Iterator[None]:
        """Hold the locks of all targets; an interrupted edit is finished or undone first.

        Args:
            wait_s: How long to wait for the locks; None for the runner's default.
            writes: Whether repositories must be writable; without it, only an interrupted edit needs write permission.

        Raises:
            defensemble_repository.errors.LockedError: Another program holds a lock.
            OSError: A folder cannot be written.
        """
        from defensemble_export.editing import check_history, read_journal, remove_stale_temporaries

        folders = [target.repository for target in self.targets]
        can_write = True
        for folder in folders:
            try:
                check_writable(folder)
            except OSError:
                if writes:
                    raise
                can_write = False
        with ExitStack() as stack:
            while True:
                group = group_of(folders)
                locks = stack.enter_context(ExitStack())
                locks.enter_context(locked_within(group, self._wait_s if wait_s is None else wait_s, self.on_warning))
                if {folder.resolve() for folder in group_of(folders)} <= {folder.resolve() for folder in group}:
                    break
                locks.close()  # an edit of more folders was interrupted meanwhile
            for folder in group if can_write else ():
                for stale in (*remove_stale_staging(folder), *remove_stale_temporaries(folder)):
                    self.on_warning(f"removed {stale}, left over from a command that was killed")
            for folder in folders if writes else ():
                check_history(folder)
            if any(read_journal(folder) is not None for folder in group):
                recover(self.targets, group, self.on_warning)
            yield

    def _plan_and_check(self, request: EditRequest, check: Callable[[], None]) -> _CheckedEdit:
        """Plan and check an edit at each target."""
        target_edits = [plan_target_edit(request, target) for target in self.targets]
        check()
        for target_edit in target_edits:
            target_edit.inspect_servers(reloads=request.reloads)
        remarks = check_target_edits(request, target_edits)
        state_before = baseline_before_reload if request.reloads else Baseline.on_disk
        baselines = [state_before(target_edit) for target_edit in target_edits]
        if any(baseline.applies_hand_edit for baseline in baselines):
            text = "have changes that are not loaded yet (a hand edit, an edit with --files-only, or an export); this edit applies them"
            remarks = (*remarks, f"the files of '{request.name}' {text}")
        return _CheckedEdit(target_edits, baselines, remarks)


@contextmanager
def _nothing_changed_errors() -> Iterator[None]:
    """Add to connection errors that nothing was changed yet."""
    try:
        yield
    except (ConnectionFailedError, DeadlineExceededError) as error:
        fix = "A server that is down reads the files when it starts: omit its --url, or use --files-only."
        raise type(error)(f"{error} Nothing was changed. {fix}") from error
