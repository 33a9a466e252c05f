"""Edits of an ensemble as values; each plans the files that it changes in a repository.

EditRequest
├── CreateEnsemble       create an ensemble from models of the repository
├── AddMembers           add members, or replace one
├── RemoveMembers        remove members
├── SetWeights           change the weights of members
├── SetAverage           average probabilities, or logits
├── ApplyDeclaration     create or change an ensemble as a file declares it
├── RefreshMembers       load members again, from copies of their files
├── Reload               apply hand edits of the configurations
├── Restore              restore an earlier state from the history
└── DeleteEnsemble       delete an ensemble, but not its members
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import EnsembleError
from defensemble_repository.view import RepositoryView

from ..errors import HistoryError
from .existing import check_ensemble_exists, existing_ensemble
from .history import Snapshot, read_history, undoable_edits
from .membership import add_members, find_member, new_member, parse_member, remove_members, set_weights
from .plan import EditPlan, plan_creation, plan_deletion, plan_ensemble, plan_snapshot
from .refreshing import version_copy


@dataclass(frozen=True)
class EditRequest(ABC):
    """An edit of the ensemble `name`, independent of the repository.

    Attributes:
        name: The ensemble's name.
        reloads: Whether servers load all members again, because files may have changed that no configuration describes.
        may_differ: Whether the ensemble may differ between the repositories before the edit.

    Example:
        >>> request: EditRequest = SetAverage("ensemble", "logits")
        >>> request.plan(Path("model_repository")).changes_files
    """

    name: str
    reloads: ClassVar[bool] = False
    may_differ: ClassVar[bool] = False

    @property
    @abstractmethod
    def action(self) -> str:
        """The edit's action in the history, one of `history.ACTIONS`."""

    @property
    def undone_edits(self) -> tuple[str, ...]:
        """The ids of the edits that this edit undoes, newest first."""
        return ()

    @abstractmethod
    def plan(self, repository: Path) -> EditPlan:
        """Compute the changes in `repository` without writing anything.

        Raises:
            RepositoryError: The edit is not possible there.
            OSError: A file cannot be read.
        """

    def action_in(self, repository: Path) -> str:
        """Return the action for the history of `repository`.

        Applying a declaration of an ensemble that does not exist is recorded as `create`, so that a rollback deletes the ensemble.
        """
        return "create" if self.action == "apply" and not RepositoryView(repository).has(self.name) else self.action


@dataclass(frozen=True)
class CreateEnsemble(EditRequest):
    """Create an ensemble.

    Attributes:
        members: The members, as `MODEL` (its newest version) or `MODEL@VERSION`.
        weights: The weights by member; the default is 1.
        average: `"probabilities"` or `"logits"`.

    Raises:
        EnsembleError: `weights` has a model that is not among `members`.

    Example:
        >>> CreateEnsemble("ensemble", ("keep0.3", "keep0.5"), {"keep0.5": 2.0}).plan(Path("model_repository"))
    """

    members: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    average: str = "probabilities"
    action = "create"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.members))
        if unknown:
            raise EnsembleError(f"a weight is given for {', '.join(unknown)}, expected one of the members {', '.join(self.members)}")

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        members = tuple(new_member(repository, name, self.weights.get(name, 1.0)) for name in self.members)
        return plan_creation(repository, Ensemble(self.name, members, self.average))


class _Change(EditRequest):
    """An edit of an existing ensemble."""

    @abstractmethod
    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        """Return the new ensemble."""

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        return plan_ensemble(repository, self._changed(existing_ensemble(repository, self.name), repository))


@dataclass(frozen=True)
class AddMembers(_Change):
    """Add members.

    Attributes:
        members: The new members, as `MODEL` (its newest version) or `MODEL@VERSION`.
        weight: The weight of each; None for 1, or for that of the member that is replaced.
        in_place_of: The member that the only new member replaces, at the same position.

    Example:
        >>> AddMembers("ensemble", ("keep0.3@2",), in_place_of="keep0.3@1")
    """

    members: tuple[str, ...]
    weight: float | None = None
    in_place_of: str | None = None
    action = "add"

    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        weight = self.weight
        if weight is None:
            weight = 1.0 if self.in_place_of is None else find_member(current, self.in_place_of).weight
        for name in self.members:
            model, version = parse_member(name)
            existing = [member for member in current.members if member.model == model]
            if version is None and existing and self.in_place_of is None:
                raise EnsembleError(
                    f"'{model}' is already a member of '{current.name}', at version {existing[0].version}. To move it to the newest "
                    f"version, replace it (--in-place-of {model}@{existing[0].version}); to add another version, name it ({model}@VERSION)"
                )
        new = [new_member(repository, name, weight) for name in self.members]
        return add_members(current, new, in_place_of=self.in_place_of)


