"""The way of every edit: lock, recover, plan, check, carry out; at all places or at none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .._exceptions import ConnectionFailedError, DeadlineExceededError, InputError
from .baseline import Before, before_reload, snapshot_or_none
from .errors import EditRefusedError
from .execution import Carrying, Place, Share, Timings, loads_for
from .plan_compatibility import plan_findings
from .recovery import group_of, recover
from .results import Applied
from .server_models import Served, is_averaging, repeat_after_restart

if TYPE_CHECKING:
    from defensemble_export import Edit, Finding
    from defensemble_export.editing.plan import EditPlan
    from defensemble_repository.target import Target


class Flow:
    """What all edits of some places share; `say` is told each step, `warn` what went wrong before or stands in the way."""

    def __init__(
        self, places: Sequence[Place], *, wait_s: float, drain_s: float, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        self.places = list(places)
        self._wait_s = wait_s
        self._drain_s = drain_s
        self._say = say
        self.warn = warn

    @property
    def servers(self) -> list[Served]:
        """The servers of all places."""
        return [served for place in self.places for served in place.served]

    @contextmanager
    def settled(self, wait_s: float | None = None, *, writes: bool = True) -> Iterator[None]:
        """Holds the locks of all places; an edit that was cut short there is finished or undone first.

        Who only looks (`writes` is False) needs no leave to write, unless there is such an edit.

        Raises:
            defensemble_export.LockedError: Somebody else holds one.
            OSError: A folder cannot be written.
        """
        from defensemble_export.editing.history import check_history
        from defensemble_export.editing.journal import read_pending, remove_stale_temporaries
        from defensemble_repository.lock import locked_within
        from defensemble_repository.transaction import check_writable, remove_stale_staging

        folders = [place.repository for place in self.places]
        may_write = True
        for folder in folders:
            try:
                check_writable(folder)
            except OSError:
                if writes:
                    raise
                may_write = False
        with ExitStack() as stack:
            while True:
                group = group_of(folders)
                locks = stack.enter_context(ExitStack())
                locks.enter_context(locked_within(group, self._wait_s if wait_s is None else wait_s, self.warn))
                if {folder.resolve() for folder in group_of(folders)} <= {folder.resolve() for folder in group}:
                    break
                locks.close()  # an edit of more folders was cut short just now
            for folder in group if may_write else ():
                for stale in (*remove_stale_staging(folder), *remove_stale_temporaries(folder)):
                    self.warn(f"removed {stale}, which a command that was killed had left")
            for folder in folders if writes else ():
                check_history(folder)
            if any(read_pending(folder) is not None for folder in group):
                recover(self.places, group, self.warn)
            yield

    def edit(
        self,
        action: str,
        name: str,
        change: Callable[[Path], EditPlan],
        *,
        message: str | None,
        dry_run: bool,
        undoes: Sequence[str] = (),
        reloads: bool = False,
        may_differ: bool = False,
    ) -> Applied:
        """Carries out `change`, a plan for each repository, everywhere or nowhere.

        `reloads`: hand edits are taken up, so that all members are offered to the servers again; `may_differ`: the places may hold
        different states before.

        Raises:
            EditRefusedError: The checks found what stands against it; nothing was changed.
            EditFailedError: A step failed; the old state was put back.
            ServiceError, defensemble_export.RepositoryError, OSError: Before anything was written.
        """
        if message is not None and not isinstance(message, str):
            raise InputError(f"message must be a text or None, got {message!r:.80}")
        timings = Timings()
        began = time.perf_counter()
        with self.settled(writes=not dry_run):

            def looked() -> tuple[list[Share], tuple[str, ...], list[Before]]:
                shares = [self._share(action, name, place, change) for place in self.places]
                self._look_at_servers(shares, reloads)
                remarks = (*self._check(action, shares, may_differ), *_told_of_writing(shares))
                return shares, remarks, [before_reload(share) if reloads else Before.on_disk(share) for share in shares]

            with timings.of("checks"), _before_anything():
                shares, remarks, befores = repeat_after_restart(self.servers, looked)
            if any(before.takes_up for before in befores):
                remarks = (
                    *remarks,
                    f"what lies on disk of '{name}' was not taken up until now (an edit by hand, of the files alone, or an export): "
                    "it takes effect with this edit",
                )
            changes = self._changes(shares, befores)
            edits = any(share.plan.changes_files or before.was_edited_by_hand for share, before in zip(shares, befores, strict=True))
            if message is not None and not edits:
                remarks = (*remarks, "nothing of the ensemble changes, so nothing goes into the history, and the message is not kept")
            with _before_anything():
                acts = edits or reloads or repeat_after_restart(self.servers, lambda: any(map(self._lags, shares)))
            if dry_run or not acts:
                return Applied(name, None, changes, remarks, _urls(shares), _loaded(shares), seconds=timings.seconds, dry_run=dry_run)
            edit = self._note(action, name, shares, befores, changes, message, undoes) if edits else None
            carrying = Carrying(shares, edit, timings, self._say, self.warn, self._drain_s)
            carrying.apply()
        timings.seconds["total"] = time.perf_counter() - began
        return Applied(
            name,
            edit,
            changes,
            (*remarks, *carrying.restarted, *carrying.untidy, *(f"{url} no longer answers: {why}" for url, why in carrying.lost.items())),
            tuple(url for url in _urls(shares) if url not in carrying.lost),
            _loaded(shares),
            {url: tuple(models) for url, models in carrying.unloaded.items()},
            carrying.left_loaded,
            timings.seconds,
        )

    def _share(self, action: str, name: str, place: Place, change: Callable[[Path], EditPlan]) -> Share:
        from defensemble_repository.names import check_name
        from defensemble_repository.view import RepositoryView

        seen = RepositoryView(place.repository).digest(f"{check_name(name)}/config.pbtxt")
        return Share(place, self._planned(action, name, place.repository, change), seen)

    def _planned(self, action: str, name: str, repository: Path, change: Callable[[Path], EditPlan]) -> EditPlan:
        """A plan; where a hand edit cannot be read, all that the checks find in it."""
        from defensemble_export import RepositoryError, check_ensemble
        from defensemble_repository.view import RepositoryView

        try:
            return change(repository)
        except RepositoryError as error:
            found = check_ensemble(RepositoryView(repository), name) if action == "reload" and RepositoryView(repository).has(name) else []
            refused = [str(finding) for finding in found if finding.refuses]
            if refused:
                raise EditRefusedError(f"{action} '{name}' is refused", refused) from error
            raise

    def _look_at_servers(self, shares: Sequence[Share], reloads: bool) -> None:
        for share in shares:
            for served in share.place.served:
                share.ready[served.url] = served.ready()
                share.loads[served.url] = loads_for(share, served)
                if reloads:
                    voting = dict.fromkeys(model for model, _ in share.plan.steps() if not is_averaging(model))
                    share.offers[served.url] = [model for model in voting if model not in share.loads[served.url]]
                now = [model for model, _ in served.steps(share.name)] if share.name in share.ready[served.url] else []
                share.released[served.url] = list(dict.fromkeys([*share.plan.released(), *now]))

    def _check(self, action: str, shares: Sequence[Share], may_differ: bool) -> tuple[str, ...]:
        """Refuses what must not be done; returns what is allowed, but worth knowing."""
        what = f"{action} '{shares[0].name}' is refused"
        refused: list[str] = []
        remarks: list[str] = []
        for share in shares:
            found = findings_of(share)
            for served in share.place.served if share.plan.after is not None else ():
                found += plan_findings(share, served)
            for finding in found:
                (refused if finding.refuses else remarks).append(str(finding))
        first = shares[0].plan
        for share in shares[1:]:
            if not may_differ and share.plan.before != first.before:
                refused.append(
                    f"{share.place.repository} holds another '{share.name}' than {first.repository}: make them equal first, "
                    "`defensemble ensemble apply FILE` with the same --replica options"
                )
            refused += _other_members(first, share.plan)
        if refused:
            raise EditRefusedError(what, list(dict.fromkeys(refused)))
        return tuple(dict.fromkeys(remarks))

    def _changes(self, shares: Sequence[Share], befores: Sequence[Before]) -> tuple[str, ...]:
        """What changes, in words; with several places, what changes at any of them."""
        from defensemble_export import changes_between

        found: dict[str, None] = {}
        for share, before in zip(shares, befores, strict=True):
            if not (share.plan.changes_files or before.was_edited_by_hand):
                continue  # 2 and 2 are what 1 and 1 are
            told = changes_between(share.plan.before if before.votes is None else before.votes, share.plan.after)
            if not told and share.plan.converts:
                old, new = (
                    [model for model, _ in steps if is_averaging(model)] for steps in (share.plan.steps_before(), share.plan.steps())
                )
                told = [f"averages by one model, {', '.join(new)}, instead of {', '.join(old)}"]
            elif not told and share.plan.averaging:
                told = [f"generates {model} again, which had been changed by hand" for model in share.plan.new_models]
            if not told:
                told = ["takes up a hand edit of config.pbtxt, which leaves the votes as they are"]
            found |= dict.fromkeys(told)
        return tuple(found)

    def _lags(self, share: Share) -> bool:
        """Whether a server does not serve what will lie on disk."""
        from defensemble_export.editing.served_config import is_served_as_on_disk

        files = share.plan.outcome()
        for served in share.place.served:
            if share.plan.after is None:
                if share.name in share.ready[served.url]:
                    return True
                continue
            told = served.config(share.name) if share.name in share.ready[served.url] else None
            if share.loads[served.url] or told is None or not is_served_as_on_disk(files, share.name, told):
                return True
        return False

    def _note(
        self,
        action: str,
        name: str,
        shares: Sequence[Share],
        befores: Sequence[Before],
        changes: tuple[str, ...],
        message: str | None,
        undoes: Sequence[str],
    ) -> Edit | None:
        """The edit for the history, and in each share what is written down while it is under way."""
        from defensemble_export import Edit
        from defensemble_export.editing.history import new_id, now_text, this_user
        from defensemble_export.editing.journal import Pending

        number, when, who = new_id(), now_text(), this_user()
        group = [str(share.place.repository.resolve()) for share in shares]
        for share, before in zip(shares, befores, strict=True):
            path = share.place.repository / name / "config.pbtxt"
            if share.plan.disk().digest(f"{name}/config.pbtxt") != share.seen:
                raise EditRefusedError(f"{action} '{name}' is refused", [f"{path} was changed while this was checked: make the edit again"])
            after = None if share.plan.after is None else snapshot_or_none(share.plan.outcome(), name)
            # Where a declared one was not there before, a rollback has to know that it takes it away again.
            own = "create" if action == "apply" and not share.plan.disk().has(name) else action
            here = changes if len(shares) == 1 else self._changes([share], [before])
            edit = Edit(number, when, who, name, own, message, here, tuple(undoes), before.snapshot, after)
            share.pending = Pending.of(
                share.plan,
                edit,
                group=group,
                urls=[served.url for served in share.place.served],
                loads=_lacking(share),
                released=list(dict.fromkeys(model for models in share.released.values() for model in models)),
                served_before=before.served,
            )
        return next((share.pending.edit for share in shares if share.pending is not None), None)


@contextmanager
def _before_anything() -> Iterator[None]:
    """Lets a server that does not answer be told as one before whom nothing was changed."""
    try:
        yield
    except (ConnectionFailedError, DeadlineExceededError) as error:
        mend = "A server that is down reads the files when it starts: leave its --url out, or take --files-only."
        raise type(error)(f"{error} Nothing was changed. {mend}") from error


def _told_of_writing(shares: Sequence[Share]) -> list[str]:
    """What is lost or left when files are written: comments, and replicas that will differ."""
    found = []
    for share in shares:
        path = f"{share.name}/config.pbtxt"
        now = share.plan.disk().content(path) if path in share.plan.files else None
        comments = [line for line in (now or b"").splitlines() if line.lstrip().startswith(b"#")]
        if comments and not any(line in share.plan.files[path] for line in comments):
            back = "copy them first, a rollback does not bring them back" if share.plan.converts else "`rollback` brings them back"
            found.append(f"{share.place.repository / path} is written again, without its comments; {back}")
        if share.plan.after != shares[0].plan.after:
            found.append(f"{share.place.repository} will hold another '{share.name}' than {shares[0].place.repository}, as it did before")
    return found


def findings_of(share: Share) -> list[Finding]:
    """What the checks say of the repository as it will be."""
    from defensemble_export import ConfigError, Finding, check_ensemble
    from defensemble_export.editing.plan import steps_of

    files = share.plan.outcome()
    if share.plan.after is not None:
        return check_ensemble(files, share.name, target=_target_of(share.place))
    found = []
    for other in files.models():
        try:
            uses = share.name in {model for model, _ in steps_of(files.config(other))}
        except ConfigError:
            continue  # Triton could not load it either
        if uses:
            found.append(Finding(share.name, f"'{share.name}' is a step of '{other}': take it out of that one first"))
    return found


def _target_of(place: Place) -> Target:
    """The Triton whose rules hold for a place: of several servers, the one with the oldest core."""
    from defensemble_repository.target import ANY, Target

    targets = [Target.of_core(served.core()) for served in place.served]
    return min(targets, key=lambda target: target.core or (), default=ANY)


def _lacking(share: Share) -> list[str]:
    """The models that a server of this place had not loaded at all."""
    return sorted({model for url, models in share.loads.items() for model in models if model not in share.ready[url]})


def _other_members(first: EditPlan, other: EditPlan) -> list[str]:
    """Whether two repositories let different files vote under the same names."""
    if first.after is None or other.after is None:
        return []
    found = []
    for vote in other.after.members:
        digests = {}
        for plan in (first, other):
            config = plan.outcome().config(vote.model)
            digests[plan.repository] = config.parameters[f"sha256.{vote.version}"].string_value
        if len(set(digests.values())) > 1:
            told = ", ".join(f"{folder}: {digest[:16] or 'none'}" for folder, digest in digests.items())
            found.append(
                f"{vote.model}@{vote.version} is another file in each folder ({told}): copy the model's folder from one to the other"
            )
    return found


def _urls(shares: Sequence[Share]) -> tuple[str, ...]:
    return tuple(served.url for share in shares for served in share.place.served)


def _loaded(shares: Sequence[Share]) -> dict[str, tuple[str, ...]]:
    return {url: tuple(models) for share in shares for url, models in share.loads.items() if models}
