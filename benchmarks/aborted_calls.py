"""Does any caller that gives up its calls take the service away from the others, and for how long?

Five small defective networks behind an embedded Triton; tens of thousands of calls over gRPC and HTTP that expire, are cancelled, or
lose their channel, socket or caller at a random moment; beside them eight patient callers that compare every answer with numpy's.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.aborting.figures import result_of
from benchmarks.aborting.page import page
from benchmarks.aborting.under_aborts import Effort, served_under_aborts
from benchmarks.editing.callers import CallersGoneError
from benchmarks.editing.under_load import logits_of
from benchmarks.running import run_and_tell
from defensemble import DefensembleError
from defensemble_export import Member
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.aborted_calls/1"
QUICK_SCALE = 0.02
POOL = 128
WIDTH = 8  # calls are short: what matters is how many are given up


def measure(
    members: Sequence[Member],
    pool: NDArray[np.float32],
    effort: Effort,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Gives up calls of an ensemble of `members` in every way and returns the result as JSON.

    Calls ask about images of `pool` (P, C, H, W).

    Raises:
        CallersGoneError: A process of callers ended.
        DefensembleError, ServerError, RepositoryError, OSError: What went wrong with the server before the first abort.
    """
    logits = np.stack(list(logits_of(members, [], pool).values()))
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        run = served_under_aborts(members, logits, pool, effort, Path(folder), seed=seed, say=say)
    told = run.told
    told["versions"] |= {"onnxruntime": onnxruntime.__version__}
    told["hardware"]["cores_used"] = sorted(os.sched_getaffinity(0))
    result = result_of(run)
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
        **told,
        "figures": figures,
    }


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/aborted_calls.py --json docs/results/aborted_calls.json    # and aborted_calls.md beside it
      python benchmarks/aborted_calls.py --quick
    """
)
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result here, and the page beside it."
)
@click.option("--quick", is_flag=True, help=f"A look: {QUICK_SCALE:.0%} of the aborts; it proves nothing.")
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the aborts to make.")
@click.option("--note", help="A sentence for the page, such as what else the machine did meanwhile.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, masks, images, moments and batches.")
def main(out: Path | None, quick: bool, scale: float, note: str | None, seed: int) -> None:
    """Give up calls in every way beside patient callers, and compare every answer with numpy's.

    At most 15 minutes on two cores. Exit status 1 where a figure does not hold.
    """
    effort = Effort(scale=QUICK_SCALE if quick else scale)
    errors = (CallersGoneError, DefensembleError, RepositoryError, ServerError, OSError)
    run_and_tell(lambda say: _measured(effort, seed, say), page, out=out, quick=quick, note=note, errors=errors)


def _measured(effort: Effort, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from benchmarks.serving.members import COUNT, SPEC, random_images, untrained_members

    say(f"{COUNT} networks are made and exported")
    pool = random_images(POOL, seed)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        members, _ = untrained_members(Path(folder), pool, seed, width=WIDTH)
    result = measure(members, pool, effort, seed=seed, say=say)
    return {**result, "member_spec": {**SPEC, "blocks": list(SPEC["blocks"]), "width": WIDTH, "trained": False}}


if __name__ == "__main__":
    main()
