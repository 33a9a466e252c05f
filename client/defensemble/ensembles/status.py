"""How an ensemble stands: on disk, and in the servers that read it."""

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
from .server_models import Served, is_averaging
from .targets import EditTarget


def recover_or_warn(runner: EditRunner) -> None:
    """Finishes or undoes an edit that was cut short; where one is under way, or may not be touched by this user, only tells."""
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
            runner.on_warning(f"an edit of '{edit.ensemble}' is under way in {folder} ({edit.action}, by {edit.who})")
        except PermissionError as error:
            runner.on_warning(f"an edit of '{edit.ensemble}' was cut short in {folder}, and this user may not mend it: {error}")
        except ServiceError as error:
            runner.on_warning(f"an edit of '{edit.ensemble}' was cut short in {folder}, and cannot be finished or undone now: {error}")


def differences_of(targets: Sequence[EditTarget], name: str) -> list[str]:
    """In which folders an ensemble is another than in the first."""
    first = snapshot_or_none(RepositoryView(targets[0].repository), name)
    found = []
    for target in targets[1:]:
        other = snapshot_or_none(RepositoryView(target.repository), name)
        if other != first and (first is None or other is None or not is_same_state(first, other)):
            found.append(
                f"{target.repository} holds another '{name}' than {targets[0].repository}, or none: make them equal with "
                "`defensemble ensemble apply FILE` and the same --replica options"
            )
    return found


def look_at(targets: Sequence[EditTarget], name: str) -> EnsembleState:
    """An ensemble as it lies in the first target, and by server whether that serves what lies in its folder."""
    from defensemble_export.editing import check_ensemble_exists, read_member_info

    check_ensemble_exists(targets[0].repository, name)
    files = RepositoryView(targets[0].repository)
    config = files.config(name)
    problems: list[str] = []
    votes: Ensemble | None = None
    try:
        votes = read_ensemble(targets[0].repository, name)
    except EnsembleError as error:
        problems.append(str(error))
    preprocessing = None
    if (text := parameter(config, PREPROCESSING)) is not None:
        try:
            preprocessing = parse_preprocessing(name, text)
        except ConfigError as error:
            problems.append(str(error))
    problems += differences_of(targets, name)
    served = {one.url: _Serving(one, target.repository) for target in targets for one in target.servers}
    members = []
    for vote, share in zip(votes.members, votes.weights, strict=True) if votes is not None else ():
        told = {url: serving.of(vote.model, vote.version) for url, serving in served.items()}
        members.append(MemberState(read_member_info(files, vote, share), told))
    shapes = [tuple(tensor.dims) for tensor in config.input if tensor.name == "images"]
    classes = [tensor.dims[0] for tensor in config.output if tensor.name == "probabilities" and len(tensor.dims) == 1]
    return EnsembleState(
        name,
        votes,
        int(config.max_batch_size),
        shapes[0] if shapes else (),
        classes[0] if classes else 0,
        tuple(members),
        {url: serving.of_ensemble(name) for url, serving in served.items()},
        tuple(problems),
        preprocessing,
    )


class _Serving:
    """What one server serves of one folder."""

    def __init__(self, served: Served, repository: Path) -> None:
        self._served = served
        self._files = RepositoryView(repository)
        self._restarting = ""  # since when its guard is starting it again, so that it cannot be asked
        try:
            self._ready = served.ready()
        except ServiceError:
            status = local_server_status(served.url)
            if status is None or status.restarting_since is None:
                raise
            self._restarting = status.text

    def of(self, model: str, version: int | None) -> str:
        """Whether a model is served as it lies on disk: "yes", or why not."""
        from defensemble_export.editing import is_served_as_on_disk

        if self._restarting:
            return self._restarting
        there = self._ready.get(model, set())
        if not there or (version is not None and version not in there):
            others = f", only {', '.join(map(str, sorted(there)))}" if there else ""
            return f"not loaded{others}"
        loaded = self._served.config(model)
        if loaded is None:
            return "not loaded"
        if not self._files.has(model):
            return "yes, but it is not on disk"
        if is_served_as_on_disk(self._files, model, loaded, version=version):
            return "yes"
        return "an older one: its config.pbtxt has changed since (reload)"

    def of_ensemble(self, name: str) -> str:
        """The same of an ensemble, and of the averaging models that it runs."""
        from defensemble_export.editing import steps_of

        state = self.of(name, None)
        for model, version in steps_of(self._files.config(name)) if state == "yes" else ():
            if is_averaging(model) and (other := self.of(model, version)) != "yes":
                return f"no: {model}: {other}"
        return state
