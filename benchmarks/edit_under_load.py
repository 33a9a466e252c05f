"""Measure what callers notice when an ensemble is edited while it serves, and the cost of an edit.

Five defective ResNet-18s of width 16 at 3x32x32, eight callers in a loop with 16 images, and one edit after another. Compared are every
response with numpy's, call times during edits with those without, and the server's memory after many edits with that after a few.
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

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.callers import CallersDiedError
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.editing.answers import MIN_DIFFERENCE, min_difference, state_probabilities, verify_calls
from benchmarks.editing.figures import build_result
from benchmarks.editing.page import page
from benchmarks.editing.plan import State, draw_changes
from benchmarks.editing.under_load import Effort, initial_state, run_under_load, version_counts, version_logits
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
    """Edit an ensemble of `members` under load, and return the result as JSON.

    Args:
        members: The first members.
        later: Exported while the ensemble serves: new members, and second versions of `members`.
        pool: The callers' images (P, C, H, W).
        effort: Number of edits and durations.
        seed: Seed of edits and batches.
        on_progress: Called with the current step.

    Raises:
        CallersDiedError: The callers cannot call.
        DefensembleError, ServerError, RepositoryError, OSError: The server or an edit failed.
    """
    logits = version_logits(members, later, pool)
    start = initial_state(members)

    def difference(first: State, second: State) -> float:
        return min_difference(state_probabilities(first, logits), state_probabilities(second, logits), effort.batch)

    changes = draw_changes(
        version_counts(members, later),
        start,
        effort.edits,
        seed,
        are_distinguishable=lambda first, second: difference(first, second) > MIN_DIFFERENCE,
        same_models_after=effort.memory_after,
    )
    states = [start, *(change.state for change in changes)]
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        edited = run_under_load(members, later, pool, changes, effort, Path(folder), seed=seed, on_progress=on_progress)
    verdict = verify_calls(
        edited.calls,
        [state_probabilities(state, logits) for state in states],
        [(made.begin, made.end) for made in edited.made],
        seed=seed,
        batch=effort.batch,
    )
    result = build_result(edited, verdict, effort.timed, effort.memory_after)
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
        "least_apart": min(difference(first, second) for first, second in itertools.pairwise(states)),
        **result,
        **edited.machine_info,
        "figures": figures,
    }


@benchmark_command(
    "edit_under_load", quick="fewer edits, with shorter times between them", seed="weights, masks, images, edits and batches"
)
def main(options: Options) -> NoReturn:
    """Edit an ensemble while callers use it, and compare every response with numpy's.

    Takes about 5 minutes on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    errors = (CallersDiedError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(QUICK if options.quick else FULL, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import COUNT, random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, count=COUNT + 2, on_progress=on_progress).members
    # The last one is exported under the first one's name, as its second version.
    later = [members[COUNT], dataclasses.replace(members[COUNT + 1], name=members[0].name)]
    return {**measure(members[:COUNT], later, pool, effort, seed=seed, on_progress=on_progress), "member_spec": spec_values()}


if __name__ == "__main__":
    main()
