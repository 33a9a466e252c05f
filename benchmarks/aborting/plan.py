"""Which calls are given up, how, and at which moment: drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ABORTS: Mapping[str, Mapping[str, int]] = {
    "grpc": {"deadline": 10_000, "cancel": 10_000, "close": 1_000, "kill": 300},
    "http": {"expire": 10_000, "close": 1_000, "kill": 300},
}
"""How many of each kind make a full run, by protocol. A close and a kill give up several calls at once."""
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
WANTED: tuple[tuple[str, ...], ...] = (OUTPUTS, ("probabilities",), ("mutual_information",), OUTPUTS[::3], ())
"""The outputs that calls name; none means all."""
BATCHES = (1, 1, 2, 4, 8)
LATEST = 1.5
"""The last moment of an abort, as a share of the time that a call takes at present."""
_EARLY_SHARE = 0.15  # of the aborts, while the request is being sent
_EARLY = 0.05
_AT_ANSWER_SHARE = 0.4  # of the closed channels and killed callers
_MOST_IN_FLIGHT = 8


@dataclass(frozen=True)
class Abort:
    """One call, or several of one caller, to give up.

    `moment` is when, as a share of the time that a call takes at present. Of several calls, `at_answer` means when the first of them is
    answered: those that were computed together are then being answered too. `part`, in [0, 1), is how much of a request is sent, or of an
    answer is read.
    """

    protocol: str
    kind: str
    number: int
    moment: float
    at_answer: bool
    part: float
    batch: int
    wanted: tuple[str, ...]
    in_flight: int


def planned(protocol: str, counts: Mapping[str, int], seed: int) -> list[Abort]:
    """As many aborts of each kind as `counts` says, in random order."""
    generator = np.random.default_rng((seed, sorted(ABORTS).index(protocol)))
    kinds = generator.permutation([kind for kind, count in counts.items() for _ in range(count)])
    return [
        Abort(
            protocol=protocol,
            kind=str(kind),
            number=number,
            moment=float(generator.uniform(0, _EARLY if generator.random() < _EARLY_SHARE else LATEST)),
            at_answer=kind in ("close", "kill") and bool(generator.random() < _AT_ANSWER_SHARE),
            part=float(generator.random()),
            batch=int(generator.choice(BATCHES)),
            wanted=WANTED[int(generator.integers(len(WANTED)))],
            in_flight=int(generator.integers(2, _MOST_IN_FLIGHT + 1)) if kind in ("close", "kill") else 1,
        )
        for number, kind in enumerate(kinds)
    ]


def scaled(scale: float) -> dict[str, dict[str, int]]:
    """`ABORTS` times `scale`, at least one of each kind."""
    return {protocol: {kind: max(1, round(scale * count)) for kind, count in kinds.items()} for protocol, kinds in ABORTS.items()}
