"""What do callers notice of an ensemble that is edited while it serves, and what does an edit take?

Five defective ResNet-18s of width 16 at 3x32x32, eight callers in a loop with 16 images, and one edit after another: every single answer is
held against numpy's, call times during edits against those without, and the server's memory after many edits against that after a few.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.callers import CallersGoneError
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.editing.answers import APART, answer_of, apart, judge
from benchmarks.editing.figures import result_of
from benchmarks.editing.page import page
from benchmarks.editing.plan import State, planned
from benchmarks.editing.under_load import Effort, edited_under_load, logits_of, starting_state, versions_of
from defensemble import DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.edit_under_load/1"
FULL = Effort(edits=50, timed=20, memory_after=(5, 50), quiet_s=4.0, later_quiet_s=1.0, warm_s=3.0)
QUICK = Effort(edits=8, timed=8, memory_after=(2, 8), quiet_s=1.0, later_quiet_s=1.0, warm_s=1.0)
POOL = 128


def measure(
    members: Sequence[ExportedMember],
    later: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    effort: Effort,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Edits an ensemble of `members` under load and returns the result as JSON.

    `later` are exported once it serves: new members, and second versions of those that are there. Callers ask about images of `pool`
    (P, C, H, W).

    Raises:
        CallersGoneError: The callers cannot ask.
        DefensembleError, ServerError, RepositoryError, OSError: What went wrong with the server or with an edit.
    """
    logits = logits_of(members, later, pool)
    start = starting_state(members)

    def between(one: State, other: State) -> float:
        return apart(answer_of(one, logits), answer_of(other, logits), effort.batch)

    changes = planned(
        versions_of(members, later),
        start,
        effort.edits,
        seed,
        differ=lambda one, other: between(one, other) > APART,
        alike_at=effort.memory_after,
    )
    states = [start, *(change.state for change in changes)]
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        edited = edited_under_load(members, later, pool, changes, effort, Path(folder), seed=seed, on_progress=on_progress)
    verdict = judge(
        edited.calls,
        [answer_of(state, logits) for state in states],
        [(made.begin, made.end) for made in edited.made],
        seed=seed,
        batch=effort.batch,
    )
    result = result_of(edited, verdict, effort.timed, effort.memory_after)
    figures = result.pop("figures")
    return {
        "schema": SCHEMA,
        "seed": seed,
        "members": len(members),
        "image_shape": list(pool.shape[1:]),
        "callers": effort.callers,
        "batch": effort.batch,
        "timed_edits": effort.timed,
        "effort": dataclasses.asdict(effort),
        "tolerance": TOLERANCE,
        "least_apart": min(between(one, other) for one, other in itertools.pairwise(states)),
        **result,
        **edited.surroundings,
        "figures": figures,
    }


@benchmark_command(
    "edit_under_load", quick="fewer edits, with shorter times between them", seed="weights, masks, images, edits and batches"
)
def main(options: Options) -> NoReturn:
    """Edit an ensemble while callers ask it, and compare every answer with numpy's.

    About 5 minutes on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    errors = (CallersGoneError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measured(QUICK if options.quick else FULL, options.seed, on_progress), page, options, errors=errors)


def _measured(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import COUNT, random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, count=COUNT + 2, on_progress=on_progress).members
    # The last one is exported again, under the first one's name: its second version.
    later = [members[COUNT], dataclasses.replace(members[COUNT + 1], name=members[0].name)]
    return {**measure(members[:COUNT], later, pool, effort, seed=seed, on_progress=on_progress), "member_spec": spec_values()}


if __name__ == "__main__":
    main()
