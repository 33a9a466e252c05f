"""The way of every edit: lock, recover, plan, check, carry out; at all places or at none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble.ensembles._errors import EditRefusedError
from defensemble.ensembles._recovery import group_of, recover
from defensemble.ensembles._results import Applied
from defensemble.ensembles._steps import AVERAGING, Carrying, Place, Share, Timings, loads_for

if TYPE_CHECKING:
    from defensemble_export import Edit, Finding, Snapshot
    from defensemble_export.edit_plan import EditPlan
    from defensemble_export.files import Files


class Flow:
    """What all edits of some places share; `say` is told each step, `warn` what went wrong before or stands in the way."""

    def __init__(
        self, places: Sequence[Place], *, wait_s: float, drain_s: float, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        self.places = list(places)
        self._wait_s = wait_s
        self._drain_s = drain_s
        self._say = say
        self._warn = warn

    @contextmanager
    def settled(self, wait_s: float | None = None) -> Iterator[None]:
        """Holds the locks of all places; an edit that was cut short there is finished or undone first.

        Raises:
            defensemble_export.LockedError: Somebody else holds one.
        """
        from defensemble_export.locking import locked_within
        from defensemble_export.pending import read_pending
        from defensemble_export.writing import check_writable, remove_stale_staging

        folders = [place.repository for place in self.places]
        for folder in folders:
            check_writable(folder)
        with ExitStack() as stack:
            while True:
                group = group_of(folders)
                locks = stack.enter_context(ExitStack())
                locks.enter_context(locked_within(group, self._wait_s if wait_s is None else wait_s, self._warn))
                if {folder.resolve() for folder in group_of(folders)} <= {folder.resolve() for folder in group}:
                    break
                locks.close()  # an edit of more folders was cut short just now
            for folder in folders:
                for stale in remove_stale_staging(folder):
                    self._warn(f"removed {stale}, which a command that was killed had left")
            if any(read_pending(folder) is not None for folder in group):
                recover(self.places, group, self._warn)
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
            ServiceError, defensemble_export.ExportError, OSError: Before anything was written.
        """
        timings = Timings()
        began = time.perf_counter()
        with self.settled():
            with timings.of("checks"):
                shares = [Share(place, change(place.repository)) for place in self.places]
                self._look_at_servers(shares, reloads)
                remarks = self._check(action, shares, may_differ)
            changes = self._changes(shares)
            writes = any(share.plan.changes_files for share in shares)
            lags = reloads or any(self._lags(share) for share in shares)
            if dry_run or not (writes or lags):
                return Applied(name, None, changes, remarks, _urls(shares), _loaded(shares), seconds=timings.seconds, dry_run=dry_run)
            edit = self._note(action, name, shares, changes, message, undoes, reloads) if writes or reloads else None
            carrying = Carrying(shares, edit, timings, self._say, self._drain_s)
            carrying.apply()
        timings.seconds["total"] = time.perf_counter() - began
        return Applied(
            name,
            edit,
            changes,
            remarks,
            _urls(shares),
            _loaded(shares),
            {url: tuple(models) for url, models in carrying.unloaded.items()},
            carrying.left_loaded,
            timings.seconds,
        )

    def _look_at_servers(self, shares: Sequence[Share], reloads: bool) -> None:
        for share in shares:
            for served in share.place.served:
                share.ready[served.url] = served.ready()
                share.loads[served.url] = loads_for(share, served, all_members=reloads)
                now = [model for model, _ in served.steps(share.name)] if share.name in share.ready[served.url] else []
                share.released[served.url] = list(dict.fromkeys([*share.plan.released(), *now]))

    def _check(self, action: str, shares: Sequence[Share], may_differ: bool) -> tuple[str, ...]:
        """Refuses what must not be done; returns what is allowed, but worth knowing."""
        what = f"{action} '{shares[0].name}' is refused"
        refused: list[str] = []
        remarks: list[str] = []
        for share in shares:
            for finding in findings_of(share):
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

    def _changes(self, shares: Sequence[Share]) -> tuple[str, ...]:
        """What changes, in words; with several places, what changes at any of them."""
        from defensemble_export import changes_between

        found: dict[str, None] = {}
        for share in shares:
            told = changes_between(share.plan.before, share.plan.after)
            if not told and share.plan.changes_files:
                told = [f"writes {path} again, which had been changed by hand" for path in (*share.plan.averaging, *share.plan.files)]
            found |= dict.fromkeys(told)
        return tuple(found)

    def _lags(self, share: Share) -> bool:
        """Whether a server does not serve what will lie on disk."""
        from defensemble_export.served import is_served_as_on_disk

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
        changes: tuple[str, ...],
        message: str | None,
        undoes: Sequence[str],
        reloads: bool,
    ) -> Edit | None:
        """The edit for the history, and in each share what is written down while it is under way."""
        from defensemble_export import Edit
        from defensemble_export.history import new_id, now_text, this_user
        from defensemble_export.pending import Pending

        number, when, who = new_id(), now_text(), this_user()
        group = [str(share.place.repository.resolve()) for share in shares]
        for share in shares:
            before, served_before = before_reload(share) if reloads else (snapshot_or_none(share.plan.disk(), name), None)
            after = None if share.plan.after is None else snapshot_or_none(share.plan.outcome(), name)
            if reloads and not share.plan.changes_files and (before == after or before is None):
                continue  # no hand edit, or none that is known
            told = changes_between_snapshots(before, after) if reloads else changes
            edit = Edit(number, when, who, name, action, message, tuple(told), tuple(undoes), before, after)
            share.pending = Pending.of(
                share.plan,
                edit,
                group=group,
                urls=[served.url for served in share.place.served],
                loads=_lacking(share),
                released=list(dict.fromkeys(model for models in share.released.values() for model in models)),
                served_before=served_before,
            )
        return next((share.pending.edit for share in shares if share.pending is not None), None)


