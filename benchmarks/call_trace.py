"""Trace where the time of a call goes: front end, scheduler, members, average, and back.

Five defective ResNet-18s of width 16 at 3x32x32 behind Triton, and one of them; over HTTP and gRPC; called by 8 callers with 16 images, by
8 with one, and by one with one.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import expected_outputs, member_logits
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.forms import WrongAnswerError, check_answers
from benchmarks.common.provenance import machine_info
from benchmarks.common.raw_calls import triton_forms
from benchmarks.common.servers import ENSEMBLE, write_ensemble_repository
from benchmarks.common.timing import time_form
from benchmarks.tracing.figures import compute_figures, summarise
from benchmarks.tracing.page import page
from benchmarks.tracing.server import TraceError, read_calls, traced_server
from defensemble import Client, DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.where_a_call_goes/1"
SETTINGS = ((8, 16), (8, 1), (1, 1))
_IDEAS = Path(__file__).resolve().parent / "tracing" / "ideas.json"


@dataclass(frozen=True)
class Effort:
    """Seconds per setting, seconds before them in which calls are not counted, and the distance of traced calls."""

    seconds: float
    warm_s: float
    rate: int


FULL = Effort(seconds=8.0, warm_s=0.5, rate=5)
QUICK = Effort(seconds=2.0, warm_s=0.2, rate=1)


def measure(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Trace calls of an ensemble of `members`, and of the first of them, and return the result as JSON.

    Args:
        members: The members.
        images: (N, C, H, W), with N at least 128, the largest number that all callers of a setting use together.
        expected: The correct probabilities (N, K) for `images`.
        effort: Durations.
        on_progress: Called with the current step.

    Raises:
        WrongAnswerError: The outputs of the ensemble or of the member are wrong.
        TraceError, DefensembleError, ServerError, RepositoryError: The server could not be started or traced.
    """
    settings: list[dict[str, Any]] = []
    windows: list[tuple[int, int]] = []
    worst: list[float] = []
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        trace = Path(folder) / "trace.json"
        repository = write_ensemble_repository(Path(folder) / "repository", members)
        with traced_server(repository, trace, effort.rate) as server, ExitStack() as stack:
            for title, model, output, outputs in (
                ("five members", ENSEMBLE, "probabilities", expected),
                ("one member", members[0].name, "logits", member_logits(members[:1], images[:16])[0]),
            ):
                for form in triton_forms(server.http_url, server.grpc_url, model, output, stack):
                    worst.append(check_answers(form, images[:16], outputs[:16]))
                    for callers, batch in SETTINGS:
                        own = images[: callers * batch].reshape(callers, batch, *images.shape[1:])
                        begin = time.monotonic_ns() + int(1e9 * effort.warm_s)
                        timing = time_form(form.predict, own, warm_s=effort.warm_s, seconds=effort.seconds)
                        windows.append((begin, time.monotonic_ns()))
                        settings.append(
                            {"title": title, "protocol": form.name.removeprefix("Triton, "), "callers": callers, "batch": batch}
                        )
                        settings[-1]["call_ms"] = statistics.median(timing.calls_ms) if timing.calls_ms else None
                        on_progress(f"{title}, {form.name}, {callers} x {batch}: {timing.images_per_s:.0f} images/s")
            with Client(server.grpc_url) as client:
                machine = machine_info(client.server_metadata())
        calls = [call for call in read_calls(trace) if "REQUEST_START" in call.times]
    for setting, (begin, end) in zip(settings, windows, strict=True):
        setting |= summarise([call for call in calls if begin <= call.times["REQUEST_START"] < end], setting["call_ms"])
    return {
        "schema": SCHEMA,
        "members": [member.name for member in members],
        "image_shape": list(images.shape[1:]),
        "largest_difference": max(worst),
        "seconds": effort.seconds,
        "trace_rate": effort.rate,
        "settings": settings,
        "tried": json.loads(_IDEAS.read_text()),
        **machine,
        "figures": compute_figures(settings),
    }


@benchmark_command("call_trace", result="where_a_call_goes", quick="two seconds per setting", seed="weights, masks and images")
def main(options: Options) -> NoReturn:
    """Trace where the time of a call goes: front end, scheduler, members, average, and back.

    Takes about two minutes on two cores, on an otherwise idle machine.
    """
    errors = (WrongAnswerError, TraceError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(QUICK if options.quick else FULL, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> Mapping[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(callers * batch for callers, batch in SETTINGS), seed)
    networks = untrained_networks(images, seed, on_progress=on_progress)
    result = measure(networks.members, images, expected_outputs(networks.logits)["probabilities"], effort, on_progress)
    return {**result, "seed": seed, "member_spec": spec_values()}


if __name__ == "__main__":
    main()
