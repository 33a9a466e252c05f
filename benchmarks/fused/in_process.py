"""Cost of members as one graph, in this process and on one thread, without other overhead."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.figures import round_ratios, spread
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member

SIZES = (1, 2, 4, 8)
BATCHES = (1, 16, 64)
# The largest allowed cost of a fused graph of M members, relative to M single members.
GOAL = 1.2
GOAL_WIDTH, GOAL_BATCHES = 16, (16, 64)


def equal_weight_ensemble(members: Sequence[ExportedMember]) -> Ensemble:
    """Return an ensemble of the members with equal weights."""
    return Ensemble("ensemble", tuple(Member(member.name) for member in members))


def fuse_members(members: Sequence[ExportedMember]) -> bytes:
    """Return members with equal weights as one ONNX graph."""
    return fused_onnx([member.onnx for member in members], equal_weight_ensemble(members))


def measure_in_process(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    on_progress: OnProgress = silent,
) -> list[dict[str, Any]]:
    """Measure, for each number M of members and each batch, the time of a call of the fused graph, relative to M calls of one member.

    In each round every form is called for at least `seconds`, in turn, and ratios are within rounds. Time is processor time of this thread,
    which does all of the work: it excludes other processes, apart from their effect on the caches.
    """
    single = session_from_onnx(members[0].onnx)
    fused = {size: session_from_onnx(fuse_members(members[:size])) for size in sizes}
    costs: list[dict[str, Any]] = []
    for batch in batches:
        batch_images = images[:batch]
        durations: dict[int, list[float]] = {size: [] for size in (0, *sizes)}
        for _ in range(rounds):
            for size, times in durations.items():
                session, output = (fused[size], "probabilities") if size else (single, "logits")
                times.append(_seconds_a_call(session, output, batch_images, seconds))
        for size in sizes:
            ratio = spread(round_ratios(durations[size], [size * seconds_of_one for seconds_of_one in durations[0]]))
            costs.append(
                {
                    "members": size,
                    "batch": batch,
                    "fused_ms": round(1000 * statistics.median(durations[size]), 4),
                    "single_ms": round(1000 * statistics.median(durations[0]), 4),
                    "fused_by_singles": ratio,
                }
            )
        ratios = {cost["members"]: cost["fused_by_singles"]["median"] for cost in costs[-len(sizes) :]}
        on_progress(f"  batch {batch}: {', '.join(f'M = {size}: {ratio:.2f}' for size, ratio in ratios.items())}")
    return costs


def _seconds_a_call(session: onnxruntime.InferenceSession, output: str, images: NDArray[np.float32], seconds: float) -> float:
    session.run([output], {"images": images})  # warms the caches
    calls, start = 0, time.thread_time()
    while True:
        session.run([output], {"images": images})
        calls += 1
        elapsed = time.thread_time() - start
        if elapsed >= seconds:
            return elapsed / calls


def compute_figures(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Compute the figures from the costs in process, by width."""
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
