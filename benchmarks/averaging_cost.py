"""Measure the cost of one averaging model with all outputs, compared with a model that computes only the average.

Two graphs of five members, the one that is exported now and the old one with only `probabilities`, are timed in ONNX Runtime on one thread.
The difference is divided by the time of a call of five ResNet-18s of width 16 behind Triton.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run
from benchmarks.common.figures import spread
from benchmarks.common.markdown import format_measurement, format_spread, note_paragraph, quick_warning, short_commit, table
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from defensemble import Client, DefensembleError
from defensemble_export import average_onnx
from defensemble_repository.averaging import TOLERANCE, largest_difference
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.averaging_cost/1"
GOAL = 0.01
MEMBERS = 5
AVERAGES, CLASSES, BATCHES = ("probabilities", "logits"), (10, 1000), (1, 16)
# The old graphs, written by the code of commit 820acde for `weighted_ensemble`: they only have the output `probabilities`.
_OLD = Path(__file__).parent / "averaging"


class DifferentAnswersError(Exception):
    """The old and the new graph have different outputs, so their times cannot be compared."""


@dataclass(frozen=True)
class Effort:
    """Number of measurements: rounds, runs of each graph in a round, and calls of the ensemble."""

    rounds: int
    runs: int
    calls: int


FULL = Effort(rounds=9, runs=1000, calls=400)
QUICK = Effort(rounds=3, runs=100, calls=40)


def weighted_ensemble(average: str) -> Ensemble:
    """Return the ensemble that both graphs average."""
    return Ensemble("ensemble", tuple(Member(f"m{index}", 1, 1 + index / 4) for index in range(MEMBERS)), average)


def time_graphs(average: str, classes: int, batch: int, effort: Effort, seed: int) -> dict[str, Any]:
    """Time both graphs in turn. Returns microseconds of each round: the medians of the old and the new graph, and their difference.

    Raises:
        DifferentAnswersError: The graphs compute different probabilities.
    """
    generator = np.random.default_rng(seed)
    logits = {f"logits_{index}": generator.normal(size=(batch, classes)).astype(np.float32) for index in range(MEMBERS)}
    old = session_from_onnx((_OLD / f"old_{average}_{classes}.onnx").read_bytes())
    new = session_from_onnx(average_onnx(weighted_ensemble(average), classes))
    expected, got = (session.run(["probabilities"], logits)[0] for session in (old, new))
    if (difference := largest_difference(got, expected)) > TOLERANCE:
        raise DifferentAnswersError(f"the graphs of {average} differ by {difference:.3g}; expected at most {TOLERANCE:g}")
    rounds: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(effort.rounds):
        durations: dict[str, list[float]] = {"old": [], "new": []}
        for _ in range(effort.runs):
            for name, session in (("old", old), ("new", new)):
                start = time.perf_counter()
                session.run(None, logits)
                durations[name].append(time.perf_counter() - start)
        for name, seconds in durations.items():
            rounds[name].append(1e6 * statistics.median(seconds))
    return {name: spread(values) for name, values in rounds.items()} | {
        "difference": spread([new_us - old_us for new_us, old_us in zip(rounds["new"], rounds["old"], strict=True)])
    }


def time_calls(repository: Path, images: NDArray[np.float32], effort: Effort) -> tuple[dict[str, float], dict[str, Any]]:
    """Serve a repository. Returns the median milliseconds of one caller's calls over HTTP for each batch, and the machine.

    Raises:
        DefensembleError, ServerError: The server does not start or does not respond.
    """
    durations: dict[str, float] = {}
    with start_server(repository) as (server, _), Client(server.http_url) as client:
        for batch in BATCHES:
            seconds = []
            for number in range(effort.calls + 10):
                start = time.perf_counter()
                client.predict(images[:batch], model=ENSEMBLE)
                if number >= 10:
                    seconds.append(time.perf_counter() - start)
            durations[str(batch)] = round(1000 * statistics.median(seconds), 4)
        return durations, machine_info(client.server_metadata())


def compute_figures(graphs: Mapping[str, Mapping[str, Any]], calls: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Compute for each pair of graphs the difference as a fraction of a call of as many images."""
    figures = {}
    for key, timed in graphs.items():
        value = timed["difference"]["median"] / (1000 * calls[key.rpartition("_")[2]])
        figures[key] = {"value": round(value, 6), "goal": GOAL, "holds": value < GOAL}
    return figures


def measure(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    """Measure graphs and calls, and return the result as JSON.

    Raises:
        DefensembleError, ServerError, RepositoryError, DifferentAnswersError: The measurement failed.
    """
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(BATCHES), seed)
    members = untrained_networks(images, seed, count=MEMBERS, on_progress=on_progress).members
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        calls, machine = time_calls(write_ensemble_repository(Path(folder) / "repository", members), images, effort)
    for size, milliseconds in calls.items():
        on_progress(f"a call of batch {size}: {milliseconds:.3f} ms")
    graphs = {}
    for average in AVERAGES:
        for classes in CLASSES:
            for batch in BATCHES:
                key = f"{average}_{classes}_{batch}"
                graphs[key] = time_graphs(average, classes, batch, effort, seed)
                on_progress(f"{average}, {classes} classes, batch {batch}: {graphs[key]['difference']['median']:+.1f} us")
    return {
        "schema": SCHEMA,
        "seed": seed,
        "rounds": effort.rounds,
        "runs": effort.runs,
        "calls": effort.calls,
        "member_spec": spec_values(),
        "call_ms": calls,
        "call": "five members of width 16 and 10 classes behind Triton, one caller over HTTP, only probabilities",
        "graphs_us": graphs,
        **machine,
        "figures": compute_figures(graphs, calls),
    }


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    rows = []
    for key, timed in result["graphs_us"].items():
        figure = result["figures"][key]
        times = (format_spread(timed[which], ".1f") for which in ("old", "new", "difference"))
        rows.append((key.replace("_", ", "), *times, f"{100 * figure['value']:.2f} %", "holds" if figure["holds"] else "**missed**"))
    calls = ", ".join(f"{milliseconds:.2f} ms with {batch}" for batch, milliseconds in result["call_ms"].items())
    return "\n".join(
        [
            "# Cost of one averaging model with all outputs",
            quick_warning(result),
            format_measurement(result, json_name, "averaging_cost") + f"ONNX Runtime {result['versions']['onnxruntime']}, "
            f"commit {short_commit(result)}, seed {result['seed']}.",
            *note_paragraph(result),
            "",
            f"A call ({result['call']}) takes {calls} images. Times of the graphs are in microseconds, on one thread: median of "
            f"{result['rounds']} rounds of {result['runs']} runs, with minimum and maximum. Goal: a difference below "
            f"{100 * GOAL:g} % of a call.",
            "",
            table(("average, classes, batch", "only `probabilities`", "all outputs", "difference", "fraction of a call", ""), rows),
            "",
        ]
    )


@benchmark_command("averaging_cost", quick="few runs", seed="weights, masks, images and logits")
def main(options: Options) -> NoReturn:
    """Measure the cost of one averaging model with all outputs, compared with a model that computes only the average.

    Takes about a minute on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    errors = (DefensembleError, RepositoryError, ServerError, DifferentAnswersError)
    run(lambda on_progress: measure(QUICK if options.quick else FULL, options.seed, on_progress), page, options, errors=errors)


if __name__ == "__main__":
    main()
