"""The execution of an edit, step by step; all steps are undone if one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from defensemble_repository.errors import RepositoryError
from defensemble_repository.filesystem.signals import defer_sigint, sigint_raises
from defensemble_repository.transaction import remove_files, write_journaled

from .._exceptions import ConnectionFailedError, RequestRefusedError, ServerFailedError, ServiceError
from .errors import EditFailedError, EditOvertakenError
from .server_models import InferCall, ModelServer, is_averaging, repeat_after_restart, unused_models
from .targets import TargetEdit
from .timings import Timings
from .verification import (
    AveragingSpec,
    check_averaging,
    check_ensemble_outputs,
    fixed_image,
    member_calls,
    member_logits,
    tolerance_for,
)

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, EditJournal

_T = TypeVar("_T")


class EditExecution:
    """The execution of one edit, at all targets or at none.

    Args:
        target_edits: The plans, by target.
        edit: The entry of the history; None if the history records no edit.
        timings: Receives the durations.
        on_progress: Receives each step.
        on_warning: Receives a message if the edit is interrupted.
        idle_timeout_s: How long to wait for a model to become idle before it is unloaded.
    """

    def __init__(
        self,
        target_edits: Sequence[TargetEdit],
        edit: Edit | None,
        timings: Timings,
        on_progress: Callable[[str], None],
        on_warning: Callable[[str], None],
        idle_timeout_s: float,
    ) -> None:
        self._target_edits = list(target_edits)
        self._edit = edit
        self._timings = timings
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._idle_timeout_s = idle_timeout_s
        self._step = ""
        self._ignored: list[str] = []  # models that servers loaded without reading the new files
        self._recorded: set[Path] = set()  # repositories whose history may contain the edit
        self._touched: dict[str, bool] = {}  # by server: whether the edit started to load the ensemble itself
        self._lost: set[str] = set()  # servers that did not answer again within the waiting time
        self._restore_report: list[str] = []
        self._restarts: dict[str, list[str]] = {}  # by server: the steps at which its connection was lost and came back
        self.unloaded: dict[str, list[str]] = {}
        self.still_loaded: dict[str, str] = {}
        self.unreachable_servers: dict[str, str] = {}
        self.cleanup_warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """Problems that did not stop the edit: restarted servers, files that are left over, and servers that no longer answer."""
        unreachable = [f"{url} no longer answers: {why}" for url, why in self.unreachable_servers.items()]
        return [*self._restarted_servers(), *self.cleanup_warnings, *unreachable]

    def _restarted_servers(self) -> list[str]:
        text = "{} restarted during the edit, or the connection to it was lost, at the step '{}'"
        return [text.format(url, step) for url, steps in self._restarts.items() for step in steps]

    def execute(self) -> None:
        """Execute the edit.

        Raises:
            EditFailedError: A step failed; the error has the step, the reason, and whether the old state is restored everywhere.
        """
        try:
            with sigint_raises():
                self._run_steps()
        except BaseException as error:
            lines = [*self._restore_old_state(), *self._restarted_servers()]
            if not isinstance(error, Exception):
                self._on_warning(f"interrupted at the step '{self._step}': {'; '.join(lines) or 'nothing was changed'}")
                raise
            raise EditFailedError(self._step, "".join([str(error), *self._ignored]), lines) from error
        # From here on, the edit is applied. The journals stay until everything is done, so that the next command can finish it.
        try:
            self._unload_unused()
            for target_edit in self._target_edits:
                if target_edit.journal is not None:
                    self._start_step(f"remove the journal of {target_edit.repository}")
                    with self._timings.of("writes"):
                        self._clear(target_edit.journal)
        except BaseException:
            self._on_warning(f"interrupted at the step '{self._step}': the edit is applied, and the next command finishes the cleanup")
            raise

    def _clear(self, journal: EditJournal) -> None:
        try:
            journal.clear(is_recorded=True)
        except OSError as error:
            self.cleanup_warnings.append(f"the edit is applied, but its journal could not be removed ({error}); the next command does so")

    def _run_steps(self) -> None:
        """Run the steps in an order in which every intermediate state can be served; the ensembles' own configurations change last."""
        with self._timings.of("writes"):
            self._write_journals()
        checks = self._load_members()
        with self._timings.of("writes"):
            self._write_ensembles()
        self._load_ensembles()
        for server, check in checks:
            with self._timings.of("inferences"):
                self._run_on(server, check)
        with self._timings.of("writes"):
            self._write_history()

    def _write_journals(self) -> None:
        """Write each journal, and behind it the new averaging model and the copy of a member, which nothing uses yet."""
        for target_edit in self._target_edits:
            if target_edit.journal is not None:
                self._start_step(f"write {', '.join(['the journal', *target_edit.plan.new_models])} into {target_edit.repository}")
                target_edit.journal.write(target_edit.plan.unused_files)

    def _load_members(self) -> list[tuple[ModelServer, Callable[[], None]]]:
        """Load the models that the servers need for the new ensemble; return checks to run once the ensemble is loaded."""
        checks = []
        for target_edit, server in self._servers():
            self._touched[server.url] = False
            # Repeated after a restart: no configuration on disk names the new averaging models yet, so a restart does not load them.
            if (check := self._run_on(server, partial(self._load_and_check, target_edit, server))) is not None:
                checks.append((server, check))
        return checks

    def _write_ensembles(self) -> None:
        for target_edit in self._target_edits:
            if target_edit.journal is not None and (changed := target_edit.journal.changed_meanwhile()):
                raise EditOvertakenError(f"another program changed {changed} during the edit; check that file and repeat the edit")
            if target_edit.plan.deletes:
                self._start_step(f"remove '{target_edit.name}' from {target_edit.repository}")
                remove_files(target_edit.repository, [target_edit.name])
            elif target_edit.plan.files:
                self._start_step(f"write '{target_edit.name}' into {target_edit.repository}")
                write_journaled(target_edit.repository, target_edit.plan.files)
            elif target_edit.journal is not None:  # the history records an operator's hand edit, which may be only in memory
                target_edit.journal.sync_files()

    def _load_ensembles(self) -> None:
        for target_edit, server in self._servers():
            self._touched[server.url] = True
            with self._timings.of("loads"):
                if target_edit.plan.after is None:
                    self._start_step(f"unload '{target_edit.name}' from {server.url}")
                    self._run_on(server, partial(server.unload_deleted, target_edit.repository, target_edit.name))
                else:
                    # Repeated after a restart, which may have read the old configuration.
                    self._start_step(f"load '{target_edit.name}' on {server.url}")
                    self._run_on(server, partial(self._load_from, target_edit, server, target_edit.name, verify=False))

    def _write_history(self) -> None:
        from defensemble_export.editing import append_edit

        for target_edit in self._target_edits:
            if self._edit is not None and target_edit.journal is not None:
                self._start_step(f"write the history of {target_edit.repository}")
                self._recorded.add(target_edit.repository)
                append_edit(target_edit.repository, target_edit.journal.edit)

    def _run_on(self, server: ModelServer, act: Callable[[], _T]) -> _T:
        """Run a part of the edit on a server; repeat it if the server restarts meanwhile."""
        if server.url in self._lost:
            return act()
        restarts = self._restarts.setdefault(server.url, [])
        count = len(restarts)
        try:
            return repeat_after_restart([server], act, lambda: restarts.append(self._step))
        except ConnectionFailedError:
            if len(restarts) == count:
                self._lost.add(server.url)
            raise

    def _load_and_check(self, target_edit: TargetEdit, server: ModelServer) -> Callable[[], None] | None:
        """Load the models that a server needs for the new ensemble; return the check to run once the ensemble is loaded."""
        for model in (*target_edit.loads[server.url], *target_edit.reload_candidates[server.url]):
            self._start_step(f"load {model} on {server.url}")
            with self._timings.of("loads"):
                self._load(target_edit, server, model)
        if target_edit.plan.after is None:
            return None
        with self._timings.of("inferences"):
            return self._check_new_models(target_edit, server)

    def _load_from(self, target_edit: TargetEdit, server: ModelServer, model: str, *, verify: bool = True) -> None:
        ignored = (
            f" {server.url} still serves the old '{model}', not the files in {target_edit.repository}. It may consider these files older "
            "than those that it has loaded: set the clocks right, or restart the server, which then reads the files."
        )
        try:
            if not server.load_from_folder(target_edit.repository, model, verify=verify):
                self._ignored.append(ignored)
        except (RequestRefusedError, ServerFailedError):
            # If all models that the loaded ensemble runs are still on disk, the server read the new files and refused them.
            if not all(target_edit.plan.outcome().has(step) for step, _ in server.steps(model)):
                self._ignored.append(ignored)
            raise

    def _load(self, target_edit: TargetEdit, server: ModelServer, model: str) -> None:
        try:
            # Triton reads the files of a model that is not loaded, and the comparison with numpy follows.
            is_new_average = is_averaging(model) and model not in target_edit.ready[server.url]
            self._load_from(target_edit, server, model, verify=not is_new_average)
        except ConnectionFailedError:
            raise
        except ServiceError as error:
            if model not in target_edit.ready[server.url] or is_averaging(model):
                raise
            path = target_edit.repository / model / "config.pbtxt"
            text = f"'{model}' was changed on disk since it was loaded ({path}, or a new version); correct that, or restore the old files"
            raise type(error)(f"{error} {text}. The loaded model keeps serving, but a server that restarts will refuse it") from error

    def _check_new_models(self, target_edit: TargetEdit, server: ModelServer) -> Callable[[], None]:
        """Run what callers do not use yet: new members, and the averaging model; return the check to run once the ensemble is loaded.

        Members that the old ensemble serves run together with the new ensemble: behind the callers' requests, each wait takes as long as a
        call. After a restart of the server, all members count as new.
        """
        ensemble = target_edit.plan.after
        assert ensemble is not None
        url, name = server.url, target_edit.name
        config = target_edit.plan.outcome().config(name)
        members = [(member.model, member.version) for member in ensemble.members]
        averaging = AveragingSpec(ensemble.average, ensemble.weights)
        image = fixed_image(next(tuple(tensor.dims) for tensor in config.input))
        outputs = [tensor.name for tensor in config.output]
        num_classes = next(tensor.dims[0] for tensor in config.output if tensor.name == "probabilities")
        served = target_edit.served_steps(server)
        loaded = {*target_edit.loads[url], *target_edit.reload_candidates[url]}
        new = [step for step in members if self._restarts[url] or step not in served or step[0] in loaded]
        if new:
            self._start_step(f"run {', '.join(f'{model}@{version}' for model, version in new)} on {url}")
        logits = member_logits(server, new, image)
        average = config.ensemble_scheduling.step[-1].model_name
        self._start_step(f"compare {average} on {url} with numpy")
        check_averaging(server, average, outputs, num_classes, averaging)
        configs = [server.config(step[0]) if step in new else target_edit.configs[url].get(step[0]) for step in members]
        tolerance = tolerance_for([config or {} for config in configs], [version for _, version in members])

        def check() -> None:
            self._start_step(f"compare '{name}' on {url} with numpy")
            others = [step for step in members if step not in logits]
            calls = [InferCall(name, {"images": image}, outputs), *member_calls(others, image)]
            with ThreadPoolExecutor(1, thread_name_prefix="defensemble-edit") as pool:
                waiting = pool.submit(server.infer_all, calls)
                if server.is_outdated(target_edit.repository, name):
                    self._load_from(target_edit, server, name)
                    waiting = pool.submit(server.infer_all, calls)
                actual, *answers = waiting.result()
            known = {**logits, **dict(zip(others, (answer["logits"] for answer in answers), strict=True))}
            check_ensemble_outputs(server, name, actual, [known[step] for step in members], averaging, tolerance)

        return check

    def _unload_unused(self) -> None:
        """Unload the models that no ensemble uses any more once they are idle; failures are harmless and only reported."""
        self._start_step("wait until the models that are no longer needed are idle")
        for target_edit, server in self._servers():
            url = server.url
            try:
                self._run_on(server, partial(self._unload_unused_on, target_edit, server))
            except ConnectionFailedError as error:
                self.unreachable_servers[url] = f"it serves the new state when it starts again ({error})"
            except (ServiceError, OSError) as error:
                self.still_loaded[f"models that {url} no longer needs"] = str(error)

    def _unload_unused_on(self, target_edit: TargetEdit, server: ModelServer) -> None:
        with self._timings.of("drain"):
            # Only networks of the old ensemble: others may be served on their own.
            unused = unused_models(target_edit.repository, server, target_edit.unload_candidates[server.url], include_averaging=True)
            busy = server.wait_until_idle(unused, self._idle_timeout_s) if unused else []
        for model in unused:
            if model not in busy:
                self._start_step(f"unload {model} from {server.url}")
                with self._timings.of("loads"):
                    server.unload(model)
                unloaded = self.unloaded.setdefault(server.url, [])
                if model not in unloaded:  # a restart may have loaded it again
                    unloaded.append(model)
        for model in busy:
            self.still_loaded[f"{model} on {server.url}"] = (
                f"it was not idle within {self._idle_timeout_s:g} s; check whether a client calls it by its own name"
            )

    def _restore_old_state(self) -> list[str]:
        """Restore the old state, first on disk, where servers read it; return a report for each folder and server."""
        report = self._restore_report
        with defer_sigint():
            # The history comes first: as long as any history contains the edit, the next command finishes it.
            if not all([self._try_on_disk(target_edit, self._withdraw) for target_edit in self._target_edits]):
                return [*report, "the edit is applied, and the next command finishes it"]
            restored = [self._try_on_disk(target_edit, self._restore_files) for target_edit in self._target_edits]
            is_complete = all(restored)
            for target_edit, is_restored in zip(self._target_edits, restored, strict=True):
                for server in target_edit.servers if is_restored else ():
                    if server.url in self._touched:
                        is_complete = self._try_restore_server(target_edit, server) and is_complete
            if is_complete:
                for target_edit in self._target_edits:
                    self._try_on_disk(target_edit, self._finish_restore)
            elif any(target_edit.journal is not None for target_edit in self._target_edits):
                report.append("the journal records what was not restored; the next command tries again")
        return report

    def _try_on_disk(self, target_edit: TargetEdit, act: Callable[[TargetEdit, EditJournal], None]) -> bool:
        """Run a part of the restoration of a folder; return whether it succeeded."""
        if target_edit.journal is not None:
            try:
                act(target_edit, target_edit.journal)
            except (OSError, RepositoryError) as error:
                self._restore_report.append(f"{target_edit.repository} could NOT be restored ({error})")
                return False
        return True

    def _withdraw(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        from defensemble_export.editing import withdraw_edit

        if target_edit.repository in self._recorded:
            withdraw_edit(target_edit.repository, journal.edit)

    def _restore_files(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        refused = any(self._touched.values())
        if journal.conflicting_config() is not None:
            where = f"kept as {journal.rejected_file}" if refused else "left in place"
            self._restore_report.append(f"another program changed '{target_edit.name}' during the edit; its configuration is {where}")
        journal.restore_ensemble(refused=refused, keep_conflicting=not refused)
        if journal.rejected is not None:
            self._restore_report.append(f"the hand edit is kept {'as ' + str(journal.rejected_file) if refused else 'in place'}")

    def _finish_restore(self, target_edit: TargetEdit, journal: EditJournal) -> None:
        journal.remove_new_models()
        journal.clear()
        self._restore_report.append(f"{target_edit.repository} has the old state")

    def _try_restore_server(self, target_edit: TargetEdit, server: ModelServer) -> bool:
        """Restore the old state of a server; return whether it succeeded."""
        try:
            self._run_on(server, partial(self._restore_server, target_edit, server))
        except ConnectionFailedError as error:
            text = f"{server.url} could not be reached to restore it ({error}); when it starts again, it reads the old state"
            self._restore_report.append(text)
        except (ServiceError, RepositoryError, OSError) as error:
            self._restore_report.append(f"{server.url} could NOT be restored ({error})")
        else:
            self._restore_report.append(f"{server.url} serves the old state")
            return True
        return False

    def _restore_server(self, target_edit: TargetEdit, server: ModelServer) -> None:
        before = target_edit.ready[server.url]
        changed = () if target_edit.journal is None else target_edit.journal.before
        rewritten = {path.partition("/")[0] for path in changed} - {target_edit.name}
        for model in target_edit.loads[server.url]:
            if model in before and model in rewritten:
                server.load_from_folder(target_edit.repository, model)
        if self._touched[server.url]:
            if target_edit.name in before and target_edit.plan.disk().has(target_edit.name):
                server.load_and_verify(target_edit.repository, target_edit.name)
            elif target_edit.name in server.ready():
                server.unload(target_edit.name)
        now = server.ready()
        used = server.models_used_by(now)
        for model in target_edit.loads[server.url]:
            if model in now and model not in before and model not in used:
                server.unload(model)

    def _servers(self) -> Iterator[tuple[TargetEdit, ModelServer]]:
        yield from ((target_edit, server) for target_edit in self._target_edits for server in target_edit.servers)

    def _start_step(self, step: str) -> None:
        self._step = step
        self._on_progress(step)
