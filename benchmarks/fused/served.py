"""The pipeline and the fused graph behind two Tritons, asked in turn, beside the fused graph in the caller's own process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import session_of
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.figures import round_ratios, spread
from benchmarks.common.forms import Form, asked_in_process, asked_of, check_answers
from benchmarks.common.processes import processor_seconds, pss_bytes
from benchmarks.common.servers import started, written
from benchmarks.common.timing import Predict, Timing, time_form
from benchmarks.fused.in_process import BATCHES, ensemble_of, fused_of
from defensemble import Client
from defensemble_export import ExportedMember, fused_member, fused_plan, write_files
from defensemble_server import Server

CALLERS = (1, 8)
MAX_BATCH_SIZE = 64
PIPELINE, FUSED = "pipeline", "fused"
IN_PROCESS = "in process"


def compare_served(
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
    """Latency, throughput and memory of both forms of one ensemble; `expected` are its probabilities for `images`, (N, K).

    Each form has a Triton of its own, which holds nothing else; both stay up, and the one that is not asked does nothing. In process the
    fused graph runs on two threads for one caller, and on one for each of eight.

    Raises:
        WrongAnswerError: a form answers something else.
        DefensembleError, ServerError, ExportError: what went wrong.
    """
    written(folder / PIPELINE, members, max_batch_size=MAX_BATCH_SIZE)
    fused = folder / FUSED
    ensemble = ensemble_of(members)
    graph = fused_member(FUSED, ensemble, members, images[:MAX_BATCH_SIZE], max_batch_size=MAX_BATCH_SIZE)
    write_files(fused, fused_plan(fused, graph, ensemble, max_batch_size=MAX_BATCH_SIZE))
    told: dict[str, Any] = {"members": len(members), "settings": [], "memory": {}}
    with ExitStack() as stack:
        servers: dict[str, Server] = {name: stack.enter_context(started(folder / name))[0] for name in (PIPELINE, FUSED)}
        for name, server in servers.items():
            told["memory"][name] = {"idle_pss_bytes": pss_bytes(server.triton_pid)}
        pids = {name: server.triton_pid for name, server in servers.items()}
        clients = {name: stack.enter_context(Client(server.grpc_url)) for name, server in servers.items()}
        content = fused_of(members)
        near = {callers: Form(IN_PROCESS, asked_in_process(session_of(content, 2 if callers == 1 else 1))) for callers in CALLERS}
        forms = {callers: [*(Form(name, asked_of(client)) for name, client in clients.items()), near[callers]] for callers in CALLERS}
        for form in (*forms[1], near[8]):
            for batch in batches:
                check_answers(form, images[:batch], expected[:batch])
        for callers in CALLERS:
            for batch in batches:
                told["settings"].append(_setting(forms[callers], pids, images, callers, batch, rounds, seconds, warm_s))
                on_progress(f"{len(members)} members, {callers} x {batch}: {_glance(told['settings'][-1])}")
        for name, server in servers.items():
            told["memory"][name]["after_load_pss_bytes"] = pss_bytes(server.triton_pid)
    return told


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
    own = images[: callers * batch].reshape(callers, batch, *images.shape[1:])
    timings: dict[str, list[Timing]] = {form.name: [] for form in forms}
    processor: dict[str, list[float]] = {name: [] for name in pids}
    for number in range(rounds):
        for form in forms if number % 2 == 0 else reversed(forms):
            asked: list[int] = []  # an append is one step for all threads
            pid = pids.get(form.name)
            before = 0.0 if pid is None else processor_seconds(pid)
            timings[form.name].append(time_form(_counted(form, asked), own, warm_s=warm_s, seconds=seconds))
            if pid is not None:
                processor[form.name].append(1000 * (processor_seconds(pid) - before) / sum(asked))
    rates = {name: [one.images_per_s for one in rounds_of] for name, rounds_of in timings.items()}
    return {
        "callers": callers,
        "batch": batch,
        "forms": {name: {"images_per_s": spread(rates[name]), "call_ms": _calls(rounds_of)} for name, rounds_of in timings.items()},
        "fused_by_pipeline": spread(round_ratios(rates[FUSED], rates[PIPELINE])),
        "pipeline_by_in_process": spread(round_ratios(rates[PIPELINE], rates[IN_PROCESS])),
        "fused_by_in_process": spread(round_ratios(rates[FUSED], rates[IN_PROCESS])),
        "server_processor_ms_per_image": {name: spread(of) for name, of in processor.items()},
        "fused_by_pipeline_processor": spread(round_ratios(processor[FUSED], processor[PIPELINE])),
    }


def _counted(form: Form, asked: list[int]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        answer = form.predict(images)
        asked.append(len(images))
        return answer

    return predict


def _calls(rounds: Sequence[Timing]) -> dict[str, Any]:
    calls = [call for one in rounds for call in one.calls_ms]
    # A window that is shorter than any call has none that came back in it.
    return {"n": len(calls), "p50": round(statistics.median(calls), 3) if calls else None}


def _glance(setting: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {form['images_per_s']['median']:.0f}" for name, form in setting["forms"].items())
    return f"{rates} images/s; fused by pipeline {setting['fused_by_pipeline']['median']:.2f}"
