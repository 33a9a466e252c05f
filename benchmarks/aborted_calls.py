"""Does any caller that gives up its calls take the service away from the others, and for how long?

Five small defective networks behind an embedded Triton; tens of thousands of calls over gRPC and HTTP that expire, are cancelled, or
lose their channel, socket or caller at a random moment; beside them eight patient callers that compare every answer with numpy's.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.aborting.figures import result_of
from benchmarks.aborting.page import page
from benchmarks.aborting.under_aborts import Effort, served_under_aborts
from benchmarks.common.answers import logits_of_members
from benchmarks.common.callers import CallersGoneError
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from defensemble import DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.aborted_calls/1"
QUICK_SCALE = 0.02
POOL = 128
WIDTH = 8  # calls are short: what matters is how many are given up


def measure(
    members: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    effort: Effort,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Gives up calls of an ensemble of `members` in every way and returns the result as JSON.

    Calls ask about images of `pool` (P, C, H, W).

    Raises:
        CallersGoneError: A process of callers ended.
        DefensembleError, ServerError, RepositoryError, OSError: What went wrong with the server before the first abort.
    """
    logits = logits_of_members(members, pool)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        aborted = served_under_aborts(members, logits, pool, effort, Path(folder), seed=seed, on_progress=on_progress)
    result = result_of(aborted)
    figures = result.pop("figures")
    return {
        "schema": SCHEMA,
        "seed": seed,
        "members": len(members),
        "image_shape": list(pool.shape[1:]),
        "patient_callers": 2 * effort.patient,
        "effort": dataclasses.asdict(effort),
        "tolerance": TOLERANCE,
        **result,
        **aborted.surroundings,
        "figures": figures,
    }


@benchmark_command(
    "aborted_calls", quick=f"{QUICK_SCALE:.0%} of the aborts", seed="weights, masks, images, moments and batches", example="--scale 0.1"
)
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Fraction of the aborts to make.")
def main(options: Options, scale: float) -> NoReturn:
    """Give up calls in every way beside patient callers, and compare every answer with numpy's.

    At most 15 minutes on two cores. Exit status 1 where a figure does not hold.
    """
    effort = Effort(scale=QUICK_SCALE if options.quick else scale)
    errors = (CallersGoneError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measured(effort, options.seed, on_progress), page, options, errors=errors)


def _measured(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, width=WIDTH, on_progress=on_progress).members
    return {**measure(members, pool, effort, seed=seed, on_progress=on_progress), "member_spec": spec_values(WIDTH)}


if __name__ == "__main__":
    main()
