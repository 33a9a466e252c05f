"""How an edit is carried out: step by step, each undone where a later one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from defensemble_repository.errors import RepositoryError
from defensemble_repository.filesystem.signals import defer_sigint, sigint_raises
from defensemble_repository.transaction import remove_files, write_files

from .._exceptions import ConnectionFailedError, RequestRefusedError, ServerFailedError, ServiceError
from .errors import EditFailedError, EditOvertakenError
from .server_models import Served, is_averaging, repeat_after_restart, unused_models
from .targets import TargetEdit
from .verification import AveragingSpec, check_answer, check_averaging, fixed_image, tolerance_for

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, EditJournal

_T = TypeVar("_T")


class Timings:
    """Seconds by kind of work: checks, writes, loads (load and unload calls), inferences, drain."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began


class EditExecution:
    """One edit on its way: `execute` carries it out, at all targets or at none."""

    def __init__(
        self,
        target_edits: Sequence[TargetEdit],
        edit: Edit | None,
        timings: Timings,
        on_progress: Callable[[str], None],
        on_warning: Callable[[str], None],
        drain_s: float,
    ) -> None:
        self._target_edits = list(target_edits)
        self._edit = edit
        self._timings = timings
        self._on_progress = on_progress
        self._warn = on_warning
        self._drain_s = drain_s
        self._step = ""
        self._ignored: list[str] = []  # what servers loaded without taking the files on disk up
        self._recorded: set[Path] = set()  # where the history may hold the edit
        self._touched: dict[str, bool] = {}  # by server: whether the ensemble itself was to be loaded
        self._away: set[str] = set()  # servers that were waited for and did not answer again
        self._report: list[str] = []  # of putting back, in words
        self._restarts: dict[str, list[str]] = {}  # by server: the steps at which it was lost, and answered again
        self.unloaded: dict[str, list[str]] = {}
        self.still_loaded: dict[str, str] = {}
        self.unreachable_servers: dict[str, str] = {}
        self.cleanup_warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What went wrong without harm, in words: restarted servers, files that are left, servers that no longer answer."""
        unreachable = [f"{url} no longer answers: {why}" for url, why in self.unreachable_servers.items()]
        return [*self._restarted_servers(), *self.cleanup_warnings, *unreachable]

    def _restarted_servers(self) -> list[str]:
        text = "{} was restarted during the edit, or the connection to it was lost, at the step '{}'"
        return [text.format(url, step) for url, steps in self._restarts.items() for step in steps]

    def execute(self) -> None:
        """Carry the edit out; an EditFailedError tells which step failed, why, and whether the old state is back everywhere."""
        try:
            with sigint_raises():
                self._carry_out()
        except BaseException as error:
            lines = [*self._put_back(), *self._restarted_servers()]
            if not isinstance(error, Exception):
                self._warn(f"interrupted at the step '{self._step}': {'; '.join(lines) or 'nothing had been changed'}")
                raise
            raise EditFailedError(self._step, "".join([str(error), *self._ignored]), lines) from error
        # From here on the edit is in place. What was written down of it stays until all is done, so that the next command goes on with it.
        try:
            self._release()
            for target_edit in self._target_edits:
                if target_edit.journal is not None:
                    self._at(f"note that the edit of {target_edit.repository} is over")
                    self._clear(target_edit.journal)
        except BaseException:
            self._warn(f"interrupted at the step '{self._step}': the edit is in place, and the next command does what is left to do")
            raise

    def _clear(self, journal: EditJournal) -> None:
        try:
            journal.clear()
        except OSError as error:
            self.cleanup_warnings.append(f"the edit is in place, but the note of it could not be removed ({error}): the next command does")

    def _carry_out(self) -> None:
        """The steps, in an order whose every state can be served: the ensembles' own configurations change last."""
        with self._timings.of("writes"):
            self._write_journals()
            self._write_averaging_models()
        checks = self._load_members()
        with self._timings.of("writes"):
            self._write_ensembles()
        self._load_ensembles()
        for served, check in checks:
            with self._timings.of("inferences"):
                self._on(served, check)
        with self._timings.of("writes"):
            self._write_history()

    def _write_journals(self) -> None:
        for target_edit in self._target_edits:
            if target_edit.journal is not None:
                self._at(f"note the edit in {target_edit.repository}")
                target_edit.journal.write()

    def _write_averaging_models(self) -> None:
        for target_edit in self._target_edits:
            if target_edit.plan.averaging:
                self._at(f"write {', '.join(target_edit.plan.new_models)} into {target_edit.repository}")
                write_files(target_edit.repository, target_edit.plan.averaging)

    def _load_members(self) -> list[tuple[Served, Callable[[], None]]]:
        """Load what the servers lack for the new ensemble. Returns what checks the ensemble on each, once it is loaded."""
        checks = []
        for target_edit, served in self._servers():
            self._touched[served.url] = False
            # A server that restarts has not loaded the new averaging models, which no configuration on disk names yet.
            if (check := self._on(served, partial(self._load_and_check, target_edit, served))) is not None:
                checks.append((served, check))
        return checks

    def _write_ensembles(self) -> None:
        for target_edit in self._target_edits:
            if target_edit.journal is not None and (changed := target_edit.journal.changed_meanwhile()):
                raise EditOvertakenError(f"{changed} was changed by somebody else meanwhile: look at it, and make the edit again")
            if target_edit.plan.deletes:
                self._at(f"remove '{target_edit.name}' from {target_edit.repository}")
                remove_files(target_edit.repository, [target_edit.name])
            elif target_edit.plan.files:
                self._at(f"write '{target_edit.name}' into {target_edit.repository}")
                write_files(target_edit.repository, target_edit.plan.files)
            elif target_edit.journal is not None:  # the history is to record what an operator wrote, which may be in memory only
                target_edit.journal.sync_files()

    def _load_ensembles(self) -> None:
        for target_edit, served in self._servers():
            self._touched[served.url] = True
            with self._timings.of("loads"):
                if target_edit.plan.after is None:
                    self._at(f"unload '{target_edit.name}' from {served.url}")
                    self._on(served, partial(served.unload_deleted, target_edit.repository, target_edit.name))
                else:
                    # Again after a restart, too: that may have read the old configuration.
                    self._at(f"load '{target_edit.name}' on {served.url}")
                    self._on(served, partial(self._load_from, target_edit, served, target_edit.name))

    def _write_history(self) -> None:
        from defensemble_export.editing import append_edit

        for target_edit in self._target_edits:
            if self._edit is not None and target_edit.journal is not None:
                self._at(f"write the history of {target_edit.repository}")
                self._recorded.add(target_edit.repository)
                append_edit(target_edit.repository, target_edit.journal.edit)

    def _on(self, served: Served, act: Callable[[], _T]) -> _T:
        """Do a part of the edit on a server, and do it again where that was restarted meanwhile."""
        if served.url in self._away:
            return act()
        restarts = self._restarts.setdefault(served.url, [])
        known = len(restarts)
        try:
            return repeat_after_restart([served], act, lambda: restarts.append(self._step))
        except ConnectionFailedError:
            if len(restarts) == known:
                self._away.add(served.url)
            raise

    def _load_and_check(self, target_edit: TargetEdit, served: Served) -> Callable[[], None] | None:
        """Load what a server lacks for the new ensemble. Returns what compares the ensemble with numpy, once it is loaded."""
        for model in (*target_edit.loads[served.url], *target_edit.reload_candidates[served.url]):
            self._at(f"load {model} on {served.url}")
            with self._timings.of("loads"):
                self._load(target_edit, served, model)
        if target_edit.plan.after is None:
            return None
        with self._timings.of("inferences"):
            return self._check_averaging(target_edit, served)

    def _load_from(self, target_edit: TargetEdit, served: Served, model: str) -> None:
        ignored = (
            f" {served.url} still has '{model}' loaded as it was before, otherwise than it is in {target_edit.repository}. It may take "
            "these files for older than those that it had loaded: set the clocks right, or restart the server, which then reads the files."
        )
        try:
            if not served.load_from(target_edit.repository, model):
                self._ignored.append(ignored)
        except (RequestRefusedError, ServerFailedError):
            # Where all models that it runs as loaded are still on disk, it has looked at the new files, and refuses them.
            if not all(target_edit.plan.outcome().has(step) for step, _ in served.steps(model)):
                self._ignored.append(ignored)
            raise

    def _load(self, target_edit: TargetEdit, served: Served, model: str) -> None:
        try:
            self._load_from(target_edit, served, model)
        except ConnectionFailedError:
            raise
        except ServiceError as error:
            if model not in target_edit.ready[served.url] or is_averaging(model):
                raise
            path = target_edit.repository / model / "config.pbtxt"
            text = f"'{model}' was changed on disk since it was loaded ({path}, or a new version): mend that, or put back what it was"
            raise type(error)(f"{error} {text}; until then what was loaded serves on, but a server that starts anew refuses it") from error

    def _check_averaging(self, target_edit: TargetEdit, served: Served) -> Callable[[], None]:
        """Compare the averaging model with numpy. Returns what does so with the ensemble, once it is loaded."""
        ensemble = target_edit.plan.after
        assert ensemble is not None
        files = target_edit.plan.outcome()
        config = files.config(target_edit.name)
        votes = [(vote.model, vote.version) for vote in ensemble.members]
        averaging = AveragingSpec(ensemble.average, ensemble.weights)
        image = fixed_image(next(tuple(tensor.dims) for tensor in config.input))
        self._at(f"ask the members of '{target_edit.name}' on {served.url}")
        # Those that leave are asked too: when they have answered, so have all requests that had come before.
        restarts = len(self._restarts[served.url])
        leaving = [(model, version) for model, version in served.steps(target_edit.name) if not is_averaging(model)]
        answers = served.infer_all(votes, {"images": image}, "logits")
        logits = [answers[vote] for vote in votes]
        outputs = [tensor.name for tensor in config.output]
        average = config.ensemble_scheduling.step[-1].model_name
        self._at(f"compare {average} on {served.url} with numpy")
        check_averaging(served, average, outputs, logits, averaging)
        tolerance = tolerance_for([served.config(model) or {} for model, _ in votes], [version for _, version in votes])

        def check() -> None:
            self._at(f"compare '{target_edit.name}' on {served.url} with numpy")
            check_answer(served, target_edit.name, image, outputs, logits, averaging, tolerance)
            # No request survives a restart, and a member whose files are gone does not either.
            lives = len(self._restarts[served.url]) == restarts
            gone = [one for one in leaving if one not in votes and lives]
            served.infer_all(gone, {"images": image}, "logits")

        return check

    def _release(self) -> None:
        """Unload what no ensemble uses any more, once nobody asks it; what cannot be unloaded is told, and does no harm."""
        self._at("wait until nobody asks what is not needed any more")
        for target_edit, served in self._servers():
            url = served.url
            try:
                self._on(served, partial(self._release_on, target_edit, served))
            except ConnectionFailedError as error:
                self.unreachable_servers[url] = f"it serves the new state when it starts again ({error})"
            except (ServiceError, OSError) as error:
                self.still_loaded[f"what {url} does not need any more"] = str(error)

    def _release_on(self, target_edit: TargetEdit, served: Served) -> None:
        with self._timings.of("drain"):
            # Of networks only those that it released: others may be served for themselves.
            chosen = unused_models(target_edit.repository, served, target_edit.unload_candidates[served.url], all_averages=True)
            busy = served.wait_until_idle(chosen, self._drain_s) if chosen else []
        for model in chosen:
            if model not in busy:
                self._at(f"unload {model} from {served.url}")
                with self._timings.of("loads"):
                    served.unload(model)
                done = self.unloaded.setdefault(served.url, [])
                if model not in done:  # else a restart had loaded it again
                    done.append(model)
        for model in busy:
            self.still_loaded[f"{model} on {served.url}"] = (
                f"it was not idle within {self._drain_s:g} s: does somebody call it by its own name?"
            )

    def _put_back(self) -> list[str]:
        """Put the old state back, on disk first, since servers read from there; returns, in words, where that worked and where not."""
        report = self._report
        with defer_sigint():
            # First the history: as long as it holds the edit anywhere, the next command finishes it.
            if not all([self._on_disk(target_edit, self._withdraw) for target_edit in self._target_edits]):
                return [*report, "the edit is in place, and the next command goes on with it"]
            restored = [self._on_disk(target_edit, self._restore) for target_edit in self._target_edits]
            whole = all(restored)
            for target_edit, there in zip(self._target_edits, restored, strict=True):
                for served in target_edit.servers if there else ():
                    if served.url in self._touched:
                        whole = self._try_on(target_edit, served) and whole
            if whole:
                for target_edit in self._target_edits:
                    self._on_disk(target_edit, self._tidy)
            elif any(target_edit.journal is not None for target_edit in self._target_edits):
                report.append("what was not put back is noted: the next command tries again")
        return report

    def _on_disk(self, target_edit: TargetEdit, act: Callable[[TargetEdit, EditJournal], None]) -> bool:
        """Whether one part of putting a folder back worked."""
        if target_edit.journal is not None:
            try:
                act(target_edit, target_edit.journal)
            except (OSError, RepositoryError) as error:
                self._report.append(f"{target_edit.repository} could NOT be put back ({error})")
                return False
        return True

    def _withdraw(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        from defensemble_export.editing import withdraw_edit

        if target_edit.repository in self._recorded:
            withdraw_edit(target_edit.repository, journal.edit)

    def _restore(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        refused = any(self._touched.values())
        foreign = journal.conflicting_config() is not None
        if foreign:
            where = f"kept as {journal.rejected_file}" if refused else "left as it is"
            self._report.append(f"somebody else has changed '{target_edit.name}' meanwhile: that is {where}")
        journal.restore_ensemble(refused=refused, keep_conflicting=not refused)
        if journal.rejected is not None:
            self._report.append(f"the hand edit is kept {'as ' + str(journal.rejected_file) if refused else 'where it was'}")

    def _tidy(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        journal.remove_new_models()
        journal.clear()
        self._report.append(f"{target_edit.repository} holds the old state")

    def _try_on(self, target_edit: TargetEdit, served: Served) -> bool:
        """Whether a server could be put back."""
        try:
            self._on(served, partial(self._put_back_on, target_edit, served))
        except ConnectionFailedError as error:
            self._report.append(f"{served.url} could not be reached to be put back ({error}): when it starts again, it reads the old state")
        except (ServiceError, RepositoryError, OSError) as error:
            self._report.append(f"{served.url} could NOT be put back ({error})")
        else:
            self._report.append(f"{served.url} serves the old state")
            return True
        return False

    def _put_back_on(self, target_edit: TargetEdit, served: Served) -> None:
        before = target_edit.ready[served.url]
        changed = () if target_edit.journal is None else target_edit.journal.before
        rewritten = {path.partition("/")[0] for path in changed} - {target_edit.name}
        for model in target_edit.loads[served.url]:
            if model in before and model in rewritten:
                served.load_from(target_edit.repository, model)
        if self._touched[served.url]:
            if target_edit.name in before and target_edit.plan.disk().has(target_edit.name):
                served.load_and_verify(target_edit.repository, target_edit.name)
            elif target_edit.name in served.ready():
                served.unload(target_edit.name)
        now = served.ready()
        used = served.used(now)
        for model in target_edit.loads[served.url]:
            if model in now and model not in before and model not in used:
                served.unload(model)

    def _servers(self) -> Iterator[tuple[TargetEdit, Served]]:
        for target_edit in self._target_edits:
            for served in target_edit.servers:
                yield target_edit, served

    def _at(self, step: str) -> None:
        self._step = step
        self._on_progress(step)
