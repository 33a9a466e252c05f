"""Compare our client with bare callers: tritonclient, the stubs of gRPC, and sockets with ready-made requests.

Five defective ResNet-18s of width 16 at 3x32x32 behind Triton, called by one caller with one image, and by 8 threads or 64 tasks with 16
images each. All forms are timed in turn, in rounds, on the same two cores. The times of imports are measured in processes of their own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.calling.figures import ASYNC_CLIENT, COMPARISONS, P50, RATE, compute_figures, compute_ratios, form_name
from benchmarks.calling.forms import open_forms
from benchmarks.calling.page import page
from benchmarks.calling.timing import OneCaller, time_imports, time_one_caller, time_tasks
from benchmarks.common.answers import expected_outputs
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.figures import spread
from benchmarks.common.forms import Form, WrongAnswerError, check_answers
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.common.timing import Timing, time_form
from defensemble import AsyncClient, Client, DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import Server, ServerError

SCHEMA = "defensemble.benchmark.client/1"
CALLERS, TASKS, BATCH = 8, 64, 16


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: Number of rounds.
        blocks: Turns of each form with one caller in a round.
        calls: Calls in such a turn.
        turns: Turns of each form with many callers in a round.
        seconds: Seconds of such a turn, after `warm_s` or `tasks_warm_s`.
        warm_s: Seconds before that with threads.
        tasks_warm_s: Seconds before that with tasks: longer, because each of their calls waits for those of all others.
        imports: Number of imports.
    """

    rounds: int
    blocks: int
    calls: int
    turns: int
    seconds: float
    warm_s: float
    tasks_warm_s: float
    imports: int


FULL = Effort(rounds=3, blocks=40, calls=20, turns=3, seconds=3.0, warm_s=0.6, tasks_warm_s=3.0, imports=15)
QUICK = Effort(rounds=1, blocks=5, calls=10, turns=1, seconds=1.0, warm_s=0.4, tasks_warm_s=2.5, imports=1)


