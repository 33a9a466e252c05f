"""Compare one fused graph with the pipeline of its members.

Defective ResNet-18s at 3x32x32, averaged: 1, 2, 4 and 8 members, as a Triton ensemble and as one graph. Served: latency for one caller,
throughput for eight, and memory. In process, on one thread: the cost of M members compared with M times one.
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

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import expected_outputs
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.forms import WrongAnswerError
from benchmarks.common.provenance import machine_info
from benchmarks.fused.in_process import BATCHES, GOAL_WIDTH, SIZES, compute_figures, measure_in_process
from benchmarks.fused.page import page
from benchmarks.fused.served import CALLERS, MAX_BATCH, measure_served
from defensemble import DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.pipeline_vs_fused/1"
WIDTHS = (GOAL_WIDTH, 64)


@dataclass(frozen=True)
class Effort:
    """Number of rounds, and seconds per form in each: served (after `warm_s`) and in process."""

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
    """Time both forms, and return the result as JSON.

    Args:
        members: The members by width; those of the first width are served.
        logits: The logits (M, N, K) of the first width's members for `images`.
        images: (N, C, H, W), with N at least eight times the largest batch.
        effort: Rounds and durations.
        batches: Batch sizes.
        on_progress: Called with the current step.

    Raises:
        WrongAnswerError: The outputs of a form differ from numpy's average of the logits.
        DefensembleError, ServerError, RepositoryError: The server or a call failed.
    """
    costs = {}
    for width, members_of_width in members.items():
        on_progress(f"width {width}, in process, cost of M fused members / M times one:")
        costs[str(width)] = measure_in_process(
            members_of_width,
            images,
            rounds=effort.rounds,
            seconds=effort.seconds_in_process,
            sizes=effort.sizes,
            batches=batches,
            on_progress=on_progress,
        )
    served = []
    members_of_width = next(iter(members.values()))
    for size in effort.sizes:
        with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
            served.append(
                measure_served(
                    members_of_width[:size],
                    images,
                    expected_outputs(logits[:size])["probabilities"],
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
        **machine_info(),
        "figures": compute_figures(costs),
    }


@benchmark_command("pipeline_vs_fused", quick="one short round, fewer members, only width 16", seed="weights, masks and images")
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
def main(options: Options, rounds: int | None) -> NoReturn:
    """Compare a Triton ensemble with the same members as one fused graph.

    Takes about 12 minutes on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    base = QUICK if options.quick else FULL
    effort = replace(base, rounds=rounds or base.rounds)
    errors = (WrongAnswerError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(effort, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(CALLERS) * MAX_BATCH, seed)
    networks = {}
    for width in effort.widths:
        # Only the narrow networks are compared with torch on all images: they show that the graphs are correct.
        compared = images if width == effort.widths[0] else images[:64]
        networks[width] = untrained_networks(compared, seed, count=max(effort.sizes), width=width, on_progress=on_progress)
    members = {width: members_of_width.members for width, members_of_width in networks.items()}
    result = measure(members, networks[effort.widths[0]].logits, images, effort, on_progress=on_progress)
    return {**result, "seed": seed, "member_spec": spec_values(list(effort.widths))}


if __name__ == "__main__":
    main()
