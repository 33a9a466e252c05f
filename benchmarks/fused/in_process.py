"""What members cost once they are one graph, in this process and on one thread, where nothing else is in the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_of
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.figures import round_ratios, spread
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member

SIZES = (1, 2, 4, 8)
BATCHES = (1, 16, 64)
# A fused graph of M members may cost so many times M single ones.
GOAL = 1.2
GOAL_WIDTH, GOAL_BATCHES = 16, (16, 64)


def ensemble_of(members: Sequence[ExportedMember]) -> Ensemble:
    """Members of equal weight."""
    return Ensemble("ensemble", tuple(Member(member.name) for member in members))


def fused_of(members: Sequence[ExportedMember]) -> bytes:
    """Members of equal weight as one graph."""
    return fused_onnx([member.onnx for member in members], ensemble_of(members))


def costs_in_process(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    on_progress: OnProgress = silent,
) -> list[dict[str, Any]]:
    """For each number M of members and each batch, how long one call of the fused graph takes, and its ratio to M calls of one member.

    In each round every form is called for at least `seconds`, in turn, and a ratio is of one round. Time is this thread's processor time,
    which all of the work is in: what other processes do is not counted, but for what it does to the caches.
    """
    single = session_of(members[0].onnx)
    fused = {size: session_of(fused_of(members[:size])) for size in sizes}
    told: list[dict[str, Any]] = []
    for batch in batches:
        some = images[:batch]
        took: dict[int, list[float]] = {size: [] for size in (0, *sizes)}
        for _ in range(rounds):
            for size, times in took.items():
                session, output = (fused[size], "probabilities") if size else (single, "logits")
                times.append(_seconds_a_call(session, output, some, seconds))
        for size in sizes:
            ratio = spread(round_ratios(took[size], [size * one for one in took[0]]))
            told.append(
                {
                    "members": size,
                    "batch": batch,
                    "fused_ms": round(1000 * statistics.median(took[size]), 4),
                    "single_ms": round(1000 * statistics.median(took[0]), 4),
                    "fused_by_singles": ratio,
                }
            )
        ratios = {one["members"]: one["fused_by_singles"]["median"] for one in told[-len(sizes) :]}
        on_progress(f"  batch {batch}: {', '.join(f'M = {size}: {ratio:.2f}' for size, ratio in ratios.items())}")
    return told


def _seconds_a_call(session: onnxruntime.InferenceSession, output: str, images: NDArray[np.float32], seconds: float) -> float:
    session.run([output], {"images": images})  # what the form before has left in the caches is not counted
    calls, began = 0, time.thread_time()
    while True:
        session.run([output], {"images": images})
        calls += 1
        took = time.thread_time() - began
        if took >= seconds:
            return took / calls


def figures_of(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of the costs in process, by width: what was asked for."""
    figures = {}
    for cost in costs[str(GOAL_WIDTH)]:
        if cost["batch"] in GOAL_BATCHES:
            value = cost["fused_by_singles"]["median"]
            figures[f"in_process_width_{GOAL_WIDTH}_batch_{cost['batch']}_members_{cost['members']}"] = {
                "value": value,
                "goal": f"<= {GOAL}",
                "holds": value <= GOAL,
            }
    return figures
