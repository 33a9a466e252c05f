"""When is one fused graph better than the pipeline of its members?

Defective ResNet-18s at 3x32x32, averaged: 1, 2, 4 and 8 of them, as an ensemble of Triton's and as one graph. Served, latency for one
caller, throughput for eight, and memory; in process, on one thread, what M members cost beside M times one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import right_answers
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.forms import WrongAnswerError
from benchmarks.common.provenance import surroundings
from benchmarks.fused.in_process import BATCHES, GOAL_WIDTH, SIZES, costs_in_process, figures_of
from benchmarks.fused.page import page
from benchmarks.fused.served import CALLERS, MAX_BATCH_SIZE, compare_served
from defensemble import DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.pipeline_vs_fused/1"
WIDTHS = (GOAL_WIDTH, 64)


@dataclass(frozen=True)
class Effort:
    """Rounds, and for how long a form is timed in each: served after `warm_s`, and in process."""

    rounds: int
    seconds: float
    warm_s: float
    seconds_in_process: float
    widths: tuple[int, ...] = WIDTHS
    sizes: tuple[int, ...] = SIZES


FULL = Effort(rounds=5, seconds=0.8, warm_s=0.25, seconds_in_process=0.15)
QUICK = Effort(rounds=1, seconds=0.3, warm_s=0.1, seconds_in_process=0.05, widths=(GOAL_WIDTH,), sizes=(1, 4))


def measure(
    members: Mapping[int, Sequence[ExportedMember]],
    logits: NDArray[np.float32],
    images: NDArray[np.float32],
    effort: Effort,
    *,
    batches: Sequence[int] = BATCHES,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Times both forms and returns the result as JSON.

    `members` by width; those of the first width are served, and `logits` (M, N, K) are theirs for `images` (N, C, H, W), with N at least
    eight times the largest batch.

    Raises:
        WrongAnswerError: A form answers something else than numpy's average of the logits.
        DefensembleError, ServerError, RepositoryError: What went wrong.
    """
    costs = {}
    for width, of_width in members.items():
        on_progress(f"width {width}, in process, the cost of M fused by M times one:")
        costs[str(width)] = costs_in_process(
            of_width,
            images,
            rounds=effort.rounds,
            seconds=effort.seconds_in_process,
            sizes=effort.sizes,
            batches=batches,
            on_progress=on_progress,
        )
    served = []
    of_width = next(iter(members.values()))
    for size in effort.sizes:
        with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
            served.append(
                compare_served(
                    of_width[:size],
                    images,
                    right_answers(logits[:size])["probabilities"],
                    Path(folder),
                    rounds=effort.rounds,
                    seconds=effort.seconds,
                    warm_s=effort.warm_s,
                    batches=batches,
                    on_progress=on_progress,
                )
            )
    return {
        "schema": SCHEMA,
        "served_width": next(iter(members)),
        "image_shape": list(images.shape[1:]),
        "rounds": effort.rounds,
        "seconds": effort.seconds,
        "warm_s": effort.warm_s,
        "seconds_in_process": effort.seconds_in_process,
        "in_process": costs,
        "served": served,
        **surroundings(),
        "figures": figures_of(costs),
    }


@benchmark_command("pipeline_vs_fused", quick="one short round, fewer members, width 16 alone", seed="weights, masks and images")
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
def main(options: Options, rounds: int | None) -> NoReturn:
    """Compare an ensemble of Triton's with the same members as one fused graph.

    About 12 minutes on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    base = QUICK if options.quick else FULL
    effort = replace(base, rounds=rounds or base.rounds)
    errors = (WrongAnswerError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measured(effort, options.seed, on_progress), page, options, errors=errors)


def _measured(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(CALLERS) * MAX_BATCH_SIZE, seed)
    networks = {}
    for width in effort.widths:
        # The wider ones are not compared with torch on all images: the narrow ones show that the graphs are right.
        seen = images if width == effort.widths[0] else images[:64]
        networks[width] = untrained_networks(seen, seed, count=max(effort.sizes), width=width, on_progress=on_progress)
    members = {width: of_width.members for width, of_width in networks.items()}
    result = measure(members, networks[effort.widths[0]].logits, images, effort, on_progress=on_progress)
    return {**result, "seed": seed, "member_spec": spec_values(list(effort.widths))}


if __name__ == "__main__":
    main()