def findings_of(share: Share) -> list[Finding]:
    """What the checks say of the repository as it will be."""
    from defensemble_export import Finding, check_ensemble
    from defensemble_export.edit_plan import used_models

    if share.plan.after is not None:
        return check_ensemble(share.plan.outcome(), share.name)
    if share.name in used_models(share.plan.outcome()):
        return [Finding(share.name, f"'{share.name}' is a step of another ensemble: take it out of that one first")]
    return []


def snapshot_or_none(files: Files, name: str) -> Snapshot | None:
    """The ensemble as `files` hold it; None where there is none that can be read as ours."""
    from defensemble_export import EnsembleError
    from defensemble_export.history import snapshot_of

    try:
        return snapshot_of(files, name) if files.has(name) else None
    except EnsembleError:
        return None


def before_reload(share: Share) -> tuple[Snapshot | None, bytes | None]:
    """What a hand edit had changed: the last state that the history knows, else what a server still serves; and that configuration."""
    from defensemble_export import pbtxt_from_config, read_history
    from defensemble_export.files import Files
    from defensemble_export.served import served_config

    repository, name = share.place.repository, share.name
    overlay: dict[str, bytes | None] = {}
    for served in share.place.served:
        told = served.config(name) if name in share.ready[served.url] else None
        if told is not None:
            overlay[f"{name}/config.pbtxt"] = pbtxt_from_config(served_config(told))
            for model, _ in served.steps(name):
                config = served.config(model) if model.startswith(AVERAGING) else None
                if config is not None:
                    overlay[f"{model}/config.pbtxt"] = pbtxt_from_config(served_config(config))
            break
    served_before = overlay.get(f"{name}/config.pbtxt")
    known = [edit.after for edit in read_history(repository) if edit.ensemble == name and edit.after is not None]
    if known:
        return known[-1], served_before
    return (snapshot_or_none(Files(repository, overlay), name) if overlay else None), served_before


def changes_between_snapshots(before: Snapshot | None, after: Snapshot | None) -> list[str]:
    """What differs, in words, the wording of the configuration too."""
    from defensemble_export import changes_between

    told = changes_between(None if before is None else before.votes, None if after is None else after.votes)
    return told or ["takes up a hand edit of config.pbtxt, which leaves the votes as they are"]


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
