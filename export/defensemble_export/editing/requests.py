"""Edits of an ensemble as values: each says what is edited and plans the files that this changes in a repository.

EditRequest
├── CreateEnsemble       a new ensemble of models of the repository
├── AddMembers           more members, or one in the place of another
├── RemoveMembers        fewer members
├── SetWeights           other weights of members
├── SetAverage           the average of probabilities, or of logits
├── ApplyDeclaration     an ensemble as a file declares it, whether it exists or not
├── Reload               hand edits of the configurations take effect
├── Restore              an earlier state, out of the history
└── DeleteEnsemble       the ensemble, without its members
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
from .membership import added, find_member, new_member, parse_member, removed, reweighted
from .plan import EditPlan, plan_creation, plan_deletion, plan_ensemble, plan_snapshot


@dataclass(frozen=True)
class EditRequest(ABC):
    """An edit of the ensemble `name`, independent of the repository in which it is made.

    `reloads`: servers load all members again, since files may have changed that their configurations do not describe. `may_differ`: the
    repositories in which it is made may hold different ensembles before it.
    """

    name: str
    reloads: ClassVar[bool] = False
    may_differ: ClassVar[bool] = False

    @property
    @abstractmethod
    def action(self) -> str:
        """What the history calls it: one of `history.ACTIONS`."""

    @property
    def undone_edits(self) -> tuple[str, ...]:
        """The ids of the edits that it undoes, the last one first."""
        return ()

    @abstractmethod
    def plan(self, repository: Path) -> EditPlan:
        """Compute what it changes in `repository`; nothing is written.

        Raises:
            RepositoryError: It cannot be made there.
            OSError: A file cannot be read.
        """

    def action_in(self, repository: Path) -> str:
        """Return what the history of `repository` calls it: a declared ensemble that is not there yet is created.

        A rollback has to know that it takes such an ensemble away again.
        """
        return "create" if self.action == "apply" and not RepositoryView(repository).has(self.name) else self.action


@dataclass(frozen=True)
class CreateEnsemble(EditRequest):
    """A new ensemble of `members` (`MODEL` or `MODEL@VERSION`), each with weight 1, or its weight of `weights`.

    Raises:
        EnsembleError: A weight is given for a model that is not among the members.
    """

    members: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    average: str = "probabilities"
    action = "create"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.members))
        if unknown:
            raise EnsembleError(f"a weight is given for {', '.join(unknown)}, which is not among the members: {', '.join(self.members)}")

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`; a model without a version votes at its newest."""
        votes = tuple(new_member(repository, member, self.weights.get(member, 1.0)) for member in self.members)
        return plan_creation(repository, Ensemble(self.name, votes, self.average))


class _Change(EditRequest):
    """An edit that makes another ensemble of the one that is there."""

    @abstractmethod
    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        """Return what `now` becomes."""

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        return plan_ensemble(repository, self._changed(existing_ensemble(repository, self.name), repository))


@dataclass(frozen=True)
class AddMembers(_Change):
    """More `members` (`MODEL` or `MODEL@VERSION`, without a version the newest), each with `weight`, 1 by default.

    With `in_place_of`, the only new member takes the row of that member and, by default, its weight.
    """

    members: tuple[str, ...]
    weight: float | None = None
    in_place_of: str | None = None
    action = "add"

    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        weight = self.weight
        if weight is None:
            weight = 1.0 if self.in_place_of is None else find_member(now, self.in_place_of).weight
        for member in self.members:
            model, version = parse_member(member)
            there = [vote for vote in now.members if vote.model == model]
            if version is None and there and self.in_place_of is None:
                raise EnsembleError(
                    f"'{model}' votes in '{now.name}' already, at version {there[0].version}: to move its vote to the newest, name that "
                    f"vote as the one to go (--in-place-of {model}@{there[0].version}); to let two versions vote, name the other one "
                    f"({model}@VERSION)"
                )
        return added(now, [new_member(repository, member, weight) for member in self.members], in_place_of=self.in_place_of)


@dataclass(frozen=True)
class RemoveMembers(_Change):
    """Without `members` (`MODEL` or `MODEL@VERSION`); their files stay."""

    members: tuple[str, ...]
    action = "remove"

    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        return removed(now, self.members)


@dataclass(frozen=True)
class SetWeights(_Change):
    """Other `weights` of members, by `MODEL` or `MODEL@VERSION`."""

    weights: Mapping[str, float] = field(hash=False)
    action = "weight"

    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        return reweighted(now, self.weights)


@dataclass(frozen=True)
class SetAverage(_Change):
    """The `average` of `"probabilities"` or `"logits"`."""

    average: str
    action = "average"

    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        return dataclasses.replace(now, average=self.average)


@dataclass(frozen=True)
class ApplyDeclaration(EditRequest):
    """The ensemble as `wanted` declares it, whether it is there already or not."""

    name: str = field(init=False)
    wanted: Ensemble
    action = "apply"
    may_differ = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.wanted.name)

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        return plan_ensemble(repository, self.wanted)


@dataclass(frozen=True)
class Reload(_Change):
    """Hand edits of the configurations take effect; averaging models whose parameters were edited are generated again."""

    action = "reload"
    reloads = True

    def _changed(self, now: Ensemble, repository: Path) -> Ensemble:
        """Return `now`, which the hand edits have changed already."""
        return now


@dataclass(frozen=True)
class Restore(EditRequest):
    """The state before the edits `undone` (ids, the last one first); where there are none, what the edit `to` left.

    `redoes` says that `to` had been undone, and is made again.

    Raises:
        ValueError: Neither edits to undo nor an edit to go to are given, or both.
    """

    undone: tuple[str, ...] = ()
    to: str | None = None
    redoes: bool = False

    def __post_init__(self) -> None:
        if bool(self.undone) == (self.to is not None):
            raise ValueError(f"expected either edits to undo or an edit to go to, got {self.undone} and {self.to!r}")

    @property
    def action(self) -> str:
        """What the history calls it."""
        return "apply" if self.redoes else "rollback"

    @property
    def undone_edits(self) -> tuple[str, ...]:
        """The ids of the edits that it undoes."""
        return self.undone

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`.

        Raises:
            HistoryError: The history of `repository` holds other edits.
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
            # A state that was not recorded is undone by going to what the last edit left.
            for edit in edits if self.redoes else [*stack[-1:], *edits[-1:]]:
                if edit.id == self.to:
                    return edit.after
        raise HistoryError(
            f"the history of {repository} has other last edits of '{self.name}' than expected, {', '.join(self.undone) or self.to}: "
            "look at it (`defensemble ensemble history`), and roll back again"
        )


@dataclass(frozen=True)
class DeleteEnsemble(EditRequest):
    """No such ensemble any more; its members stay."""

    action = "delete"

    def plan(self, repository: Path) -> EditPlan:
        """See `EditRequest.plan`."""
        check_ensemble_exists(repository, self.name)
        return plan_deletion(repository, self.name)
