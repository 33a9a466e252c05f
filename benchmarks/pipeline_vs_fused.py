"""When is one fused graph better than the pipeline of its members?

Defective ResNet-18s at 3x32x32, averaged: 1, 2, 4 and 8 of them, as an ensemble of Triton's and as one graph. Served, latency for one
caller, throughput for eight, and memory; in process, on one thread, what M members cost beside M times one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fused.in_process import BATCHES, GOAL_WIDTH, SIZES, costs_in_process, figures_of
from benchmarks.fused.page import page
from benchmarks.fused.served import CALLERS, LARGEST_BATCH, compare_served
from benchmarks.running import run_and_tell
from benchmarks.serving.forms import WrongAnswerError, average_of_logits
from defensemble import DefensembleError
from defensemble.results.provenance import provenance
from defensemble_export import Member
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
    members: Mapping[int, Sequence[Member]],
    logits: NDArray[np.float32],
    images: NDArray[np.float32],
    effort: Effort,
    *,
    batches: Sequence[int] = BATCHES,
    say: Callable[[str], None] = lambda text: None,
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
        say(f"width {width}, in process, the cost of M fused by M times one:")
        costs[str(width)] = costs_in_process(
            of_width, images, rounds=effort.rounds, seconds=effort.seconds_in_process, sizes=effort.sizes, batches=batches, say=say
        )
    served = []
    of_width = next(iter(members.values()))
    for size in effort.sizes:
        with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
            served.append(
                compare_served(
                    of_width[:size],
                    images,
                    average_of_logits(logits[:size]),
                    Path(folder),
                    rounds=effort.rounds,
                    seconds=effort.seconds,
                    warm_s=effort.warm_s,
                    batches=batches,
                    say=say,
                )
            )
    told = provenance()
    told["versions"] |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    told["hardware"]["cores_used"] = sorted(os.sched_getaffinity(0))
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
        **told,
        "figures": figures_of(costs),
    }


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/pipeline_vs_fused.py --json docs/results/pipeline_vs_fused.json    # and pipeline_vs_fused.md beside it
      python benchmarks/pipeline_vs_fused.py --quick
    """
)
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result here, and the page beside it."
)
@click.option("--quick", is_flag=True, help="A look: one short round, fewer members, width 16 alone; it proves nothing.")
@click.option("--rounds", type=click.IntRange(1), help=f"Rounds; {FULL.rounds} unless told otherwise.")
@click.option("--note", help="A sentence for the page, such as what else the machine did meanwhile.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, masks and images.")
def main(out: Path | None, quick: bool, rounds: int | None, note: str | None, seed: int) -> None:
    """Compare an ensemble of Triton's with the same members as one fused graph.

    About 12 minutes on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    base = QUICK if quick else FULL
    effort = Effort(rounds or base.rounds, base.seconds, base.warm_s, base.seconds_in_process, base.widths, base.sizes)
    errors = (WrongAnswerError, DefensembleError, RepositoryError, ServerError, OSError)
    run_and_tell(lambda say: _measured(effort, seed, say), page, out=out, quick=quick, note=note, errors=errors)


def _measured(effort: Effort, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from benchmarks.serving.members import SPEC, random_images, untrained_members

    images = random_images(max(CALLERS) * LARGEST_BATCH, seed)
    members, answers = {}, []
    for width in effort.widths:
        say(f"{max(effort.sizes)} networks of width {width} are made and exported")
        with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
            # The wider ones are not compared with torch on all images: the narrow ones show that the graphs are right.
            seen = images if width == effort.widths[0] else images[:64]
            members[width], logits = untrained_members(Path(folder), seen, seed, count=max(effort.sizes), width=width)
        answers.append(logits)
    result = measure(members, answers[0], images, effort, say=say)
    spec = {**SPEC, "blocks": list(SPEC["blocks"]), "width": list(effort.widths), "trained": False}
    return {**result, "seed": seed, "member_spec": spec}


if __name__ == "__main__":
    main()
