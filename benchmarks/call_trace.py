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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import expected_outputs, member_logits
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.forms import Form, WrongAnswerError, check_answers
from benchmarks.common.provenance import machine_info
from benchmarks.common.raw_calls import triton_forms
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from benchmarks.common.timing import time_form
from benchmarks.tracing.figures import compute_figures, summarise
from benchmarks.tracing.page import page
from benchmarks.tracing.server import TracedServer, TraceError, read_calls, traced_server
from defensemble import Client, DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.errors import RepositoryError
from defensemble_server import Server, ServerError

SCHEMA = "defensemble.benchmark.where_a_call_goes/1"
SETTINGS = ((8, 16), (8, 1), (1, 1))
_ATTEMPTS = 5
_IDEAS = Path(__file__).resolve().parent / "tracing" / "ideas.json"


@dataclass(frozen=True)
class Effort:
    """Seconds per setting, seconds before them in which calls are not counted, and about how many calls are traced in each setting."""

    seconds: float
    warm_s: float
    traced: int


FULL = Effort(seconds=8.0, warm_s=0.5, traced=100)
QUICK = Effort(seconds=2.0, warm_s=0.2, traced=40)


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
    subjects = (
        _Subject("five members", ENSEMBLE, "probabilities", expected),
        _Subject("one member", members[0].name, "logits", member_logits(members[:1], images)[0]),
    )
    settings = [
        _Setting(subject, protocol, images[: callers * batch].reshape(callers, batch, *images.shape[1:]))
        for subject in subjects
        for protocol in ("gRPC", "HTTP")
        for callers, batch in SETTINGS
    ]
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = write_ensemble_repository(Path(folder) / "repository", members)
        with start_server(repository) as (server, _), Client(server.grpc_url) as client:
            machine = machine_info(client.server_metadata())
            worst = max(setting.check(server) for setting in settings)
            rates = [setting.rate(server, effort) for setting in settings]
        results = []
        for setting, rate in zip(settings, rates, strict=True):
            results.append(repeat_after_crash(partial(setting.trace, repository, rate, effort), on_progress))
            on_progress(f"{setting.name}: {results[-1]['traced']} calls traced")
    return {
        "schema": SCHEMA,
        "members": [member.name for member in members],
        "image_shape": list(images.shape[1:]),
        "largest_difference": worst,
        "seconds": effort.seconds,
        "traced": effort.traced,
        "settings": results,
        "tried": json.loads(_IDEAS.read_text()),
        **machine,
        "figures": compute_figures(results),
    }


@dataclass(frozen=True)
class _Subject:
    """What is called: a model, the output that is asked for, and its correct values (N, K) for the images."""

    title: str
    model: str
    output: str
    expected: NDArray[np.float64]


@dataclass(frozen=True)
class _Setting:
    """What is called, how, and with which images (callers, batch, C, H, W)."""

    subject: _Subject
    protocol: str
    batches: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.subject.title}, {self.protocol}, {len(self.batches)} x {self.batches.shape[1]}"

    @contextmanager
    def form(self, server: Server | TracedServer) -> Iterator[Form]:
        """Yield the form that calls a server."""
        with ExitStack() as stack:
            forms = triton_forms(server.http_url, server.grpc_url, self.subject.model, self.subject.output, stack)
            yield next(form for form in forms if form.protocol == self.protocol.lower())

    def check(self, server: Server) -> float:
        """Return the largest difference of an output from the correct one."""
        with self.form(server) as form:
            return check_answers(form, self.batches[0], self.subject.expected[: self.batches.shape[1]])

    def rate(self, server: Server, effort: Effort) -> int:
        """Return of how many calls one is to be traced."""
        with self.form(server) as form:
            timing = time_form(form.predict, self.batches, warm_s=effort.warm_s, seconds=effort.seconds / 4)
        calls = float(timing.images_per_s) * effort.seconds / int(self.batches.shape[1])
        return max(1, round(calls / effort.traced))

    def trace(self, repository: Path, rate: int, effort: Effort) -> dict[str, Any]:
        """Trace one of `rate` calls, by a Triton of its own, and return the result as JSON.

        Raises:
            TraceError: Triton did not start, stopped answering, or wrote no trace.
        """
        trace = repository.with_name("trace.json")
        trace.unlink(missing_ok=True)
        try:
            with traced_server(repository, trace, rate) as server, self.form(server) as form:
                begin = time.monotonic_ns() + int(1e9 * effort.warm_s)
                timing = time_form(form.predict, self.batches, warm_s=effort.warm_s, seconds=effort.seconds)
                end = time.monotonic_ns()
        except (OSError, grpc.RpcError) as error:
            raise TraceError(f"Triton stopped answering: {error}") from error
        calls = [call for call in read_calls(trace) if begin <= call.times.get("REQUEST_START", 0) < end]
        callers, batch = self.batches.shape[:2]
        return {
            "title": self.subject.title,
            "protocol": self.protocol,
            "callers": callers,
            "batch": batch,
            "rate": rate,
            **summarise(calls, statistics.median(timing.calls_ms) if timing.calls_ms else None),
        }


def repeat_after_crash(trace: Callable[[], dict[str, Any]], on_progress: OnProgress) -> dict[str, Any]:
    """Trace a setting, again if Triton crashes: a traced call over HTTP crashes core 2.51 about once in a thousand (server issue 7795).

    Raises:
        TraceError: It failed too often.
    """
    for crashes in range(_ATTEMPTS - 1):
        try:
            return {**trace(), "crashes": crashes}
        except TraceError as error:
            on_progress(f"{error}; core 2.51 crashes now and then while it traces HTTP (server issue 7795); measuring again")
    return {**trace(), "crashes": _ATTEMPTS - 1}


@benchmark_command("call_trace", result="where_a_call_goes", quick="two seconds per setting", seed="weights, masks and images")
def main(options: Options) -> NoReturn:
    """Trace where the time of a call goes: front end, scheduler, members, average, and back.

    Takes about four minutes on two cores, on an otherwise idle machine.
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
