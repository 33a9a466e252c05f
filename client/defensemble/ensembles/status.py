"""The state of an ensemble on disk and on the servers that read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import ConfigError, EnsembleError, LockedError
from defensemble_repository.preprocessing import PREPROCESSING, parse_preprocessing
from defensemble_repository.reader import parameter, read_ensemble
from defensemble_repository.view import RepositoryView

from .._exceptions import ServiceError
from .baseline import is_same_state, snapshot_or_none
from .edit import EditRunner
from .local_servers import local_server_status
from .results import EnsembleState, MemberState
from .server_models import ModelServer, is_averaging
from .targets import EditTarget


def recover_or_warn(runner: EditRunner) -> None:
    """Recover an interrupted edit; only warn if the edit is still in progress, or this user lacks the permissions."""
    from defensemble_export import HistoryError
    from defensemble_export.editing import read_journal

    for target in runner.targets:
        try:
            journal = read_journal(target.repository)
        except HistoryError as error:
            runner.on_warning(str(error))
            continue
        if journal is None:
            continue
        edit, folder = journal.edit, target.repository
        try:
            with runner.locked_and_recovered(wait_s=0.0):
                return
        except LockedError:
            runner.on_warning(f"an edit of '{edit.ensemble}' is in progress in {folder} ({edit.action}, by {edit.who})")
        except PermissionError as error:
            runner.on_warning(f"an edit of '{edit.ensemble}' in {folder} was interrupted, and this user cannot recover it: {error}")
        except ServiceError as error:
            runner.on_warning(f"an edit of '{edit.ensemble}' in {folder} was interrupted, and cannot be finished or undone now: {error}")


def replica_differences(targets: Sequence[EditTarget], name: str) -> list[str]:
    """Report the repositories whose ensemble differs from that in the first."""
    first = snapshot_or_none(RepositoryView(targets[0].repository), name)
    differences = []
    for target in targets[1:]:
        other = snapshot_or_none(RepositoryView(target.repository), name)
        if other != first and (first is None or other is None or not is_same_state(first, other)):
            differences.append(
                f"'{name}' in {target.repository} differs from that in {targets[0].repository}, or is missing; make them equal with "
                "`defensemble ensemble apply FILE` and the same --replica options"
            )
    return differences


def read_ensemble_state(targets: Sequence[EditTarget], name: str) -> EnsembleState:
    """Read an ensemble from the first target, and check for each server whether it serves what is on disk.

    Args:
        targets: The repositories and their servers.
        name: The ensemble.

    Raises:
        RepositoryError, OSError: The ensemble cannot be read.
        ServiceError: A server does not answer.
    """
    from defensemble_export.editing import check_ensemble_exists, read_member_info

    check_ensemble_exists(targets[0].repository, name)
    files = RepositoryView(targets[0].repository)
    config = files.config(name)
    problems: list[str] = []
    ensemble: Ensemble | None = None
    try:
        ensemble = read_ensemble(targets[0].repository, name)
    except EnsembleError as error:
        problems.append(str(error))
    preprocessing = None
    if (text := parameter(config, PREPROCESSING)) is not None:
        try:
            preprocessing = parse_preprocessing(name, text)
        except ConfigError as error:
            problems.append(str(error))
    problems += replica_differences(targets, name)
    readers = {server.url: _ServerState(server, target.repository) for target in targets for server in target.servers}
    members = []
    for member, share in zip(ensemble.members, ensemble.weights, strict=True) if ensemble is not None else ():
        served = {url: reader.of_model(member.model, member.version) for url, reader in readers.items()}
        members.append(MemberState(read_member_info(files, member, share), served))
    shapes = [tuple(tensor.dims) for tensor in config.input if tensor.name == "images"]
    classes = [tensor.dims[0] for tensor in config.output if tensor.name == "probabilities" and len(tensor.dims) == 1]
    return EnsembleState(
        name,
        ensemble,
        int(config.max_batch_size),
        shapes[0] if shapes else (),
        classes[0] if classes else 0,
        tuple(members),
        {url: reader.of_ensemble(name) for url, reader in readers.items()},
        tuple(problems),
        preprocessing,
    )


class _ServerState:
    """Compares what one server serves with one repository."""

    def __init__(self, server: ModelServer, repository: Path) -> None:
        self._server = server
        self._files = RepositoryView(repository)
        self._restarting = ""  # the status of a server that is restarting and does not answer
        try:
            self._ready = server.ready()
        except ServiceError:
            status = local_server_status(server.url)
            if status is None or status.restarting_since is None:
                raise
            self._restarting = status.text

    def of_model(self, model: str, version: int | None) -> str:
        """Return `"yes"` if a model is served as it is on disk, or the reason why not."""
        from defensemble_export.editing import is_served_as_on_disk

        if self._restarting:
            return self._restarting
        versions = self._ready.get(model, set())
        if not versions or (version is not None and version not in versions):
            others = f", only {', '.join(map(str, sorted(versions)))}" if versions else ""
            return f"not loaded{others}"
        loaded = self._server.config(model)
        if loaded is None:
            return "not loaded"
        if not self._files.has(model):
            return "yes, but it is not on disk"
        if is_served_as_on_disk(self._files, model, loaded, version=version):
            return "yes"
        return "outdated: its config.pbtxt has changed since it was loaded (reload)"

    def of_ensemble(self, name: str) -> str:
        """Return the same for an ensemble and the averaging models that it runs."""
        from defensemble_export.editing import step_models

        state = self.of_model(name, None)
        for model, version in step_models(self._files.config(name)) if state == "yes" else ():
            if is_averaging(model) and (other := self.of_model(model, version)) != "yes":
                return f"no: {model}: {other}"
        return state
