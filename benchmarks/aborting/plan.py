"""The aborts: which calls, how, and at which moment, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.common.oracle import OUTPUTS

ABORTS: Mapping[str, Mapping[str, int]] = {
    "grpc": {"deadline": 10_000, "cancel": 10_000, "close": 1_000, "kill": 300},
    "http": {"expire": 10_000, "close": 1_000, "kill": 300},
}
"""Number of aborts of each kind in a full run, by protocol. A close or a kill aborts several calls together."""
OUTPUT_CHOICES: tuple[tuple[str, ...], ...] = (OUTPUTS, ("probabilities",), ("mutual_information",), OUTPUTS[::3], ())
"""The outputs that calls request; none means all."""
BATCHES = (1, 1, 2, 4, 8)
LATEST = 1.5
"""The latest moment of an abort, as a fraction of the current duration of a call."""
_EARLY_FRACTION = 0.15  # of the aborts, while the request is being sent
_EARLY = 0.05
_AT_RESPONSE_FRACTION = 0.4  # of the closed channels and killed callers
_MAX_IN_FLIGHT = 8


@dataclass(frozen=True)
class Abort:
    """The abort of one call, or of several calls of one caller.

    Attributes:
        protocol: `grpc` or `http`.
        kind: A kind of `ABORTS`.
        number: Number of the abort.
        moment: When to abort, as a fraction of the current duration of a call.
        at_response: For several calls: abort at the first response. Calls that were batched together are then being sent, too.
        part: In [0, 1): how much of a request is sent, or of a response is read.
        batch: Images per call.
        outputs: Requested outputs; none means all.
        in_flight: Number of calls.
    """

    protocol: str
    kind: str
    number: int
    moment: float
    at_response: bool
    part: float
    batch: int
    outputs: tuple[str, ...]
    in_flight: int


def draw_aborts(protocol: str, counts: Mapping[str, int], seed: int) -> list[Abort]:
    """Draw `counts` aborts of each kind, in random order."""
    generator = np.random.default_rng((seed, sorted(ABORTS).index(protocol)))
    kinds = generator.permutation([kind for kind, count in counts.items() for _ in range(count)])
    return [
        Abort(
            protocol=protocol,
            kind=str(kind),
            number=number,
            moment=float(generator.uniform(0, _EARLY if generator.random() < _EARLY_FRACTION else LATEST)),
            at_response=kind in ("close", "kill") and bool(generator.random() < _AT_RESPONSE_FRACTION),
            part=float(generator.random()),
            batch=int(generator.choice(BATCHES)),
            outputs=OUTPUT_CHOICES[int(generator.integers(len(OUTPUT_CHOICES)))],
            in_flight=int(generator.integers(2, _MAX_IN_FLIGHT + 1)) if kind in ("close", "kill") else 1,
        )
        for number, kind in enumerate(kinds)
    ]


def scale_counts(scale: float) -> dict[str, dict[str, int]]:
    """Return the counts of `ABORTS` times `scale`, at least one of each kind."""
    return {protocol: {kind: max(1, round(scale * count)) for kind, count in kinds.items()} for protocol, kinds in ABORTS.items()}
