"""How an edit is carried out: step by step, each undone where a later one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .._exceptions import ConnectionFailedError, RequestRefusedError, ServerFailedError, ServiceError
from .errors import EditFailedError, EditOvertakenError
from .server_models import Served, is_averaging, repeat_after_restart
from .verification import Weighed, check_answer, check_averaging, fixed_image, tolerance_for

if TYPE_CHECKING:
    from defensemble_export import Edit
    from defensemble_export.editing.journal import Pending
    from defensemble_export.editing.plan import EditPlan

_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """One folder, and the servers that read it."""

    repository: Path
    served: tuple[Served, ...]


@dataclass
class Share:
    """What an edit does at one place; `seen` is the digest of the ensemble's configuration when it was planned.

    By server: `ready` are the versions that answered before, `loads` the models that it lacks, or whose files say something new, `offers`
    those whose files may have changed in a way that it does not tell, which it then loads, and `released` those that it may not need.
    """

    place: Place
    plan: EditPlan
    seen: str | None = None
    ready: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    loads: dict[str, list[str]] = field(default_factory=dict)
    offers: dict[str, list[str]] = field(default_factory=dict)
    released: dict[str, list[str]] = field(default_factory=dict)
    pending: Pending | None = None

    @property
    def name(self) -> str:
        """The ensemble's name."""
        return self.plan.name


