"""Measure whether callers that abort their calls disrupt the service for others, and for how long.

Five small defective networks run behind an embedded Triton. Tens of thousands of calls over gRPC and HTTP time out, are cancelled, or lose
their channel, socket or caller at a random moment. Meanwhile eight patient callers compare every response with numpy's.
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

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.aborting.figures import build_result
from benchmarks.aborting.page import page
from benchmarks.aborting.under_aborts import Effort, run_under_aborts
from benchmarks.common.answers import member_logits
from benchmarks.common.callers import CallersDiedError
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, refuse_nan, run, silent
from defensemble import DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.aborted_calls/1"
QUICK_SCALE = 0.02
POOL = 128
WIDTH = 8  # calls are short: the number of aborts matters


def measure(
    members: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    effort: Effort,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Abort calls of an ensemble of `members` in every way, and return the result as JSON.

    Args:
        members: The members.
        pool: The callers' images (P, C, H, W).
        effort: Number of aborts.
        seed: Seed of moments and batches.
        on_progress: Called with the current step.

    Raises:
        CallersDiedError: A process of callers ended.
        DefensembleError, ServerError, RepositoryError, OSError: The server failed before the first abort.
    """
    logits = member_logits(members, pool)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        aborted = run_under_aborts(members, logits, pool, effort, Path(folder), seed=seed, on_progress=on_progress)
    result = build_result(aborted)
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
        **aborted.machine_info,
        "figures": figures,
    }


@benchmark_command(
    "aborted_calls", quick=f"{QUICK_SCALE:.0%} of the aborts", seed="weights, masks, images, moments and batches", example="--scale 0.1"
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 1, min_open=True),
    callback=refuse_nan,
    default=1.0,
    show_default=True,
    help="Fraction of the aborts to make.",
)
def main(options: Options, scale: float) -> NoReturn:
    """Abort calls in every way while patient callers compare every response with numpy's.

    Takes at most 15 minutes on two cores. The exit status is 1 if a figure misses its goal.
    """
    effort = Effort(scale=QUICK_SCALE if options.quick else scale)
    errors = (CallersDiedError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(effort, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, width=WIDTH, on_progress=on_progress).members
    return {**measure(members, pool, effort, seed=seed, on_progress=on_progress), "member_spec": spec_values(WIDTH)}


if __name__ == "__main__":
    main()