@dataclass(frozen=True)
class RemoveMembers(_Change):
    """Remove `members` (`MODEL` or `MODEL@VERSION`); their files stay.

    Example:
        >>> RemoveMembers("ensemble", ("keep0.1",))
    """

    members: tuple[str, ...]
    action = "remove"

    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        return remove_members(current, self.members)


@dataclass(frozen=True)
class SetWeights(_Change):
    """Change the weights of members, by `MODEL` or `MODEL@VERSION`.

    Example:
        >>> SetWeights("ensemble", {"keep0.3": 2.0})
    """

    weights: Mapping[str, float] = field(hash=False)
    action = "weight"

    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        return set_weights(current, self.weights)


@dataclass(frozen=True)
class SetAverage(_Change):
    """Make an ensemble average `"probabilities"` or `"logits"`.

    Example:
        >>> SetAverage("ensemble", "logits")
    """

    average: str
    action = "average"

    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        return dataclasses.replace(current, average=self.average)


@dataclass(frozen=True)
class ApplyDeclaration(EditRequest):
    """Create an ensemble, or change the existing one of that name into it.

    Attributes:
        ensemble: The ensemble.

    Example:
        >>> ApplyDeclaration(read_declaration(Path("ensemble.yaml")))
    """

    name: str = field(init=False)
    ensemble: Ensemble
    action = "apply"
    may_differ = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.ensemble.name)

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        return plan_ensemble(repository, self.ensemble)


@dataclass(frozen=True)
class RefreshMembers(EditRequest):
    """Copy the files of members to new versions of their models, which replace them; servers load the files again for them.

    Attributes:
        members: The members, as `MODEL` or `MODEL@VERSION`, of different models.
        copied: Those of them that were copied already, for another ensemble: they are replaced by the newest version of their model.

    Example:
        >>> RefreshMembers("ensemble", ("keep0.3@1", "keep0.5@1"))
    """

    members: tuple[str, ...]
    copied: frozenset[str] = frozenset()
    action = "refresh"

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        after, copies = existing_ensemble(repository, self.name), dict[str, bytes]()
        for text in self.members:
            old = find_member(after, text)
            if text in self.copied:
                new = new_member(repository, old.model, old.weight)
            else:
                version, files = version_copy(repository, old.model, old.version)
                new = dataclasses.replace(old, version=version)
                copies |= files
            after = add_members(after, [new], in_place_of=text)
        return dataclasses.replace(plan_ensemble(repository, after), copies=copies)


@dataclass(frozen=True)
class Reload(_Change):
    """Apply hand edits of the configurations; averaging models whose parameters were edited are generated again.

    Example:
        >>> Reload("ensemble")
    """

    action = "reload"
    reloads = True

    def _changed(self, current: Ensemble, repository: Path) -> Ensemble:
        """Return `current`, which already contains the hand edits."""
        return current


@dataclass(frozen=True)
class Restore(EditRequest):
    """Restore an earlier state from the history.

    Attributes:
        undone: The ids of the edits to undo, newest first; the state before them is restored.
        to: The id of the edit whose result is restored, instead of `undone`.
        redoes: Whether `to` was undone and is applied again.

    Raises:
        ValueError: Neither or both of `undone` and `to` are given.

    Example:
        >>> Restore("ensemble", undone=("5f0c1d2e3a4b",))
    """

    undone: tuple[str, ...] = ()
    to: str | None = None
    redoes: bool = False

    def __post_init__(self) -> None:
        if bool(self.undone) == (self.to is not None):
            raise ValueError(f"expected either edits to undo or an edit to restore, got {self.undone} and {self.to!r}")

    @property
    def action(self) -> str:
        """The edit's action in the history."""
        return "apply" if self.redoes else "rollback"

    @property
    def undone_edits(self) -> tuple[str, ...]:
        """The ids of the edits that this edit undoes, newest first."""
        return self.undone

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`.

        Raises:
            HistoryError: The history of `repository` contains other edits.
        """
        return plan_snapshot(repository, self.name, self._state(repository))

    def _state(self, repository: Path) -> Snapshot | None:
        edits = [edit for edit in read_history(repository) if edit.ensemble == self.name]
        stack = undoable_edits(edits, self.name)
        if self.undone:
            last = stack[-len(self.undone) :]
            if tuple(edit.id for edit in reversed(last)) == self.undone:
                return last[0].before
        else:
            # An unrecorded change is undone by restoring the result of the last edit.
            for edit in edits if self.redoes else [*stack[-1:], *edits[-1:]]:
                if edit.id == self.to:
                    return edit.after
        raise HistoryError(
            f"the last edits of '{self.name}' in the history of {repository} are not {', '.join(self.undone) or self.to} as expected; "
            "check the history (`defensemble ensemble history`) and roll back again"
        )


@dataclass(frozen=True)
class DeleteEnsemble(EditRequest):
    """Delete the ensemble; its members stay.

    Example:
        >>> DeleteEnsemble("canary")
    """

    action = "delete"

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        check_ensemble_exists(repository, self.name)
        return plan_deletion(repository, self.name)