class Timings:
    """Seconds by kind of work: checks, writes, loads (load and unload calls), inferences, drain."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began


class Carrying:
    """One edit on its way: `apply` carries it out, at all places or at none."""

    def __init__(
        self,
        shares: Sequence[Share],
        edit: Edit | None,
        timings: Timings,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        drain_s: float,
    ) -> None:
        self._shares = list(shares)
        self._edit = edit
        self._timings = timings
        self._say = say
        self._warn = warn
        self._drain_s = drain_s
        self._step = ""
        self._ignored: list[str] = []  # what servers loaded without taking the files on disk up
        self._recorded: set[Path] = set()  # where the history may hold the edit
        self._touched: dict[str, bool] = {}  # by server: whether the ensemble itself was to be loaded
        self._away: set[str] = set()  # servers that were waited for and did not answer again
        self._restarts: dict[str, list[str]] = {}  # by server: the steps at which it was lost, and answered again
        self.unloaded: dict[str, list[str]] = {}
        self.left_loaded: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self.untidy: list[str] = []

    @property
    def restarted(self) -> list[str]:
        """Which servers were restarted meanwhile, in words."""
        lost = [(url, step) for url, steps in self._restarts.items() for step in steps]
        return [f"{url} was restarted during the edit, or the connection to it was lost, at the step '{step}'" for url, step in lost]

    def apply(self) -> None:
        """Carries the edit out.

        Raises:
            EditFailedError: A step failed; says which, why, and whether the old state is back everywhere.
        """
        from defensemble_repository.filesystem.signals import sigint_raises

        try:
            with sigint_raises():
                self._carry_out()
        except BaseException as error:
            lines = [*self._put_back(), *self.restarted]
            if not isinstance(error, Exception):
                self._warn(f"interrupted at the step '{self._step}': {'; '.join(lines) or 'nothing had been changed'}")
                raise
            raise EditFailedError(self._step, "".join([str(error), *self._ignored]), lines) from error
        # From here on the edit is in place. What was written down of it stays until all is done, so that the next command goes on with it.
        try:
            self._release()
            for share in self._shares:
                if share.pending is not None:
                    self._at(f"note that the edit of {share.place.repository} is over")
                    self._clear(share.pending)
        except BaseException:
            self._warn(f"interrupted at the step '{self._step}': the edit is in place, and the next command does what is left to do")
            raise

    def _clear(self, pending: Pending) -> None:
        try:
            pending.clear()
        except OSError as error:
            self.untidy.append(f"the edit is in place, but the note of it could not be removed ({error}): the next command does")

    def _carry_out(self) -> None:
        from defensemble_export import write_plan
        from defensemble_export.editing.history import append_edit
        from defensemble_repository.transaction import remove_files

        with self._timings.of("writes"):
            for share in self._shares:
                if share.pending is not None:
                    self._at(f"note the edit in {share.place.repository}")
                    share.pending.write()
            for share in self._shares:
                if share.plan.averaging:
                    self._at(f"write {', '.join(share.plan.new_models)} into {share.place.repository}")
                    write_plan(share.place.repository, share.plan.averaging)
        proofs: dict[str, Callable[[], None]] = {}
        for share, served in self._servers():
            self._touched[served.url] = False
            # A server that restarts has not loaded the new averaging models, which no configuration on disk names yet.
            if (proof := self._on(served, partial(self._load_and_prove, share, served))) is not None:
                proofs[served.url] = proof
        with self._timings.of("writes"):
            for share in self._shares:
                if share.pending is not None and (changed := share.pending.changed_meanwhile()):
                    raise EditOvertakenError(f"{changed} was changed by somebody else meanwhile: look at it, and make the edit again")
                if share.plan.deletes:
                    self._at(f"remove '{share.name}' from {share.place.repository}")
                    remove_files(share.place.repository, [share.name])
                elif share.plan.files:
                    self._at(f"write '{share.name}' into {share.place.repository}")
                    write_plan(share.place.repository, share.plan.files)
                elif share.pending is not None:  # the history is to record what an operator wrote, which may be in memory only
                    share.pending.sync_files()
        for share, served in self._servers():
            self._touched[served.url] = True
            with self._timings.of("loads"):
                if share.plan.after is None:
                    self._at(f"unload '{share.name}' from {served.url}")
                    self._on(served, partial(served.unload_gone, share.place.repository, share.name))
                else:
                    # Again after a restart, too: that may have read the old configuration.
                    self._at(f"load '{share.name}' on {served.url}")
                    self._on(served, partial(self._load_from, share, served, share.name))
        for _, served in self._servers():
            if served.url in proofs:
                with self._timings.of("inferences"):
                    self._on(served, proofs[served.url])
        with self._timings.of("writes"):
            for share in self._shares:
                if self._edit is not None and share.pending is not None:
                    self._at(f"write the history of {share.place.repository}")
                    self._recorded.add(share.place.repository)
                    append_edit(share.place.repository, share.pending.edit)

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

    def _load_and_prove(self, share: Share, served: Served) -> Callable[[], None] | None:
        """Load what a server lacks for the new ensemble. Returns what compares the ensemble with numpy, once it is loaded."""
        for model in (*share.loads[served.url], *share.offers.get(served.url, ())):
            self._at(f"load {model} on {served.url}")
            with self._timings.of("loads"):
                self._load(share, served, model)
        if share.plan.after is None:
            return None
        with self._timings.of("inferences"):
            return self._prove_averaging(share, served)

    def _load_from(self, share: Share, served: Served, model: str) -> None:
        ignored = (
            f" {served.url} still has '{model}' loaded as it was before, otherwise than it is in {share.place.repository}. It may take "
            "these files for older than those that it had loaded: set the clocks right, or restart the server, which then reads the files."
        )
        try:
            if not served.load_from(share.place.repository, model):
                self._ignored.append(ignored)
        except (RequestRefusedError, ServerFailedError):
            # Where all models that it runs as loaded are still on disk, it has looked at the new files, and refuses them.
            if not all(share.plan.outcome().has(step) for step, _ in served.steps(model)):
                self._ignored.append(ignored)
            raise

    def _load(self, share: Share, served: Served, model: str) -> None:
        try:
            self._load_from(share, served, model)
        except ConnectionFailedError:
            raise
        except ServiceError as error:
            if model not in share.ready[served.url] or is_averaging(model):
                raise
            path = share.place.repository / model / "config.pbtxt"
            told = f"'{model}' was changed on disk since it was loaded ({path}, or a new version): mend that, or put back what it was"
            raise type(error)(f"{error} {told}; until then what was loaded serves on, but a server that starts anew refuses it") from error

    def _prove_averaging(self, share: Share, served: Served) -> Callable[[], None]:
        """Compares the averaging model with numpy, and returns what does so with the ensemble, once it is loaded."""
        ensemble = share.plan.after
        assert ensemble is not None
        files = share.plan.outcome()
        config = files.config(share.name)
        votes = [(vote.model, vote.version) for vote in ensemble.members]
        weighed = Weighed(ensemble.average, ensemble.weights)
        image = fixed_image(next(tuple(tensor.dims) for tensor in config.input))
        self._at(f"ask the members of '{share.name}' on {served.url}")
        # Those that leave are asked too: when they have answered, so have all requests that had come before.
        restarts = len(self._restarts[served.url])
        leaving = [(model, version) for model, version in served.steps(share.name) if not is_averaging(model)]
        answers = served.infer_all(votes, {"images": image}, "logits")
        logits = [answers[vote] for vote in votes]
        outputs = [tensor.name for tensor in config.output]
        average = config.ensemble_scheduling.step[-1].model_name
        self._at(f"compare {average} on {served.url} with numpy")
        check_averaging(served, average, outputs, logits, weighed)
        tolerance = tolerance_for([served.config(model) or {} for model, _ in votes], [version for _, version in votes])

        def prove() -> None:
            self._at(f"compare '{share.name}' on {served.url} with numpy")
            check_answer(served, share.name, image, outputs, logits, weighed, tolerance)
            # No request survives a restart, and a member whose files are gone does not either.
            lives = len(self._restarts[served.url]) == restarts
            gone = [one for one in leaving if one not in votes and lives]
            served.infer_all(gone, {"images": image}, "logits")

        return prove

    def _release(self) -> None:
        """Unloads what no ensemble uses any more, once nobody asks it; what cannot be unloaded is told, and does no harm."""
        self._at("wait until nobody asks what is not needed any more")
        for share, served in self._servers():
            url = served.url
            try:
                self._on(served, partial(self._release_on, share, served))
            except ConnectionFailedError as error:
                self.lost[url] = f"it serves the new state when it starts again ({error})"
            except (ServiceError, OSError) as error:
                self.left_loaded[f"what {url} does not need any more"] = str(error)

    def _release_on(self, share: Share, served: Served) -> None:
        with self._timings.of("drain"):
            # Of networks only those that it released: others may be served for themselves.
            chosen = unused_models(share.place.repository, served, share.released[served.url], all_averages=True)
            busy = served.wait_drained(chosen, self._drain_s) if chosen else []
        for model in chosen:
            if model not in busy:
                self._at(f"unload {model} from {served.url}")
                with self._timings.of("loads"):
                    served.unload(model)
                done = self.unloaded.setdefault(served.url, [])
                if model not in done:  # else a restart had loaded it again
                    done.append(model)
        for model in busy:
            self.left_loaded[f"{model} on {served.url}"] = (
                f"it was not idle within {self._drain_s:g} s: does somebody call it by its own name?"
            )

    def _put_back(self) -> list[str]:
        """Puts the old state back, on disk first, since servers read from there; returns, in words, where that worked and where not."""
        from defensemble_repository.filesystem.signals import defer_sigint

        told: list[str] = []
        with defer_sigint():
            # First the history: as long as it holds the edit anywhere, the next command finishes it.
            if not all([self._on_disk(share, self._withdraw, told) for share in self._shares]):
                return [*told, "the edit is in place, and the next command goes on with it"]
            restored = [self._on_disk(share, self._restore, told) for share in self._shares]
            whole = all(restored)
            for share, there in zip(self._shares, restored, strict=True):
                for served in share.place.served if there else ():
                    if served.url in self._touched:
                        whole = self._try_on(share, served, told) and whole
            if whole:
                for share in self._shares:
                    self._on_disk(share, self._tidy, told)
            elif any(share.pending is not None for share in self._shares):
                told.append("what was not put back is noted: the next command tries again")
        return told

    def _on_disk(self, share: Share, act: Callable[[Share, Pending, list[str]], None], told: list[str]) -> bool:
        """Whether one part of putting a folder back worked."""
        from defensemble_export import RepositoryError

        if share.pending is not None:
            try:
                act(share, share.pending, told)
            except (OSError, RepositoryError) as error:
                told.append(f"{share.place.repository} could NOT be put back ({error})")
                return False
        return True

    def _withdraw(self, share: Share, pending: Pending, told: list[str]) -> None:
        from defensemble_export.editing.history import withdraw_edit

        if share.place.repository in self._recorded:
            withdraw_edit(share.place.repository, pending.edit)

    def _restore(self, share: Share, pending: Pending, told: list[str]) -> None:
        refused = any(self._touched.values())
        foreign = pending.foreign() is not None
        if foreign:
            where = f"kept as {pending.rejected_file}" if refused else "left as it is"
            told.append(f"somebody else has changed '{share.name}' meanwhile: that is {where}")
        pending.restore_ensemble(refused=refused, leave_foreign=not refused)
        if pending.rejected is not None:
            told.append(f"the hand edit is kept {'as ' + str(pending.rejected_file) if refused else 'where it was'}")

    def _tidy(self, share: Share, pending: Pending, told: list[str]) -> None:
        pending.remove_new_models()
        pending.clear()
        told.append(f"{share.place.repository} holds the old state")

    def _try_on(self, share: Share, served: Served, told: list[str]) -> bool:
        """Whether a server could be put back."""
        from defensemble_export import RepositoryError

        try:
            self._on(served, partial(self._put_back_on, share, served))
        except ConnectionFailedError as error:
            told.append(f"{served.url} could not be reached to be put back ({error}): when it starts again, it reads the old state")
        except (ServiceError, RepositoryError, OSError) as error:
            told.append(f"{served.url} could NOT be put back ({error})")
        else:
            told.append(f"{served.url} serves the old state")
            return True
        return False

    def _put_back_on(self, share: Share, served: Served) -> None:
        before = share.ready[served.url]
        rewritten = {path.partition("/")[0] for path in (share.pending.before if share.pending is not None else ())} - {share.name}
        for model in share.loads[served.url]:
            if model in before and model in rewritten:
                served.load_from(share.place.repository, model)
        if self._touched[served.url]:
            if share.name in before and share.plan.disk().has(share.name):
                served.load_surely(share.place.repository, share.name)
            elif share.name in served.ready():
                served.unload(share.name)
        now = served.ready()
        used = served.used(now)
        for model in share.loads[served.url]:
            if model in now and model not in before and model not in used:
                served.unload(model)

    def _servers(self) -> Iterator[tuple[Share, Served]]:
        for share in self._shares:
            for served in share.place.served:
                yield share, served

    def _at(self, step: str) -> None:
        self._step = step
        self._say(step)


def unused_models(repository: Path, served: Served, candidates: Collection[str], *, all_averages: bool = False) -> list[str]:
    """The loaded ones of the `candidates`, or of `all_averages` too, that neither an ensemble that is served nor one on disk runs.

    Empty where that is not known, since a configuration on disk cannot be read: `check` tells of it.

    Raises:
        ServiceError: The server does not answer.
    """
    from defensemble_export import ConfigError
    from defensemble_export.editing.plan import used_models
    from defensemble_repository.view import RepositoryView

    ready = served.ready()
    chosen = [model for model in ready if model in candidates or (all_averages and is_averaging(model))]
    if not chosen:
        return []
    try:
        used = used_models(RepositoryView(repository)) | served.used(ready)
    except ConfigError:
        return []
    return [model for model in chosen if model not in used]


def loads_for(share: Share, served: Served) -> list[str]:
    """The models that a server has to load before the new ensemble: those that it lacks, and those whose files say something new.

    Raises:
        ServiceError, defensemble_export.ConfigError: A configuration cannot be read.
    """
    from defensemble_export.editing.served_config import is_served_as_on_disk

    ready = share.ready[served.url]
    files = share.plan.outcome()
    wanted: dict[str, bool] = {}
    for model, version in share.plan.steps():
        lacks = version not in ready.get(model, set())
        if not lacks and model not in wanted:
            told = served.config(model)
            lacks = told is None or not is_served_as_on_disk(files, model, told)
        wanted[model] = wanted.get(model, False) or lacks
    return [model for model, needed in wanted.items() if needed]
