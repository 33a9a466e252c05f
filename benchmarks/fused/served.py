"""Time the pipeline and the fused graph behind two Tritons, and the fused graph in the caller's process, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.figures import round_ratios, spread
from benchmarks.common.forms import Form, check_answers, predict_in_process, predict_with
from benchmarks.common.processes import cpu_seconds, pss_bytes
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.common.timing import Predict, Timing, time_form
from benchmarks.fused.in_process import BATCHES, equal_weight_ensemble, fuse_members
from defensemble import Client
from defensemble_export import ExportedMember, fused_member, planned_fused_files, write_files
from defensemble_server import Server

CALLERS = (1, 8)
MAX_BATCH = 64
PIPELINE, FUSED = "pipeline", "fused"
IN_PROCESS = "in process"


def measure_served(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    warm_s: float,
    batches: Sequence[int] = BATCHES,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Measure latency, throughput and memory of both forms of an ensemble.

    Each form has its own Triton with nothing else loaded; both keep running, and the one that is not called is idle. In process, the
    fused graph runs on two threads for one caller, and on one thread for each of eight.

    Args:
        members: The members.
        images: (N, C, H, W).
        expected: The ensemble's probabilities (N, K) for `images`.
        folder: Folder for the repositories.
        rounds: Number of rounds.
        seconds: Seconds per form in a round.
        warm_s: Seconds of warm-up before each.
        batches: Batch sizes.
        on_progress: Called with the current step.

    Raises:
        WrongAnswerError: The outputs of a form are wrong.
        DefensembleError, ServerError, ExportError: The server, a call or the export failed.
    """
    write_ensemble_repository(folder / PIPELINE, members, max_batch_size=MAX_BATCH)
    fused = folder / FUSED
    ensemble = equal_weight_ensemble(members)
    graph = fused_member(FUSED, ensemble, members, images[:MAX_BATCH], max_batch_size=MAX_BATCH)
    write_files(fused, planned_fused_files(fused, graph, ensemble, max_batch_size=MAX_BATCH))
    result: dict[str, Any] = {"members": len(members), "settings": [], "memory": {}}
    with ExitStack() as stack:
        servers: dict[str, Server] = {name: stack.enter_context(start_server(folder / name))[0] for name in (PIPELINE, FUSED)}
        for name, server in servers.items():
            result["memory"][name] = {"idle_pss_bytes": pss_bytes(server.triton_pid)}
        pids = {name: server.triton_pid for name, server in servers.items()}
        clients = {name: stack.enter_context(Client(server.grpc_url)) for name, server in servers.items()}
        content = fuse_members(members)
        in_process = {
            callers: Form(IN_PROCESS, predict_in_process(session_from_onnx(content, 2 if callers == 1 else 1))) for callers in CALLERS
        }
        forms = {
            callers: [*(Form(name, predict_with(client)) for name, client in clients.items()), in_process[callers]] for callers in CALLERS
        }
        for form in (*forms[1], in_process[8]):
            for batch in batches:
                check_answers(form, images[:batch], expected[:batch])
        for callers in CALLERS:
            for batch in batches:
                result["settings"].append(_setting(forms[callers], pids, images, callers, batch, rounds, seconds, warm_s))
                on_progress(f"{len(members)} members, {callers} x {batch}: {_summary(result['settings'][-1])}")
        for name, server in servers.items():
            result["memory"][name]["after_load_pss_bytes"] = pss_bytes(server.triton_pid)
    return result


def _setting(
    forms: Sequence[Form],
    pids: Mapping[str, int],
    images: NDArray[np.float32],
    callers: int,
    batch: int,
    rounds: int,
    seconds: float,
    warm_s: float,
) -> dict[str, Any]:
    caller_images = images[: callers * batch].reshape(callers, batch, *images.shape[1:])
    timings: dict[str, list[Timing]] = {form.name: [] for form in forms}
    processor: dict[str, list[float]] = {name: [] for name in pids}
    for number in range(rounds):
        for form in forms if number % 2 == 0 else reversed(forms):
            image_counts: list[int] = []  # append is atomic
            pid = pids.get(form.name)
            before = 0.0 if pid is None else cpu_seconds(pid)
            timings[form.name].append(time_form(_counting(form, image_counts), caller_images, warm_s=warm_s, seconds=seconds))
            if pid is not None:
                processor[form.name].append(1000 * (cpu_seconds(pid) - before) / sum(image_counts))
    rates = {name: [timing.images_per_s for timing in form_timings] for name, form_timings in timings.items()}
    return {
        "callers": callers,
        "batch": batch,
        "forms": {name: {"images_per_s": spread(rates[name]), "call_ms": _calls(form_timings)} for name, form_timings in timings.items()},
        "fused_by_pipeline": spread(round_ratios(rates[FUSED], rates[PIPELINE])),
        "pipeline_by_in_process": spread(round_ratios(rates[PIPELINE], rates[IN_PROCESS])),
        "fused_by_in_process": spread(round_ratios(rates[FUSED], rates[IN_PROCESS])),
        "server_processor_ms_per_image": {name: spread(values) for name, values in processor.items()},
        "fused_by_pipeline_processor": spread(round_ratios(processor[FUSED], processor[PIPELINE])),
    }


def _counting(form: Form, image_counts: list[int]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        probabilities = form.predict(images)
        image_counts.append(len(images))
        return probabilities

    return predict


def _calls(rounds: Sequence[Timing]) -> dict[str, Any]:
    calls = [call for timing in rounds for call in timing.calls_ms]
    # In a window shorter than a call, no call ends.
    return {"n": len(calls), "p50": round(statistics.median(calls), 3) if calls else None}


def _summary(setting: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {form['images_per_s']['median']:.0f}" for name, form in setting["forms"].items())
    return f"{rates} images/s; fused / pipeline {setting['fused_by_pipeline']['median']:.2f}"
