"""What does an ensemble behind Triton cost beside the same networks in the caller's own process?

Five defective ResNet-18s of width 16 at 3x32x32, averaged; asked by 8 callers with 16 images, by 8 with one, and by one with one. Our
client over gRPC and over HTTP, and eight forms without a server, are timed in turn, in rounds, on the same two cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import exit_status, spread
from benchmarks.serving.figures import SETTINGS, Setting, figures_of, result_of
from benchmarks.serving.forms import TOLERANCE, Form, average_of_logits, check_answers, forms_in_process, forms_served
from benchmarks.serving.processes import memory, pin, started
from benchmarks.serving.tables import show
from benchmarks.serving.timing import Timing, time_form
from defensemble import Client, DefensembleError
from defensemble.results.provenance import provenance
from defensemble.results.result_file import write_result
from defensemble_export import Member, repository_plan, write_plan
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
    members: Sequence[Member],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    *,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Serves the members as an ensemble, times all forms in all settings, and returns the result as JSON.

    Images (N, C, H, W) with N at least 128, the most that all callers of a setting hold at once; `expected` are the probabilities that are
    right for them, (N, K). Every form's answers are compared with these first, at each batch size.

    Raises:
        WrongAnswerError: A form answers something else.
        DefensembleError, ServerError, RepositoryError: What went wrong before the first round; later failures are in the result.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = Path(folder) / "repository"
        write_plan(repository, repository_plan(repository, members))
        starts = []
        for _ in range(effort.starts - 1):
            with started(repository) as (_, start):
                starts.append(start)
        with started(repository) as (server, start), forms_served(server) as served, forms_in_process(members) as in_process:
            starts.append(start)
            say(f"Triton answered after {start.triton_answers_s:.2f} s")
            idle = memory(server)
            forms = [*served, *in_process]
            sizes = sorted({setting.batch for setting in settings})
            worst = max(
                check_answers(form, images[at : at + size], expected[at : at + size]) for form in forms for size in sizes for at in (0, 16)
            )
            say(f"all {len(forms)} forms answer as numpy's average does: within {worst:.1g}, allowed {TOLERANCE:g}")
            results, failures = _rounds(forms, images, settings, effort, seed, say)
            with Client(server.grpc_url) as client:
                told = provenance(client.server_metadata() if server.running else None)
            loaded = memory(server) if server.running else None
    told["versions"] |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    told["hardware"]["cores_used"] = sorted(os.sched_getaffinity(0))
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
        **told,
        "figures": figures_of(results, settings),
    }


def _rounds(
    forms: Sequence[Form], images: NDArray[np.float32], settings: Sequence[Setting], effort: Effort, seed: int, say: Callable[[str], None]
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
                    say(f"{form.name} failed: {error}")
                    continue
                timings[setting.key][form.name].append(timing)
            done = number * len(settings) + settings.index(setting) + 1
            left = (time.monotonic() - began) * (effort.rounds * len(settings) / done - 1)
            say(f"round {number + 1} of {effort.rounds}, {setting.title}: {_glance(forms, timings[setting.key])}; {left:.0f} s left")
    kept = {
        setting.key: {name: None if name in failures else rounds for name, rounds in timings[setting.key].items()} for setting in settings
    }
    return {setting.key: result_of(setting, forms, kept[setting.key]) for setting in settings}, failures


def _glance(forms: Sequence[Form], timings: dict[str, list[Timing]]) -> str:
    """The last round's images a second: each protocol's, and the best of the others."""
    last = {form: timings[form.name][-1].images_per_s for form in forms if timings[form.name]}
    served = [f"{form.protocol} {rate:.0f}" for form, rate in last.items() if form.protocol]
    return f"{', '.join(served)}, in process {max(rate for form, rate in last.items() if form.protocol is None):.0f} images/s"


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/serving_overhead.py --json runs/serving_overhead.json
      python benchmarks/serving_overhead.py --quick
    """
)
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result here, as JSON.")
@click.option("--quick", is_flag=True, help="A look: one short round, which proves nothing.")
@click.option("--rounds", type=click.IntRange(1), help=f"Rounds; {FULL.rounds} unless told otherwise.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help=f"For each form in a round; {FULL.seconds:g} unless told otherwise."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, masks, images and the order in a round.")
def main(out: Path | None, quick: bool, rounds: int | None, seconds: float | None, seed: int) -> None:
    """Measure what an ensemble behind Triton costs beside the same networks in the caller's own process.

    About seven minutes on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    console = Console()
    base = QUICK if quick else FULL
    effort = Effort(rounds or base.rounds, seconds or base.seconds, base.warm_s, base.starts)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    pin()
    try:
        result = {**_measured(effort, seed, say), "quick": quick, "duration_s": round(time.monotonic() - began, 1)}
        if out is not None:
            write_result(out, result)
    except (DefensembleError, RepositoryError, ServerError, OSError) as error:
        raise click.ClickException(str(error)) from error
    show(result, console)
    if out is not None:
        console.print(str(out.resolve()), highlight=False, soft_wrap=True)
    raise SystemExit(exit_status(result["figures"]))


def _measured(effort: Effort, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    say("five networks are made and exported")
    from benchmarks.serving.members import SPEC, random_images, untrained_members

    images = random_images(max(setting.callers * setting.batch for setting in SETTINGS), seed)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        members, logits = untrained_members(Path(folder), images, seed, on_built=lambda name: say(f"  {name}"))
    result = measure(members, images, average_of_logits(logits), effort, seed=seed, say=say)
    return {**result, "member_spec": {**SPEC, "blocks": list(SPEC["blocks"]), "trained": False}}


if __name__ == "__main__":
    main()
