"""Compare an ensemble behind Triton with FastAPI, and with the same networks in the caller's process.

Five defective ResNet-18s of width 16 at 3x32x32, averaged; called by 8 callers with 16 images, by 8 with one, and by one with one; and one
small member, called by 8 with one. Triton over gRPC and over HTTP, FastAPI, and the forms without a server are timed in turn, in rounds, on
the same two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import expected_outputs, member_logits
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, refuse_nan, run, silent
from benchmarks.common.figures import spread
from benchmarks.common.forms import Form, WrongAnswerError, check_answers
from benchmarks.common.in_process import forms_in_process
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import memory_bytes, start_server, write_ensemble_repository
from benchmarks.common.timing import Timing, time_form
from benchmarks.serving.figures import SETTINGS, Setting, build_result, compute_figures
from benchmarks.serving.forms import FastApiError, forms_of_one_member, forms_served
from benchmarks.serving.page import page
from defensemble import Client, DefensembleError
from defensemble_export import ExportedMember, planned_files, write_files
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.serving_overhead/2"
_SMALL_WIDTH = 8


@dataclass(frozen=True)
class Effort:
    """Number of rounds, seconds per form and setting in each (after `warm_s`), and number of server starts."""

    rounds: int
    seconds: float
    warm_s: float
    starts: int


FULL = Effort(rounds=6, seconds=3.0, warm_s=0.3, starts=5)
QUICK = Effort(rounds=1, seconds=0.4, warm_s=0.2, starts=1)


def measure(
    members: Sequence[ExportedMember],
    one_member: ExportedMember,
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    *,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Serve members as an ensemble, and one by itself, time all forms in all settings, and return the result as JSON.

    The outputs of every form are first compared with the expected ones, at each batch size.

    Args:
        members: The members of the ensemble.
        one_member: A network with another name, which is served without an ensemble.
        images: (N, C, H, W), with N at least 128, the largest number that all callers of a setting use together.
        expected: The correct probabilities (N, K) for `images`.
        effort: Rounds and durations.
        seed: Seed of the order in a round.
        settings: Numbers of callers and batch sizes.
        on_progress: Called with the current step.

    Raises:
        WrongAnswerError: The outputs of a form are wrong.
        FastApiError, DefensembleError, ServerError, RepositoryError: A failure before the first round; later failures are in the result.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = write_ensemble_repository(Path(folder) / "repository", members)
        write_files(repository, planned_files(repository, [one_member], ensemble=None))
        starts = []
        for _ in range(effort.starts - 1):
            with start_server(repository) as (_, start):
                starts.append(start)
        with (
            start_server(repository) as (server, start),
            forms_served(server, members) as served,
            forms_in_process(members) as in_process,
            forms_of_one_member(server, one_member) as single,
        ):
            starts.append(start)
            on_progress(f"Triton responded after {start.triton_answers_s:.2f} s")
            idle = memory_bytes(server)
            ensemble = [*served, *in_process]
            sizes = sorted({setting.batch for setting in settings})
            expected_logits = member_logits([one_member], images)[0]
            worst = max(
                check_answers(form, images[start : start + size], outputs[start : start + size])
                for forms, outputs in ((ensemble, expected), (single, expected_logits))
                for form in forms
                for size in sizes
                for start in (0, 16)
            )
            on_progress(f"all {len(ensemble)} forms match numpy's average within {worst:.1g}; allowed: {TOLERANCE:g}")
            forms = {setting.key: single if setting.one_member else ensemble for setting in settings}
            results, failures = _rounds(forms, images, settings, effort, seed, on_progress)
            with Client(server.grpc_url) as client:
                machine = machine_info(client.server_metadata() if server.running else None, ("onnx", "onnxruntime", "fastapi", "uvicorn"))
            loaded = memory_bytes(server) if server.running else None
    return {
        "schema": SCHEMA,
        "seed": seed,
        "members": [member.name for member in members],
        "image_shape": list(images.shape[1:]),
        "rounds": effort.rounds,
        "seconds": effort.seconds,
        "warm_s": effort.warm_s,
        "largest_difference": worst,
        "settings": results,
        "server_process": {
            "memory_idle": idle,
            "memory_after_load": loaded,
            "start": {field: spread([getattr(start, field) for start in starts]) for field in ("serve_s", "start_s", "triton_answers_s")},
        },
        "failures": failures,
        **machine,
        "figures": compute_figures(results, settings),
    }


def _rounds(
    forms: Mapping[str, Sequence[Form]],
    images: NDArray[np.float32],
    settings: Sequence[Setting],
    effort: Effort,
    seed: int,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Time every form in every setting once per round, in a new random order, so that drift affects all forms alike."""
    generator = np.random.default_rng(seed)
    timings: dict[str, dict[str, list[Timing]]] = {key: {form.name: [] for form in own} for key, own in forms.items()}
    failures: dict[str, str] = {}
    began = time.monotonic()
    for number in range(effort.rounds):
        for setting in settings:
            size = setting.callers * setting.batch
            batches = images[:size].reshape(setting.callers, setting.batch, *images.shape[1:])
            own = forms[setting.key]
            for index in generator.permutation(len(own)):
                form = own[index]
                if form.name in failures:
                    continue
                try:
                    timing = time_form(form.predict, batches, warm_s=effort.warm_s, seconds=effort.seconds)
                except (OSError, grpc.RpcError) as error:
                    failures[form.name] = str(error)
                    on_progress(f"{form.name} failed: {error}")
                    continue
                timings[setting.key][form.name].append(timing)
            done = number * len(settings) + settings.index(setting) + 1
            left = (time.monotonic() - began) * (effort.rounds * len(settings) / done - 1)
            on_progress(f"round {number + 1} of {effort.rounds}, {setting.title}: {_summary(own, timings[setting.key])}; {left:.0f} s left")
    results = {}
    for setting in settings:
        kept = {name: None if name in failures else rounds for name, rounds in timings[setting.key].items()}
        results[setting.key] = build_result(setting, forms[setting.key], kept)
    return results, failures


