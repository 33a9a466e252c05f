"""What does an ensemble behind Triton cost beside the same networks in the caller's own process?

Five defective ResNet-18s of width 16 at 3x32x32, averaged; asked by 8 callers with 16 images, by 8 with one, and by one with one. Our
client over gRPC and over HTTP, and eight forms without a server, are timed in turn, in rounds, on the same two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import right_answers
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.figures import spread
from benchmarks.common.forms import Form, WrongAnswerError, check_answers
from benchmarks.common.provenance import surroundings
from benchmarks.common.servers import memory, started, written
from benchmarks.common.timing import Timing, time_form
from benchmarks.serving.figures import SETTINGS, Setting, figures_of, result_of
from benchmarks.serving.forms import forms_in_process, forms_served
from benchmarks.serving.page import page
from defensemble import Client, DefensembleError
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.serving_overhead/1"


@dataclass(frozen=True)
class Effort:
    """How long is measured: rounds of `seconds` for each form and setting, each after `warm_s`; and how often the server is started."""

    rounds: int
    seconds: float
    warm_s: float
    starts: int


FULL = Effort(rounds=5, seconds=2.0, warm_s=0.4, starts=5)
QUICK = Effort(rounds=1, seconds=0.4, warm_s=0.2, starts=1)


def measure(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    *,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Serves the members as an ensemble, times all forms in all settings, and returns the result as JSON.

    Images (N, C, H, W) with N at least 128, the most that all callers of a setting hold at once; `expected` are the probabilities that are
    right for them, (N, K). Every form's answers are compared with these first, at each batch size.

    Raises:
        WrongAnswerError: A form answers something else.
        DefensembleError, ServerError, RepositoryError: What went wrong before the first round; later failures are in the result.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = written(Path(folder) / "repository", members)
        starts = []
        for _ in range(effort.starts - 1):
            with started(repository) as (_, start):
                starts.append(start)
        with started(repository) as (server, start), forms_served(server) as served, forms_in_process(members) as in_process:
            starts.append(start)
            on_progress(f"Triton answered after {start.triton_answers_s:.2f} s")
            idle = memory(server)
            forms = [*served, *in_process]
            sizes = sorted({setting.batch for setting in settings})
            worst = max(
                check_answers(form, images[at : at + size], expected[at : at + size]) for form in forms for size in sizes for at in (0, 16)
            )
            on_progress(f"all {len(forms)} forms answer as numpy's average does: within {worst:.1g}, allowed {TOLERANCE:g}")
            results, failures = _rounds(forms, images, settings, effort, seed, on_progress)
            with Client(server.grpc_url) as client:
                machine = surroundings(client.server_metadata() if server.running else None)
            loaded = memory(server) if server.running else None
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
            "start": {field: spread([getattr(one, field) for one in starts]) for field in ("serve_s", "start_s", "triton_answers_s")},
        },
        "failures": failures,
        **machine,
        "figures": figures_of(results, settings),
    }


def _rounds(
    forms: Sequence[Form], images: NDArray[np.float32], settings: Sequence[Setting], effort: Effort, seed: int, on_progress: OnProgress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Each round takes every form in every setting once, in an order of its own: what drifts, drifts for all alike."""
    generator = np.random.default_rng(seed)
    timings: dict[str, dict[str, list[Timing]]] = {setting.key: {form.name: [] for form in forms} for setting in settings}
    failures: dict[str, str] = {}
    began = time.monotonic()
    for number in range(effort.rounds):
        for setting in settings:
            size = setting.callers * setting.batch
            batches = images[:size].reshape(setting.callers, setting.batch, *images.shape[1:])
            for index in generator.permutation(len(forms)):
                form = forms[index]
                if form.name in failures:
                    continue
                try:
                    timing = time_form(form.predict, batches, warm_s=effort.warm_s, seconds=effort.seconds)
                except DefensembleError as error:
                    failures[form.name] = str(error)
                    on_progress(f"{form.name} failed: {error}")
                    continue
                timings[setting.key][form.name].append(timing)
            done = number * len(settings) + settings.index(setting) + 1
            left = (time.monotonic() - began) * (effort.rounds * len(settings) / done - 1)
            on_progress(
                f"round {number + 1} of {effort.rounds}, {setting.title}: {_glance(forms, timings[setting.key])}; {left:.0f} s left"
            )
    kept = {
        setting.key: {name: None if name in failures else rounds for name, rounds in timings[setting.key].items()} for setting in settings
    }
    return {setting.key: result_of(setting, forms, kept[setting.key]) for setting in settings}, failures


def _glance(forms: Sequence[Form], timings: dict[str, list[Timing]]) -> str:
    """The last round's images a second: each protocol's, and the best of the others."""
    last = {form: timings[form.name][-1].images_per_s for form in forms if timings[form.name]}
    served = [f"{form.protocol} {rate:.0f}" for form, rate in last.items() if form.protocol]
    return f"{', '.join(served)}, in process {max(rate for form, rate in last.items() if form.protocol is None):.0f} images/s"


@benchmark_command("serving_overhead", quick="one short round", seed="weights, masks, images and the order in a round")
@click.option("--rounds", type=click.IntRange(1), help=f"Number of rounds.  [default: {FULL.rounds}]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help=f"Seconds for each form in a round.  [default: {FULL.seconds:g}]")
def main(options: Options, rounds: int | None, seconds: float | None) -> NoReturn:
    """Measure what an ensemble behind Triton costs beside the same networks in the caller's own process.

    About seven minutes on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    base = QUICK if options.quick else FULL
    effort = Effort(rounds or base.rounds, seconds or base.seconds, base.warm_s, base.starts)
    errors = (WrongAnswerError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measured(effort, options.seed, on_progress), page, options, errors=errors)


def _measured(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(setting.callers * setting.batch for setting in SETTINGS), seed)
    networks = untrained_networks(images, seed, on_progress=on_progress)
    result = measure(networks.members, images, right_answers(networks.logits)["probabilities"], effort, seed=seed, on_progress=on_progress)
    return {**result, "member_spec": spec_values()}


if __name__ == "__main__":
    main()
