"""Find the state that computed a response, by numpy in float64 from the logits of each member, without the code under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.callers import choose_rows
from benchmarks.editing.plan import State
from defensemble_repository.averaging import TOLERANCE, largest_difference, reference_outputs

MIN_DIFFERENCE = 1e-3
"""The smallest difference between the outputs of consecutive states, in every batch."""


@dataclass(frozen=True)
class Call:
    """A call, the `number`th of its caller. Times are in seconds of `time.monotonic`, which is the same in all processes.

    `answer` is (N, K), or None if the call failed for the reason `failure`.
    """

    caller: int
    number: int
    sent: float
    arrived: float
    answer: NDArray[np.floating[Any]] | None
    failure: str | None = None


@dataclass
class Verdict:
    """The verification of all calls. The lists have a text for each failed, wrong or stale call."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    by_state: Counter[int] = field(default_factory=Counter)
    between: int = 0
    largest_difference: float = 0.0


def state_probabilities(state: State, logits: Mapping[tuple[str, int], Array]) -> Array:
    """Return the probabilities (P, K) of a state for P images, from the `logits` (P, K) of each version of a model."""
    member_logits = [logits[member.model, member.version] for member in state.members]
    return reference_outputs(member_logits, state.average, [member.weight for member in state.members])["probabilities"]


def min_difference(first: Array, second: Array, batch: int) -> float:
    """Return the smallest difference between the outputs (P, K) of two states in any `batch` different images of the P."""
    return float(np.sort(np.abs(first - second).max(axis=1))[batch - 1])


def states_in_force(edits: Sequence[tuple[float, float]], sent: float, arrived: float) -> range:
    """Return the states that were in force at some time between `sent` and `arrived`. State 0 is the one before all `edits` (begin, end).

    During an edit, both states are in force; before it, only the old one, and after it, only the new one.
    """
    first = sum(end < sent for _, end in edits)
    last = sum(begin <= arrived for begin, _ in edits)
    return range(first, last + 1)


def verify_calls(
    calls: Sequence[Call],
    expected: Sequence[Array],
    edits: Sequence[tuple[float, float]],
    *,
    seed: int,
    batch: int,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Compare every call with the states in force, and the calls of each caller with the order of the states.

    If an output belongs to several states (a rollback restores an earlier one), it counts for the first that the caller may still see: a
    correct order is never reported as wrong.

    Args:
        calls: The calls.
        expected: The outputs (P, K) of every state for the whole pool, one more than `edits`.
        edits: Begin and end of each edit.
        seed: Seed of the batches.
        batch: Images per call.
        tolerance: The largest allowed difference.
    """
    verdict = Verdict()
    seen: Counter[int] = Counter()
    for call in sorted(calls, key=lambda call: (call.caller, call.number)):
        verdict.calls += 1
        name = f"call {call.number} of caller {call.caller}"
        if call.answer is None:
            verdict.failed.append(f"{name}: {call.failure}")
            continue
        rows = choose_rows(seed, call.caller, call.number, len(expected[0]), batch)
        states = states_in_force(edits, call.sent, call.arrived)
        differences = {state: largest_difference(call.answer, expected[state][rows]) for state in states}
        matching = [state for state, difference in differences.items() if difference <= tolerance]
        allowed = [state for state in matching if state >= seen[call.caller]]
        if not matching:
            verdict.wrong.append(f"{name}: {_describe_wrong(call.answer, [outputs[rows] for outputs in expected], states, tolerance)}")
        elif not allowed:
            verdict.stale.append(f"{name}: the output of state {matching[-1]} after one of state {seen[call.caller]}")
        else:
            seen[call.caller] = allowed[0]
            verdict.by_state[allowed[0]] += 1
            verdict.between += len(states) > 1
            verdict.largest_difference = max(verdict.largest_difference, differences[allowed[0]])
    return verdict


def _describe_wrong(answer: NDArray[np.floating[Any]], expected: Sequence[Array], states: range, tolerance: float) -> str:
    nearest = min(range(len(expected)), key=lambda state: largest_difference(answer, expected[state]))
    difference = largest_difference(answer, expected[nearest])
    text = f"the output of state {nearest}" if difference <= tolerance else f"no state's output, {difference:.3g} from that of {nearest}"
    return f"{text}, while {' and '.join(map(str, states))} {'was' if len(states) == 1 else 'were'} in force"