def _summary(forms: Sequence[Form], timings: Mapping[str, Sequence[Timing]]) -> str:
    """Summarise the images per second of the last round: each server, and the best form in process."""
    last = {form: timings[form.name][-1].images_per_s for form in forms if timings[form.name]}
    served = [f"{form.protocol} {rate:.0f}" for form, rate in last.items() if form.protocol]
    return f"{', '.join(served)}, in process {max(rate for form, rate in last.items() if form.protocol is None):.0f} images/s"


@benchmark_command("serving_overhead", quick="one short round", seed="weights, masks, images and the order in a round")
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600, min_open=True),
    callback=refuse_nan,
    help=f"Seconds per form in a round.  [default: {FULL.seconds:g}]",
)
def main(options: Options, rounds: int | None, seconds: float | None) -> NoReturn:
    """Compare an ensemble behind Triton with FastAPI, and with the same networks in the caller's process.

    Takes about nine minutes on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    base = QUICK if options.quick else FULL
    effort = Effort(rounds or base.rounds, seconds or base.seconds, base.warm_s, base.starts)
    errors = (FastApiError, WrongAnswerError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(effort, options.seed, on_progress), page, options, errors=errors)


def _measure_networks(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(setting.callers * setting.batch for setting in SETTINGS), seed)
    networks = untrained_networks(images, seed, on_progress=on_progress)
    (small,) = untrained_networks(images, seed, count=1, width=_SMALL_WIDTH, on_progress=on_progress).members
    expected = expected_outputs(networks.logits)["probabilities"]
    result = measure(networks.members, replace(small, name="small"), images, expected, effort, seed=seed, on_progress=on_progress)
    return {**result, "member_spec": spec_values(), "one_member": spec_values(_SMALL_WIDTH)}


if __name__ == "__main__":
    main()
