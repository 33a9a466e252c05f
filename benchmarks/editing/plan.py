"""The edits, changes from a seed. Each leads to a state whose outputs differ from those of the previous state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defensemble.ensembles import Applied, Ensembles

ACTIONS = ("add", "remove", "weight", "average", "switch", "rollback")
"""`switch` replaces a member by another version of its model: `add` with `in_place_of`."""
AVERAGES = ("probabilities", "logits")
_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
# The duration of a call depends on the number of members: calls with and without edits must be comparable.
_MIN_MEMBERS = 4
_ATTEMPTS = 10_000


@dataclass(frozen=True, order=True)
class WeightedMember:
    """A member with its weight."""

    model: str
    version: int = 1
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True)
class State:
    """The members of an ensemble, and what it averages."""

    members: tuple[WeightedMember, ...]
    average: str = AVERAGES[0]

    @property
    def models(self) -> set[str]:
        """The models of the members."""
        return {member.model for member in self.members}


@dataclass(frozen=True)
class Change:
    """An edit: one of `ACTIONS`, its arguments, and the state that it leads to."""

    action: str
    arguments: Mapping[str, Any]
    state: State


def apply_change(change: Change, ensembles: Ensembles, name: str) -> Applied:
    """Apply a change with the public API.

    Raises:
        Exception: Whatever the API raises.
    """
    arguments = change.arguments
    if change.action == "add":
        return ensembles.add(name, [arguments["member"]], weight=arguments["weight"])
    if change.action == "switch":
        return ensembles.add(name, [arguments["member"]], in_place_of=arguments["in_place_of"])
    if change.action == "remove":
        return ensembles.remove(name, [arguments["member"]])
    if change.action == "weight":
        return ensembles.weight(name, {arguments["member"]: arguments["weight"]})
    if change.action == "average":
        return ensembles.average(name, arguments["average"])
    return ensembles.rollback(arguments["count"], name=name)


def draw_changes(
    versions: Mapping[str, int],
    start: State,
    count: int,
    seed: int,
    *,
    are_distinguishable: Callable[[State, State], bool],
    same_models_after: Sequence[int] = (),
) -> list[Change]:
    """Draw edits, with about the same number of each action.

    Args:
        versions: Number of versions of each model.
        start: The first state.
        count: Number of edits.
        seed: The seed.
        are_distinguishable: Whether the outputs of two states differ; those before and after each edit always do.
        same_models_after: Numbers of edits (from 1) after which the ensemble has the same models, so that memory can be compared.

    Raises:
        ValueError: No such sequence was candidate.
    """
    for attempt in range(_ATTEMPTS):
        changes = _draw_sequence(versions, start, count, np.random.default_rng((seed, attempt)), are_distinguishable)
        if len({frozenset(changes[number - 1].state.models) for number in same_models_after}) <= 1:
            return changes
    raise ValueError(f"no sequence of {count} edits has the same models after the edits {', '.join(map(str, same_models_after))}")


def _draw_sequence(
    versions: Mapping[str, int],
    start: State,
    count: int,
    generator: np.random.Generator,
    are_distinguishable: Callable[[State, State], bool],
) -> list[Change]:
    state, done, due = start, list[Change](), list[str]()
    undoable_edits: list[State] = []  # the state before each edit that can be undone
    while len(done) < count:
        due = due or list(ACTIONS)
        change = None
        for action in [*generator.permutation(due), *generator.permutation(ACTIONS)]:
            candidate = _draw_change(str(action), state, undoable_edits, versions, generator)
            if candidate is not None and are_distinguishable(state, candidate.state):
                change = candidate
                break
        if change is None:
            raise ValueError(f"no edit of {state} changes its outputs")
        if change.action in due:
            due.remove(change.action)
        if change.action == "rollback":
            del undoable_edits[-change.arguments["count"] :]
        else:
            undoable_edits.append(state)
        done.append(change)
        state = change.state
    return done


def _draw_change(
    action: str, state: State, undoable_edits: Sequence[State], versions: Mapping[str, int], generator: np.random.Generator
) -> Change | None:
    """Draw an edit of an action, or return None if there is none."""
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
        new = WeightedMember(model, int(generator.integers(1, versions[model] + 1)), float(generator.choice(_WEIGHTS)))
        return Change(action, {"member": str(new), "weight": new.weight}, dataclasses.replace(state, members=(*state.members, new)))
    movable = [member for member in state.members if action != "switch" or versions[member.model] > 1]
    if not movable or (action == "remove" and len(state.members) <= _MIN_MEMBERS):
        return None
    old = movable[int(generator.integers(len(movable)))]
    arguments: dict[str, Any]
    if action == "remove":
        return Change(
            action, {"member": str(old)}, dataclasses.replace(state, members=tuple(member for member in state.members if member != old))
        )
    if action == "switch":
        others = [version for version in range(1, versions[old.model] + 1) if version != old.version]
        new = dataclasses.replace(old, version=int(generator.choice(others)))
        arguments = {"member": str(new), "in_place_of": str(old)}
    else:
        new = dataclasses.replace(old, weight=float(generator.choice([weight for weight in _WEIGHTS if weight != old.weight])))
        arguments = {"member": str(old), "weight": new.weight}
    return Change(
        action, arguments, dataclasses.replace(state, members=tuple(new if member == old else member for member in state.members))
    )
