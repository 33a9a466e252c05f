"""Editing the ensembles of a repository while they serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._client.client import Client
from .._exceptions import ConnectionFailedError, DefensembleError, InputError
from .edit import Flow
from .execution import Place
from .prune import prune
from .results import Applied, EnsembleState, Replica
from .rollback import rolled_back
from .server_models import Served
from .status import check_there, differences_of, ensembles_in, existing, look_at, settled_or_told

if TYPE_CHECKING:
    from defensemble_export import Edit, Ensemble, Finding, Prunable
    from defensemble_export.editing.plan import EditPlan


class Ensembles:
    """The ensembles of a model repository, on disk and in the servers that read it.

    `client` is one client, or one for each of several servers that share the folder, made with the admin key
    (`Client(url, admin_key=...)`); None edits files alone. For servers that have a folder each: `Ensembles.over`.

    An edit is checked before anything changes, and then carried out step by step: the new averaging model is written under a name of
    its own, loaded, and compared with numpy; the ensemble's `config.pbtxt` is written last, loaded, and compared again; what no ensemble
    uses any more is unloaded once nobody asks it. Callers get answers of the old ensemble or of the new one, and no error. Where a step
    fails, the old state is put back. What serves is always what lies in the folder. A server that restarts meanwhile is waited for, for up
    to 5 s; what it has loaded is asked afresh, and the edit goes on, or the old state is put back.

    `wait_s` is how long to wait for somebody else's edit, `load_timeout_s` for a model to be loaded, `drain_s` for a model that is to be
    unloaded to be asked no more. `say` is told each step, `warn` what was found of edits that were cut short.

    Edits raise `EditRefusedError` where the checks find what stands against them, `EditFailedError` where a step fails, a subclass of
    `ServiceError` where a server does not answer or wants another admin key, and of `defensemble_export.RepositoryError`
    (`EnsembleError` and others) where what is asked for makes no sense: a name that is not there, a weight that is not above 0. Nothing is
    changed then.

    Raises:
        InputError: The repository is no folder, or a server is named twice.
    """

    def __init__(
        self,
        repository: str | Path,
        client: Client | Sequence[Client] | None = None,
        *,
        wait_s: float = 60.0,
        load_timeout_s: float = 300.0,
        drain_s: float = 10.0,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        clients = () if client is None else (client,) if isinstance(client, Client) else tuple(client)
        self._set_up([Replica(Path(repository), clients)], wait_s, load_timeout_s, drain_s, say, warn)

    @classmethod
    def over(
        cls,
        replicas: Sequence[Replica],
        *,
        wait_s: float = 60.0,
        load_timeout_s: float = 300.0,
        drain_s: float = 10.0,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Ensembles:
        """The ensembles of several servers that have a folder each: an edit is made at all of them, or at none.

        Raises:
            InputError: There is none, a folder is none, or a folder or a server is named twice.
        """
        new = cls.__new__(cls)
        new._set_up(replicas, wait_s, load_timeout_s, drain_s, say, warn)
        return new

    def _set_up(
        self,
        replicas: Sequence[Replica],
        wait_s: float,
        load_timeout_s: float,
        drain_s: float,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        if not replicas:
            raise InputError("no repository is given: name at least one")
        for replica in replicas:
            if not replica.repository.is_dir():
                what = "is a file" if replica.repository.exists() else "does not exist"
                raise InputError(f"model repository {replica.repository} {what}: name a folder that `defensemble export` has written")
        urls = [client.url for replica in replicas for client in replica.clients]
        folders = [str(replica.repository.resolve()) for replica in replicas]
        for what, values in (("server", urls), ("folder", folders)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise InputError(f"the {what} {', '.join(twice)} is named twice: name it once")
        places = [
            Place(replica.repository, tuple(Served(client, load_timeout_s=load_timeout_s, say=say) for client in replica.clients))
            for replica in replicas
        ]
        self._flow = Flow(places, wait_s=wait_s, drain_s=drain_s, say=say, warn=warn)
        self._warn = warn

    def __repr__(self) -> str:
        places = ", ".join(f"{place.repository}: {[served.url for served in place.served]}" for place in self._flow.places)
        return f"Ensembles({places})"

    @property
    def repository(self) -> Path:
        """The folder, the first where there are several."""
        return self._flow.places[0].repository

    def names(self) -> list[str]:
        """The names of all ensembles in the repository, sorted.

        Raises:
            defensemble_export.ConfigError, OSError: A configuration cannot be read, so that this is not known; `check` tells more.
        """
        from defensemble_repository.view import RepositoryView

        files = RepositoryView(self.repository)
        return [name for name in files.models() if files.config(name).platform == "ensemble"]

    def show(self, name: str | None = None) -> list[EnsembleState]:
        """An ensemble, or all of them: who votes, what is known of each network, and whether the servers serve what lies on disk.

        Raises:
            defensemble_export.RepositoryError, ServiceError, OSError: It cannot be read; a server does not answer.
        """
        settled_or_told(self._flow, self._warn)

        def look() -> list[EnsembleState]:
            return [look_at(self._flow.places, one) for one in ([name] if name is not None else self.names())]

        try:
            return look()
        except ConnectionFailedError:
            for served in self._flow.servers:
                served.wait_until_back()
            return look()  # also where one is not back: it may be known since when it restarts

    def check(self, name: str | None = None, *, runtime: str = "embedded") -> list[Finding]:
        """What keeps an ensemble, or each model of the folder, from being served as it lies on disk, and what else is wrong with ensembles.

        Args:
            name: The ensemble; None for all models.
            runtime: What is to serve it, "embedded" or "docker", as for `defensemble serve --runtime`.

        Raises:
            OSError: A file cannot be read.
        """
        from defensemble_export import Finding, check_repository
        from defensemble_repository.target import TARGETS
        from defensemble_repository.view import RepositoryView

        settled_or_told(self._flow, self._warn)
        found = [one for place in self._flow.places for one in check_repository(RepositoryView(place.repository), TARGETS[runtime], name)]
        for one in [name] if name is not None else ensembles_in(RepositoryView(self.repository)):
            found += [Finding(one, text) for text in differences_of(self._flow.places, one)]
        return found

    def declared(self, name: str) -> Ensemble:
        """An ensemble as it lies on disk: `defensemble_export.yaml_from_ensemble` makes a file of it.

        Raises:
            defensemble_export.RepositoryError, OSError: It cannot be read, or is not wired as ours are.
        """
        return existing(self.repository, name)

    def create(
        self,
        name: str,
        members: Sequence[str],
        *,
        weights: Mapping[str, float] | None = None,
        average: str = "probabilities",
        message: str | None = None,
        dry_run: bool = False,
    ) -> Applied:
        """A new ensemble of `members` (`MODEL` or `MODEL@VERSION`; without a version, the newest), each with weight 1 or that of `weights`.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export import Ensemble as Votes
        from defensemble_export import EnsembleError
        from defensemble_export.editing.plan import plan_creation
        from defensemble_export.editing.requests import new_vote

        members = _names(members)
        given = dict(weights or {})
        unknown = sorted(set(given) - set(members))
        if unknown:
            raise EnsembleError(f"a weight is given for {', '.join(unknown)}, which is not among the members: {', '.join(members)}")

        def change(repository: Path) -> EditPlan:
            votes = tuple(new_vote(repository, member, given.get(member, 1.0)) for member in members)
            return plan_creation(repository, Votes(name, votes, average))

        return self._flow.edit("create", name, change, message=message, dry_run=dry_run)

    def add(
        self,
        name: str,
        members: Sequence[str],
        *,
        weight: float | None = None,
        in_place_of: str | None = None,
        message: str | None = None,
        dry_run: bool = False,
    ) -> Applied:
        """Let `members` (`MODEL` or `MODEL@VERSION`; without a version, the newest) vote too, each with `weight`, 1 by default.

        `in_place_of` (`MODEL` or `MODEL@VERSION`) votes no more in the same edit: the only new one takes its row and, by default, its
        weight. So a vote is moved to another version of its model.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export import EnsembleError
        from defensemble_export.editing.requests import added, found_vote, named_vote, new_vote

        members = _names(members)

        def changed(now: Ensemble, repository: Path) -> Ensemble:
            usual = found_vote(now, in_place_of).weight if in_place_of is not None else 1.0
            votes = []
            for member in members:
                model, version = named_vote(member)
                there = [vote for vote in now.members if vote.model == model]
                if version is None and there and in_place_of is None:
                    raise EnsembleError(
                        f"'{model}' votes in '{name}' already, at version {there[0].version}: to move its vote to the newest, name that "
                        f"vote as the one to go (--in-place-of {model}@{there[0].version}); to let two versions vote, name the other one "
                        f"({model}@VERSION)"
                    )
                votes.append(new_vote(repository, member, usual if weight is None else weight))
            return added(now, votes, in_place_of=in_place_of)

        return self._change("add", name, changed, message, dry_run)

    def remove(self, name: str, members: Sequence[str], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Let `members` (`MODEL` or `MODEL@VERSION`) vote no more; their files stay.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export.editing.requests import removed

        members = _names(members)
        return self._change("remove", name, lambda now, repository: removed(now, members), message, dry_run)

    def delete(self, name: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Take an ensemble out of service and delete its folder; its members' files stay, and a rollback brings it back.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export.editing.plan import plan_deletion

        def change(repository: Path) -> EditPlan:
            check_there(repository, name)
            return plan_deletion(repository, name)

        return self._flow.edit("delete", name, change, message=message, dry_run=dry_run)

    def weight(self, name: str, weights: Mapping[str, float], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Give votes (`MODEL` or `MODEL@VERSION`) other weights: finite, above 0, and counted relative to each other.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export.editing.requests import reweighted

        return self._change("weight", name, lambda now, repository: reweighted(now, weights), message, dry_run)

    def average(self, name: str, average: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Average `"probabilities"` or `"logits"`.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        return self._change("average", name, lambda now, repository: dataclasses.replace(now, average=average), message, dry_run)

    def apply(self, wanted: Ensemble, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Make the repository and the servers equal to `wanted` (`defensemble_export.read_declaration` reads one from YAML).

        Nothing happens where nothing differs. Replicas that differ from each other are made equal.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export.editing.plan import plan_ensemble

        new = all(not (place.repository / wanted.name).exists() for place in self._flow.places)
        return self._flow.edit(
            "create" if new else "apply",
            wanted.name,
            lambda repository: plan_ensemble(repository, wanted),
            message=message,
            dry_run=dry_run,
            may_differ=True,
        )

    def reload(self, name: str | None = None, *, message: str | None = None, dry_run: bool = False) -> list[Applied]:
        """Take up hand edits of configurations, of one ensemble or of all.

        An averaging model whose parameters were edited is generated again under its new name, two averaging models of an earlier version
        become one, and the servers load what has changed, members too.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        from defensemble_export import EnsembleError, RepositoryError, read_ensemble
        from defensemble_export.editing.plan import plan_ensemble

        def taken_up(one: str) -> Applied:
            def change(repository: Path) -> EditPlan:
                return plan_ensemble(repository, existing(repository, one))

            return self._flow.edit("reload", one, change, message=message, dry_run=dry_run, reloads=True)

        if name is not None:
            return [taken_up(name)]
        done: list[Applied] = []
        failed: list[Exception] = []
        for one in self.names():
            try:
                read_ensemble(self.repository, one)
            except EnsembleError as error:
                self._warn(f"'{one}' is left alone: {error}")
                continue
            try:
                done.append(taken_up(one))
            except (DefensembleError, RepositoryError) as error:
                failed.append(error)
        if failed:
            for applied in done:
                self._warn(f"'{applied.ensemble}' was taken up: {'; '.join(applied.changes) or 'nothing differed'}")
            for other in failed[1:]:
                self._warn(str(other))
            raise failed[0]
        return done

    def history(self, name: str | None = None) -> list[Edit]:
        """All edits that were applied, or those of one ensemble, oldest first.

        Raises:
            defensemble_export.HistoryError, OSError: It cannot be read.
        """
        from defensemble_export import read_history

        return [edit for edit in read_history(self.repository) if name in (None, edit.ensemble)]

    def rollback(
        self, count: int = 1, *, name: str | None = None, to: str | None = None, message: str | None = None, dry_run: bool = False
    ) -> Applied:
        """Undo the last `count` edits of an ensemble, by default of the one that was edited last; two in a row go back two edits.

        `to`, the id of an edit, goes to what that left in the place of that: back, or forward again to one that was undone.

        Raises:
            EditRefusedError, EditFailedError, ServiceError, defensemble_export.RepositoryError, OSError: As all edits.
        """
        return rolled_back(self._flow, count, name=name, to=to, message=message, dry_run=dry_run)

    def prune(self, *, keep: int = 10, dry_run: bool = False) -> list[Prunable]:
        """Delete members and averaging models that no ensemble, and no rollback point within the last `keep` edits, uses.

        Returns what was deleted, or would be (`dry_run`).

        Raises:
            ServiceError, defensemble_export.RepositoryError, OSError: Nothing was deleted.
        """
        return prune(self._flow, keep=keep, dry_run=dry_run)

    def _change(self, action: str, name: str, changed: Callable[[Ensemble, Path], Ensemble], message: str | None, dry_run: bool) -> Applied:
        from defensemble_export.editing.plan import plan_ensemble

        def change(repository: Path) -> EditPlan:
            return plan_ensemble(repository, changed(existing(repository, name), repository))

        return self._flow.edit(action, name, change, message=message, dry_run=dry_run)


def _names(members: Sequence[str]) -> list[str]:
    """A list of names, which a text alone is not: its letters would be taken for names."""
    if isinstance(members, str) or not all(isinstance(member, str) for member in members):
        raise InputError(f"members must be a list of names, such as ['keep0.1', 'keep0.3@2'], got {members!r:.80}")
    return list(members)
