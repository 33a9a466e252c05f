"""Editing the ensembles of a repository while they serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.checks.finding import Finding
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import EnsembleError, RepositoryError
from defensemble_repository.reader import read_ensemble
from defensemble_repository.target import TARGETS
from defensemble_repository.view import RepositoryView

from .._client.client import Client
from .._exceptions import ConnectionFailedError, DefensembleError, InputError
from .edit import EditRunner
from .prune import prune
from .results import Applied, EnsembleState, Replica
from .rollback import roll_back
from .server_models import Served
from .status import replica_differences, read_ensemble_state, recover_or_warn
from .targets import EditTarget

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Prunable


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
    unloaded to be asked no more. `on_progress` is told each step, `on_warning` what was found of edits that were cut short.

    All edits (`create` to `rollback`) raise `EditRefusedError` where the checks find what stands against them, `EditFailedError` where a
    step fails, a subclass of `ServiceError` where a server does not answer or wants another admin key, a subclass of
    `defensemble_repository.errors.RepositoryError` (`EnsembleError` and others) where what is asked for makes no sense (a name that is not
    there, a weight that is not above 0), and `OSError` where a file cannot be read or written. Nothing is changed then.

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
        on_progress: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        clients = () if client is None else (client,) if isinstance(client, Client) else tuple(client)
        targets = _targets([Replica(Path(repository), clients)], load_timeout_s, on_progress)
        self._runner = EditRunner(targets, wait_s=wait_s, drain_s=drain_s, on_progress=on_progress, on_warning=on_warning)

    @classmethod
    def over(
        cls,
        replicas: Sequence[Replica],
        *,
        wait_s: float = 60.0,
        load_timeout_s: float = 300.0,
        drain_s: float = 10.0,
        on_progress: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> Ensembles:
        """The ensembles of several servers that have a folder each: an edit is made at all of them, or at none.

        Raises:
            InputError: There is none, a folder is none, or a folder or a server is named twice.
        """
        new = cls.__new__(cls)
        targets = _targets(replicas, load_timeout_s, on_progress)
        new._runner = EditRunner(targets, wait_s=wait_s, drain_s=drain_s, on_progress=on_progress, on_warning=on_warning)
        return new

    def __repr__(self) -> str:
        targets = ", ".join(f"{target.repository}: {[served.url for served in target.servers]}" for target in self._runner.targets)
        return f"Ensembles({targets})"

    @property
    def repository(self) -> Path:
        """The folder, the first where there are several."""
        return self._runner.targets[0].repository

    def names(self) -> list[str]:
        """The names of all ensembles in the repository, sorted.

        Raises:
            defensemble_repository.errors.ConfigError, OSError: A configuration cannot be read, so this is not known; `check` says more.
        """
        files = RepositoryView(self.repository)
        return [name for name in files.models() if files.config(name).platform == "ensemble"]

    def show(self, name: str | None = None) -> list[EnsembleState]:
        """An ensemble, or all of them: who votes, what is known of each network, and whether the servers serve what lies on disk.

        Raises:
            defensemble_repository.errors.RepositoryError, ServiceError, OSError: It cannot be read; a server does not answer.
        """
        recover_or_warn(self._runner)

        def look() -> list[EnsembleState]:
            return [read_ensemble_state(self._runner.targets, one) for one in ([name] if name is not None else self.names())]

        try:
            return look()
        except ConnectionFailedError:
            for served in self._runner.servers:
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
        from defensemble_export import check_repository
        from defensemble_export.editing import ensemble_names

        recover_or_warn(self._runner)
        folders = [target.repository for target in self._runner.targets]
        found = [one for folder in folders for one in check_repository(RepositoryView(folder), TARGETS[runtime], name)]
        for one in [name] if name is not None else ensemble_names(RepositoryView(self.repository)):
            found += [Finding(one, text) for text in replica_differences(self._runner.targets, one)]
        return found

    def declared(self, name: str) -> Ensemble:
        """An ensemble as it lies on disk: `defensemble_export.editing.yaml_from_ensemble` makes a file of it.

        Raises:
            defensemble_repository.errors.RepositoryError, OSError: It cannot be read, or is not wired as ours are.
        """
        from defensemble_export.editing import existing_ensemble

        return existing_ensemble(self.repository, name)

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
        """Create an ensemble of `members` (`MODEL` or `MODEL@VERSION`; else the newest version), with weight 1 or that of `weights`."""
        from defensemble_export.editing import CreateEnsemble

        request = CreateEnsemble(name, _names(members), dict(weights or {}), average)
        return self._runner.run(request, message=message, dry_run=dry_run)

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
        """
        from defensemble_export.editing import AddMembers

        request = AddMembers(name, _names(members), weight, in_place_of)
        return self._runner.run(request, message=message, dry_run=dry_run)

    def remove(self, name: str, members: Sequence[str], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Let `members` (`MODEL` or `MODEL@VERSION`) vote no more; their files stay."""
        from defensemble_export.editing import RemoveMembers

        return self._runner.run(RemoveMembers(name, _names(members)), message=message, dry_run=dry_run)

    def delete(self, name: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Take an ensemble out of service and delete its folder; its members' files stay, and a rollback brings it back."""
        from defensemble_export.editing import DeleteEnsemble

        return self._runner.run(DeleteEnsemble(name), message=message, dry_run=dry_run)

    def weight(self, name: str, weights: Mapping[str, float], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Give votes (`MODEL` or `MODEL@VERSION`) other weights: finite, above 0, and counted relative to each other."""
        from defensemble_export.editing import SetWeights

        return self._runner.run(SetWeights(name, dict(weights)), message=message, dry_run=dry_run)

    def average(self, name: str, average: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Average `"probabilities"` or `"logits"`."""
        from defensemble_export.editing import SetAverage

        return self._runner.run(SetAverage(name, average), message=message, dry_run=dry_run)

    def apply(self, wanted: Ensemble, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Make the repository and the servers equal to `wanted` (`defensemble_export.editing.read_declaration` reads one from YAML).

        Nothing happens where nothing differs. Replicas that differ from each other are made equal.
        """
        from defensemble_export.editing import ApplyDeclaration

        return self._runner.run(ApplyDeclaration(wanted), message=message, dry_run=dry_run)

    def reload(self, name: str | None = None, *, message: str | None = None, dry_run: bool = False) -> list[Applied]:
        """Take up hand edits of configurations, of one ensemble or of all.

        An averaging model whose parameters were edited is generated again under its new name, two averaging models of an earlier version
        become one, and the servers load what has changed, members too.
        """
        from defensemble_export.editing import Reload

        if name is not None:
            return [self._runner.run(Reload(name), message=message, dry_run=dry_run)]
        done: list[Applied] = []
        failed: list[Exception] = []
        for one in self.names():
            try:
                read_ensemble(self.repository, one)
            except EnsembleError as error:
                self._runner.on_warning(f"'{one}' is left alone: {error}")
                continue
            try:
                done.append(self._runner.run(Reload(one), message=message, dry_run=dry_run))
            except (DefensembleError, RepositoryError) as error:
                failed.append(error)
        if failed:
            for applied in done:
                self._runner.on_warning(f"'{applied.ensemble}' was taken up: {'; '.join(applied.changes) or 'nothing differed'}")
            for other in failed[1:]:
                self._runner.on_warning(str(other))
            raise failed[0]
        return done

    def history(self, name: str | None = None) -> list[Edit]:
        """All edits that were applied, or those of one ensemble, oldest first.

        Raises:
            defensemble_export.HistoryError, OSError: It cannot be read.
        """
        from defensemble_export.editing import read_history

        return [edit for edit in read_history(self.repository) if name in (None, edit.ensemble)]

    def rollback(
        self, count: int = 1, *, name: str | None = None, to: str | None = None, message: str | None = None, dry_run: bool = False
    ) -> Applied:
        """Undo the last `count` edits of an ensemble, by default of the one that was edited last; two in a row go back two edits.

        `to`, the id of an edit, goes to what that left in the place of that: back, or forward again to one that was undone.
        """
        return roll_back(self._runner, count, name=name, to=to, message=message, dry_run=dry_run)

    def prune(self, *, keep: int = 10, dry_run: bool = False) -> list[Prunable]:
        """Delete members and averaging models that no ensemble, and no rollback point within the last `keep` edits, uses.

        Returns what was deleted, or would be (`dry_run`).

        Raises:
            ServiceError, defensemble_repository.errors.RepositoryError, OSError: Nothing was deleted.
        """
        return prune(self._runner, keep=keep, dry_run=dry_run)


def _names(members: Sequence[str]) -> tuple[str, ...]:
    """Refuse a single text, whose letters would be taken for names."""
    if isinstance(members, str) or not all(isinstance(member, str) for member in members):
        raise InputError(f"members must be a list of names, such as ['keep0.1', 'keep0.3@2'], got {members!r:.80}")
    return tuple(members)


def _targets(replicas: Sequence[Replica], load_timeout_s: float, on_progress: Callable[[str], None]) -> list[EditTarget]:
    """The folders with their servers, once it is checked that they can be told apart."""
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
    return [
        EditTarget(
            replica.repository, tuple(Served(client, load_timeout_s=load_timeout_s, on_progress=on_progress) for client in replica.clients)
        )
        for replica in replicas
    ]
