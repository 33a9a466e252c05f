"""Which edits are made, in which order: drawn from a seed, each to a state that answers otherwise than the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defensemble.ensembles import Applied, Ensembles

ACTIONS = ("add", "remove", "weight", "average", "switch", "rollback")
"""`switch` moves a vote to another version of its model: `add` with `in_place_of`."""
AVERAGES = ("probabilities", "logits")
_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
# A call's time is by the number of votes: calls with and without edits are to be alike.
_FEWEST = 4
_ATTEMPTS = 10_000


@dataclass(frozen=True, order=True)
class Ballot:
    """A member's vote."""

    model: str
    version: int = 1
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True)
class State:
    """What an ensemble computes: who votes, and what is averaged."""

    votes: tuple[Ballot, ...]
    average: str = AVERAGES[0]

    @property
    def models(self) -> set[str]:
        """Those that have to be loaded."""
        return {vote.model for vote in self.votes}


@dataclass(frozen=True)
class Change:
    """An edit: one of `ACTIONS`, what it is told, and the state that it leads to."""

    action: str
    told: Mapping[str, Any]
    state: State


def make(change: Change, ensembles: Ensembles, name: str) -> Applied:
    """Makes a change by the public API.

    Raises:
        Exception: What the API raises.
    """
    told = change.told
    if change.action == "add":
        return ensembles.add(name, [told["member"]], weight=told["weight"])
    if change.action == "switch":
        return ensembles.add(name, [told["member"]], in_place_of=told["in_place_of"])
    if change.action == "remove":
        return ensembles.remove(name, [told["member"]])
    if change.action == "weight":
        return ensembles.weight(name, {told["member"]: told["weight"]})
    if change.action == "average":
        return ensembles.average(name, told["average"])
    return ensembles.rollback(told["count"], name=name)


def planned(
    versions: Mapping[str, int],
    start: State,
    count: int,
    seed: int,
    *,
    differ: Callable[[State, State], bool],
    alike_at: Sequence[int] = (),
) -> list[Change]:
    """As many edits as `count`, all actions about as often, of models that have so many `versions` each.

    `differ` says whether two states can be told apart by their answers: those before and after an edit always can. After the edits
    `alike_at` (counted from 1) the same models vote, so that a server's memory then can be compared.

    Raises:
        ValueError: No such order was found.
    """
    for attempt in range(_ATTEMPTS):
        drawn = _drawn(versions, start, count, np.random.default_rng((seed, attempt)), differ)
        if len({frozenset(drawn[number - 1].state.models) for number in alike_at}) <= 1:
            return drawn
    raise ValueError(f"no order of {count} edits lets the same models vote after the edits {', '.join(map(str, alike_at))}")


def _drawn(
    versions: Mapping[str, int], start: State, count: int, generator: np.random.Generator, differ: Callable[[State, State], bool]
) -> list[Change]:
    state, done, due = start, list[Change](), list[str]()
    undoable_edits: list[State] = []  # what each edit that can be undone had found
    while len(done) < count:
        due = due or list(ACTIONS)
        change = None
        for action in [*generator.permutation(due), *generator.permutation(ACTIONS)]:
            found = _change(str(action), state, undoable_edits, versions, generator)
            if found is not None and differ(state, found.state):
                change = found
                break
        if change is None:
            raise ValueError(f"no edit of {state} leads to an answer that differs")
        if change.action in due:
            due.remove(change.action)
        if change.action == "rollback":
            del undoable_edits[-change.told["count"] :]
        else:
            undoable_edits.append(state)
        done.append(change)
        state = change.state
    return done


def _change(
    action: str, state: State, undoable_edits: Sequence[State], versions: Mapping[str, int], generator: np.random.Generator
) -> Change | None:
    """One edit of that kind; None where there is none."""
    if action == "rollback":
        if not undoable_edits:
            return None
        steps = int(generator.integers(1, min(2, len(undoable_edits)) + 1))
        return Change(action, {"count": steps}, undoable_edits[-steps])
    if action == "average":
        other = next(average for average in AVERAGES if average != state.average)
        return Change(action, {"average": other}, dataclasses.replace(state, average=other))
    if action == "add":
        missing = sorted(set(versions) - state.models)
        if not missing:
            return None
        model = str(generator.choice(missing))
        new = Ballot(model, int(generator.integers(1, versions[model] + 1)), float(generator.choice(_WEIGHTS)))
        return Change(action, {"member": str(new), "weight": new.weight}, dataclasses.replace(state, votes=(*state.votes, new)))
    movable = [vote for vote in state.votes if action != "switch" or versions[vote.model] > 1]
    if not movable or (action == "remove" and len(state.votes) <= _FEWEST):
        return None
    old = movable[int(generator.integers(len(movable)))]
    told: dict[str, Any]
    if action == "remove":
        return Change(action, {"member": str(old)}, dataclasses.replace(state, votes=tuple(vote for vote in state.votes if vote != old)))
    if action == "switch":
        others = [version for version in range(1, versions[old.model] + 1) if version != old.version]
        new = dataclasses.replace(old, version=int(generator.choice(others)))
        told = {"member": str(new), "in_place_of": str(old)}
    else:
        new = dataclasses.replace(old, weight=float(generator.choice([weight for weight in _WEIGHTS if weight != old.weight])))
        told = {"member": str(old), "weight": new.weight}
    return Change(action, told, dataclasses.replace(state, votes=tuple(new if vote == old else vote for vote in state.votes)))