def measure(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Serve members as an ensemble, time all forms, and return the result as JSON.

    The outputs of every form are first compared with the expected ones.

    Args:
        members: The members.
        images: (N, C, H, W), with N at least `CALLERS * BATCH`.
        expected: The correct probabilities (N, K) for `images`.
        effort: Rounds and durations.
        seed: Seed of the order in a round.
        on_progress: Called with the current step.

    Raises:
        WrongAnswerError: The outputs of a form are wrong.
        DefensembleError, ServerError, RepositoryError, OSError, grpc.RpcError, InferenceServerException: A call failed.
    """
    batches = images[: CALLERS * BATCH].reshape(CALLERS, BATCH, *images.shape[1:])
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = write_ensemble_repository(Path(folder) / "repository", members)
        with start_server(repository) as (server, _), open_forms(server) as forms:
            worst = max(check_answers(form, images[:size], expected[:size]) for form in forms for size in (1, BATCH))
            on_progress(f"all {len(forms)} forms match numpy's average within {worst:.1g}; allowed: {TOLERANCE:g}")
            one_caller, rates = _rounds(server, forms, batches, effort, seed, on_progress)
            imports = time_imports(server.http_url, images.shape[1:], effort.imports)
            with Client(server.http_url) as client:
                machine = machine_info(client.server_metadata(), ("onnxruntime", "tritonclient", "grpcio", "httptools"))
    timings = {
        P50: {name: [timed.p50_ms for timed in timings] for name, timings in one_caller.items()},
        RATE: {name: [timed.images_per_s for timed in timings] for name, timings in rates.items()},
    }
    ratios = compute_ratios(timings)
    return {
        "schema": SCHEMA,
        "seed": seed,
        "members": [member.name for member in members],
        "image_shape": list(images.shape[1:]),
        "effort": dataclasses.asdict(effort),
        "largest_difference": worst,
        "one_caller": {
            "batch": 1,
            "calls": effort.rounds * effort.blocks * effort.calls,
            "forms": {
                name: {P50: spread(timings[P50][name]), "cpu_us": spread([timed.cpu_us for timed in timed_rounds])}
                for name, timed_rounds in one_caller.items()
            },
        },
        "many_callers": {
            "batch": BATCH,
            "threads": CALLERS,
            "tasks": TASKS,
            "forms": {
                name: {RATE: spread(timings[RATE][name]), "calls": sum(len(timed.calls_ms) for timed in timed_rounds)}
                for name, timed_rounds in rates.items()
            },
        },
        "imports": imports,
        "ratios": ratios,
        **machine,
        "figures": compute_figures(ratios, imports),
    }


def _rounds(
    server: Server, forms: Sequence[Form], batches: NDArray[np.float32], effort: Effort, seed: int, on_progress: OnProgress
) -> tuple[dict[str, list[OneCaller]], dict[str, list[Timing]]]:
    """Time every form once per round. Returns, by form, the calls of one caller, and the rates of many callers."""
    generator = np.random.default_rng(seed)
    by_name = {form.name: form for form in forms}
    urls = {form_name("grpc", ASYNC_CLIENT): server.grpc_url, form_name("http", ASYNC_CLIENT): server.http_url}
    one_caller: dict[str, list[OneCaller]] = {name: [] for name in by_name}
    compared = {name for comparison in COMPARISONS if comparison.quantity == RATE for name in (comparison.ours, comparison.theirs)}
    rates: dict[str, list[Timing]] = {name: [] for name in sorted(compared)}
    for number in range(effort.rounds):
        title = f"round {number + 1} of {effort.rounds}"
        timed = time_one_caller(forms, batches[0, :1], blocks=effort.blocks, calls=effort.calls, generator=generator)
        for name, calls in timed.items():
            one_caller[name].append(calls)
        on_progress(f"{title}, one caller: {_summary({name: calls.p50_ms for name, calls in timed.items()})} ms")
        turns: dict[str, list[Timing]] = {name: [] for name in rates}
        for name in itertools.chain.from_iterable(generator.permutation(list(rates)) for _ in range(effort.turns)):
            if name in urls:
                turns[name].append(asyncio.run(_time_async(urls[name], batches, effort)))
            else:
                turns[name].append(time_form(by_name[name].predict, batches, warm_s=effort.warm_s, seconds=effort.seconds))
        for name, own in turns.items():
            rate = statistics.mean(timing.images_per_s for timing in own)
            rates[name].append(Timing(rate, tuple(itertools.chain.from_iterable(timing.calls_ms for timing in own))))
        on_progress(f"{title}, many callers: {_summary({name: own[-1].images_per_s for name, own in rates.items()})} images/s")
    return one_caller, rates


def _summary(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


async def _time_async(url: str, batches: NDArray[np.float32], effort: Effort) -> Timing:
    async with AsyncClient(url) as client:
        return await time_tasks(client.predict, batches, TASKS, warm_s=effort.tasks_warm_s, seconds=effort.seconds)


@benchmark_command("client", quick="one short round", seed="weights, masks, images and the order in a round")
def main(options: Options) -> NoReturn:
    """Compare our client with bare callers of the same server.

    Takes about nine minutes on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    errors = (
        WrongAnswerError,
        DefensembleError,
        RepositoryError,
        ServerError,
        grpc.RpcError,
        InferenceServerException,
        subprocess.CalledProcessError,
    )
    effort = QUICK if options.quick else FULL
    run(lambda on_progress: _measure_networks(effort, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(CALLERS * BATCH, seed)
    networks = untrained_networks(images, seed, on_progress=on_progress)
    expected = expected_outputs(networks.logits)["probabilities"]
    result = measure(networks.members, images, expected, effort, seed=seed, on_progress=on_progress)
    return {**result, "member_spec": spec_values()}


if __name__ == "__main__":
    main()
