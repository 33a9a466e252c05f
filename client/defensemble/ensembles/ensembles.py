"""Live edits of the ensembles of a repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defensemble_repository.checks.finding import Finding
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.target import TARGETS
from defensemble_repository.view import RepositoryView, require_repository

from .._client.client import Client
from .._exceptions import ConnectionFailedError, InputError
from .edit import EditRunner
from .prune import prune
from .refresh import refresh
from .reload import reload_all
from .results import Applied, EnsembleState, Replica
from .rollback import roll_back
from .server_models import ModelServer
from .status import read_ensemble_state, recover_or_warn, replica_differences
from .targets import EditTarget

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, Prunable


class Ensembles:
    """The ensembles of a model repository, on disk and on the servers that read it.

    An edit is checked before anything changes. Then the new averaging model is written under its own name, loaded, and compared with numpy.
    The ensemble's `config.pbtxt` is written last, loaded, and compared again. Models that no ensemble uses any more are unloaded when they
    are idle. Clients get answers of the old or the new ensemble and no errors. If a step fails, the old state is restored. Servers always
    serve what is on disk. If a server restarts during an edit, the edit waits for it for up to 5 s, checks what it has loaded, and
    continues, or restores the old state.

    All edits (`create` to `rollback`) raise these errors, and then nothing is changed:

    - `EditRefusedError`: A check fails.
    - `EditFailedError`: A step fails.
    - `ServiceError`: A server does not answer, or rejects the admin key.
    - `defensemble_repository.errors.RepositoryError`, such as `EnsembleError`: A name does not exist, or a value is not valid.
    - `OSError`: A file cannot be read or written.

    Args:
        repository: The model repository.
        client: One client, or one per server that shares the folder, made with the admin key; None edits only files. For servers with a
            folder each, see `Ensembles.over`.
        wait_s: How long to wait for another edit to finish.
        load_timeout_s: How long a server may take to load a model.
        idle_timeout_s: How long to wait for a model to become idle before it is unloaded.
        on_progress: Receives each step.
        on_warning: Receives warnings, such as the recovery of an interrupted edit.

    Raises:
        InputError: The repository is not a folder, or a server is given twice.

    Example:
        >>> ensembles = Ensembles("model_repository", Client("grpc://127.0.0.1:8001", admin_key=key))
        >>> ensembles.weight("ensemble", {"keep0.3": 2.0}).changes
        ('weight of keep0.3@1: 1 -> 2 (50.0 % -> 66.7 %)',)
    """

    def __init__(
        self,
        repository: str | Path,
        client: Client | Sequence[Client] | None = None,
        *,
        wait_s: float = 60.0,
        load_timeout_s: float = 300.0,
        idle_timeout_s: float = 10.0,
        on_progress: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        clients = () if client is None else (client,) if isinstance(client, Client) else tuple(client)
        targets = _targets([Replica(Path(repository), clients)], load_timeout_s, on_progress)
        self._runner = EditRunner(targets, wait_s=wait_s, idle_timeout_s=idle_timeout_s, on_progress=on_progress, on_warning=on_warning)

    @classmethod
    def over(
        cls,
        replicas: Sequence[Replica],
        *,
        wait_s: float = 60.0,
        load_timeout_s: float = 300.0,
        idle_timeout_s: float = 10.0,
        on_progress: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> Ensembles:
        """Return the ensembles of several servers with a folder each; an edit is made at all of them or at none.

        Args:
            replicas: The folders and their servers.
            wait_s: How long to wait for another edit to finish.
            load_timeout_s: How long a server may take to load a model.
            idle_timeout_s: How long to wait for a model to become idle before it is unloaded.
            on_progress: Receives each step.
            on_warning: Receives warnings, such as the recovery of an interrupted edit.

        Raises:
            InputError: There are no replicas, a folder is missing, or a folder or a server is given twice.
        """
        new = cls.__new__(cls)
        targets = _targets(replicas, load_timeout_s, on_progress)
        new._runner = EditRunner(targets, wait_s=wait_s, idle_timeout_s=idle_timeout_s, on_progress=on_progress, on_warning=on_warning)
        return new

    def __repr__(self) -> str:
        targets = ", ".join(f"{target.repository}: {[server.url for server in target.servers]}" for target in self._runner.targets)
        return f"Ensembles({targets})"

    @property
    def repository(self) -> Path:
        """The model repository, or the first of several."""
        return self._runner.targets[0].repository

    def names(self) -> list[str]:
        """Return the names of all ensembles in the repository, sorted.

        Raises:
            defensemble_repository.errors.ConfigError, OSError: A configuration cannot be read; `check` reports the details.
        """
        files = RepositoryView(self.repository)
        return [name for name in files.models() if files.config(name).platform == "ensemble"]

    def show(self, name: str | None = None) -> list[EnsembleState]:
        """Return the state of an ensemble, or of all: its members, their facts, and whether the servers serve what is on disk.

        Raises:
            defensemble_repository.errors.RepositoryError, OSError: An ensemble cannot be read.
            ServiceError: A server does not answer.
        """
        recover_or_warn(self._runner)

        def read_states() -> list[EnsembleState]:
            names = [name] if name is not None else self.names()
            return [read_ensemble_state(self._runner.targets, ensemble) for ensemble in names]

        try:
            return read_states()
        except ConnectionFailedError:
            for server in self._runner.servers:
                server.wait_until_back()
            return read_states()  # even if a server is not back: the state then contains since when it has been restarting

    def check(self, name: str | None = None, *, runtime: str = "embedded") -> list[Finding]:
        """Check whether an ensemble, or all models of the repository, can be served and edited.

        Args:
            name: The ensemble; None for all models.
            runtime: The runtime that will serve it, `"embedded"` or `"docker"`, as for `defensemble serve --runtime`.

        Raises:
            OSError: A file cannot be read.
        """
        from defensemble_export import check_repository
        from defensemble_export.editing import ensemble_names

        recover_or_warn(self._runner)
        folders = [target.repository for target in self._runner.targets]
        findings = [finding for folder in folders for finding in check_repository(RepositoryView(folder), TARGETS[runtime], name)]
        for ensemble in [name] if name is not None else ensemble_names(RepositoryView(self.repository)):
            findings += [Finding(ensemble, text) for text in replica_differences(self._runner.targets, ensemble)]
        return findings

    def declared(self, name: str) -> Ensemble:
        """Return an ensemble as it is on disk; `defensemble_export.editing.yaml_from_ensemble` converts it to YAML.

        Raises:
            defensemble_repository.errors.RepositoryError, OSError: It cannot be read, or is not wired the way an export wires it.
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
        """Create an ensemble.

        Args:
            name: The ensemble's name.
            members: The members, as `MODEL` (its newest version) or `MODEL@VERSION`.
            weights: The weights by member; the default is 1.
            average: `"probabilities"` or `"logits"`.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
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
        """Add members to an ensemble, or replace one, for example by another version of its model.

        Args:
            name: The ensemble.
            members: The new members, as `MODEL` (its newest version) or `MODEL@VERSION`.
            weight: The weight of each; the default is 1, or the weight of the member that is replaced.
            in_place_of: The member that the only new member replaces, at the same position.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import AddMembers

        request = AddMembers(name, _names(members), weight, in_place_of)
        return self._runner.run(request, message=message, dry_run=dry_run)

    def remove(self, name: str, members: Sequence[str], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Remove members from an ensemble; their files stay.

        Args:
            name: The ensemble.
            members: The members, as `MODEL` or `MODEL@VERSION`.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import RemoveMembers

        return self._runner.run(RemoveMembers(name, _names(members)), message=message, dry_run=dry_run)

    def delete(self, name: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Take an ensemble out of service and delete its folder; its members stay, and a rollback restores it.

        Args:
            name: The ensemble.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import DeleteEnsemble

        return self._runner.run(DeleteEnsemble(name), message=message, dry_run=dry_run)

    def weight(self, name: str, weights: Mapping[str, float], *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Change the weights of members.

        Args:
            name: The ensemble.
            weights: The new weights by member (`MODEL` or `MODEL@VERSION`): finite, above 0, and relative to each other.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import SetWeights

        return self._runner.run(SetWeights(name, dict(weights)), message=message, dry_run=dry_run)

    def average(self, name: str, average: str, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Change what an ensemble averages.

        Args:
            name: The ensemble.
            average: `"probabilities"` or `"logits"`.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import SetAverage

        return self._runner.run(SetAverage(name, average), message=message, dry_run=dry_run)

    def apply(self, ensemble: Ensemble, *, message: str | None = None, dry_run: bool = False) -> Applied:
        """Create an ensemble, or change the existing one of that name into it; replicas that differ are made equal.

        `defensemble_export.editing.read_declaration` reads an ensemble from YAML. Nothing happens if nothing differs.

        Args:
            ensemble: The ensemble.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import ApplyDeclaration

        return self._runner.run(ApplyDeclaration(ensemble), message=message, dry_run=dry_run)

    def reload(self, name: str | None = None, *, message: str | None = None, dry_run: bool = False) -> list[Applied]:
        """Apply hand edits of the configurations of one ensemble, or of all.

        An averaging model whose parameters were edited is generated again under its new name, two averaging models of an earlier version
        are replaced by one, and the servers load everything that changed, including members.

        Args:
            name: The ensemble; None for all.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        from defensemble_export.editing import Reload

        if name is not None:
            return [self._runner.run(Reload(name), message=message, dry_run=dry_run)]
        return reload_all(self._runner, self.names(), message=message, dry_run=dry_run)

    def refresh(self, members: Sequence[str], *, message: str | None = None, dry_run: bool = False) -> list[Applied]:
        """Copy members' files to new versions, and switch all ensembles with them to these, one edit each: servers load the files again.

        A classifier or fused graph that no ensemble has gets a new version, too, but no edit.

        Args:
            members: The members, as `MODEL` or `MODEL@VERSION`, of different models.
            message: A message for the history.
            dry_run: Whether to only check and plan the edits.
        """
        return refresh(self._runner, _names(members), message=message, dry_run=dry_run)

    def history(self, name: str | None = None) -> list[Edit]:
        """Return the edits of all ensembles, or of one, oldest first.

        Raises:
            defensemble_export.HistoryError, OSError: The history cannot be read.
        """
        from defensemble_export.editing import read_history

        return [edit for edit in read_history(self.repository) if name in (None, edit.ensemble)]

    def rollback(
        self, count: int = 1, *, name: str | None = None, to: str | None = None, message: str | None = None, dry_run: bool = False
    ) -> Applied:
        """Undo the last edits of an ensemble, or restore the state after one of them; two rollbacks in a row go back two edits.

        Args:
            count: The number of edits to undo.
            name: The ensemble; None for the one that was edited last.
            to: The id of the edit whose result is restored, instead of `count`: an earlier one, or one that was undone.
            message: A message for the history.
            dry_run: Whether to only check and plan the edit.
        """
        return roll_back(self._runner, count, name=name, to=to, message=message, dry_run=dry_run)

    def prune(self, *, keep_edits: int = 10, dry_run: bool = False) -> list[Prunable]:
        """Delete former members and averaging models that no ensemble uses.

        Args:
            keep_edits: The number of edits of each ensemble that can still be rolled back; the models that they need are kept.
            dry_run: Whether to only list what would be deleted.

        Returns:
            What was deleted, or would be.

        Raises:
            ServiceError, defensemble_repository.errors.RepositoryError, OSError: Nothing was deleted.
        """
        return prune(self._runner, keep_edits=keep_edits, dry_run=dry_run)


def _names(members: Sequence[str]) -> tuple[str, ...]:
    """Check that `members` is a list of names, not a single string."""
    if isinstance(members, str) or not all(isinstance(member, str) for member in members):
        raise InputError(f"members must be a list of names, such as ['keep0.1', 'keep0.3@2'], got {members!r:.80}")
    return tuple(members)


def _targets(replicas: Sequence[Replica], load_timeout_s: float, on_progress: Callable[[str], None]) -> list[EditTarget]:
    """Return the folders with their servers, after checking that no folder or server is given twice."""
    if not replicas:
        raise InputError("no repository is given; expected at least one")
    for replica in replicas:
        require_repository(replica.repository, InputError)
    urls = [client.url for replica in replicas for client in replica.clients]
    folders = [str(replica.repository.resolve()) for replica in replicas]
    for kind, values in (("server", urls), ("folder", folders)):
        duplicates = sorted({value for value in values if values.count(value) > 1})
        if duplicates:
            raise InputError(f"the {kind} {', '.join(duplicates)} is given twice; give it once")
    targets = []
    for replica in replicas:
        servers = (ModelServer(client, load_timeout_s=load_timeout_s, on_progress=on_progress) for client in replica.clients)
        targets.append(EditTarget(replica.repository, tuple(servers)))
    return targets
