"""Which ensemble gave an answer? By numpy, in float64, from what each member says by itself: no code that is being measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.callers import rows_of
from benchmarks.editing.plan import State
from defensemble_repository.averaging import TOLERANCE, largest_difference, reference_outputs

APART = 1e-3
"""By so much at least the answers of two states in a row differ, in every batch."""


@dataclass(frozen=True)
class Call:
    """One request, the `number`th of its caller; times in seconds of `time.monotonic`, the same in all processes.

    `answer` is (N, K), or None where the request failed, and `failure` why.
    """

    caller: int
    number: int
    sent: float
    arrived: float
    answer: NDArray[np.floating[Any]] | None
    failure: str | None = None


@dataclass
class Verdict:
    """What was found of all calls; the lists hold a text for each call that is not as it must be."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    by_state: Counter[int] = field(default_factory=Counter)
    between: int = 0
    largest_difference: float = 0.0


def answer_of(state: State, logits: Mapping[tuple[str, int], Array]) -> Array:
    """The probabilities (P, K) of a state for P images, from the `logits` (P, K) of each model's version."""
    votes = [logits[vote.model, vote.version] for vote in state.votes]
    return reference_outputs(votes, state.average, [vote.weight for vote in state.votes])["probabilities"]


def apart(ours: Array, theirs: Array, batch: int) -> float:
    """By how much two states' answers (P, K) differ at least in any `batch` different images of the P."""
    return float(np.sort(np.abs(ours - theirs).max(axis=1))[batch - 1])


def in_force(edits: Sequence[tuple[float, float]], sent: float, arrived: float) -> range:
    """The states, 0 the one before all `edits` (begin, end), that were in force at some time between `sent` and `arrived`.

    While an edit is made, both are; before it has begun the new one cannot be, and after it has returned the old one must not be.
    """
    first = sum(end < sent for _, end in edits)
    last = sum(begin <= arrived for begin, _ in edits)
    return range(first, last + 1)


def judge(
    calls: Sequence[Call],
    expected: Sequence[Array],
    edits: Sequence[tuple[float, float]],
    *,
    seed: int,
    batch: int,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Holds every call against the states in force meanwhile, and each caller's against the order of the states.

    `expected` are the answers (P, K) of every state for the whole pool, one more than `edits`. Where an answer is that of several states
    (a rollback leads to what was before), it counts as that of the first which the caller may still see: so no order that is right
    is called wrong.
    """
    verdict = Verdict()
    seen: Counter[int] = Counter()
    for call in sorted(calls, key=lambda one: (one.caller, one.number)):
        verdict.calls += 1
        who = f"call {call.number} of caller {call.caller}"
        if call.answer is None:
            verdict.failed.append(f"{who}: {call.failure}")
            continue
        rows = rows_of(seed, call.caller, call.number, len(expected[0]), batch)
        states = in_force(edits, call.sent, call.arrived)
        differences = {state: largest_difference(call.answer, expected[state][rows]) for state in states}
        fits = [state for state, difference in differences.items() if difference <= tolerance]
        allowed = [state for state in fits if state >= seen[call.caller]]
        if not fits:
            verdict.wrong.append(f"{who}: {_told(call.answer, [one[rows] for one in expected], states, tolerance)}")
        elif not allowed:
            verdict.stale.append(f"{who}: the answer of state {fits[-1]}, after one of state {seen[call.caller]}")
        else:
            seen[call.caller] = allowed[0]
            verdict.by_state[allowed[0]] += 1
            verdict.between += len(states) > 1
            verdict.largest_difference = max(verdict.largest_difference, differences[allowed[0]])
    return verdict


def _told(answer: NDArray[np.floating[Any]], expected: Sequence[Array], states: range, tolerance: float) -> str:
    nearest = min(range(len(expected)), key=lambda state: largest_difference(answer, expected[state]))
    difference = largest_difference(answer, expected[nearest])
    what = f"the answer of state {nearest}" if difference <= tolerance else f"no state's answer, {difference:.3g} from that of {nearest}"
    return f"{what}, while {' and '.join(map(str, states))} {'was' if len(states) == 1 else 'were'} in force"
