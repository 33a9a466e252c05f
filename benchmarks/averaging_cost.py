"""What does it cost that one model averages and measures uncertainty, where a model of the average alone was run before?

Two graphs of five members, the one that is exported now and the old one of `probabilities` alone, are timed in ONNX Runtime on one thread;
the difference is divided by the time of a call of five ResNet-18s of width 16 behind Triton.
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

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import session_of
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run
from benchmarks.common.figures import spread
from benchmarks.common.markdown import commit, look, measured_on, note, ranged, table
from benchmarks.common.provenance import surroundings
from benchmarks.common.servers import ENSEMBLE, started, written
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
# The old graphs, as the code of commit 820acde wrote them for `ensemble_of`: they give `probabilities` alone.
_OLD = Path(__file__).parent / "averaging"


class DifferentAnswersError(Exception):
    """The old and the new graph answer differently, so that their times cannot be compared."""


@dataclass(frozen=True)
class Effort:
    """How often is measured: rounds of `runs` of each graph, and `calls` of the ensemble."""

    rounds: int
    runs: int
    calls: int


FULL = Effort(rounds=9, runs=1000, calls=400)
QUICK = Effort(rounds=3, runs=100, calls=40)


def ensemble_of(average: str) -> Ensemble:
    """The ensemble that both graphs average."""
    return Ensemble("ensemble", tuple(Member(f"m{index}", 1, 1 + index / 4) for index in range(MEMBERS)), average)


def time_graphs(average: str, classes: int, batch: int, effort: Effort, seed: int) -> dict[str, Any]:
    """Time both graphs in turn, and return microseconds for each round: the medians of the old and the new, and their difference.

    Raises:
        DifferentAnswersError: They answer other probabilities.
    """
    generator = np.random.default_rng(seed)
    logits = {f"logits_{index}": generator.normal(size=(batch, classes)).astype(np.float32) for index in range(MEMBERS)}
    old = session_of((_OLD / f"old_{average}_{classes}.onnx").read_bytes())
    new = session_of(average_onnx(ensemble_of(average), classes))
    expected, got = (session.run(["probabilities"], logits)[0] for session in (old, new))
    if (difference := largest_difference(got, expected)) > TOLERANCE:
        raise DifferentAnswersError(f"the graphs of {average} differ by {difference:.3g}, allowed are {TOLERANCE:g}")
    rounds: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(effort.rounds):
        taken: dict[str, list[float]] = {"old": [], "new": []}
        for _ in range(effort.runs):
            for name, session in (("old", old), ("new", new)):
                began = time.perf_counter()
                session.run(None, logits)
                taken[name].append(time.perf_counter() - began)
        for name, seconds in taken.items():
            rounds[name].append(1e6 * statistics.median(seconds))
    return {name: spread(values) for name, values in rounds.items()} | {
        "difference": spread([new_us - old_us for new_us, old_us in zip(rounds["new"], rounds["old"], strict=True)])
    }


def time_calls(repository: Path, images: NDArray[np.float32], effort: Effort) -> tuple[dict[str, float], dict[str, Any]]:
    """Serve `repository`, and return the median milliseconds of one caller's calls over HTTP for each batch, and what served.

    Raises:
        DefensembleError, ServerError: It does not start, or does not answer.
    """
    taken: dict[str, float] = {}
    with started(repository) as (server, _), Client(server.http_url) as client:
        for batch in BATCHES:
            seconds = []
            for number in range(effort.calls + 10):
                began = time.perf_counter()
                client.predict(images[:batch], model=ENSEMBLE)
                if number >= 10:
                    seconds.append(time.perf_counter() - began)
            taken[str(batch)] = round(1000 * statistics.median(seconds), 4)
        return taken, surroundings(client.server_metadata())


def figures_of(graphs: Mapping[str, Mapping[str, Any]], calls: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """For each pair of graphs the difference as a share of a call of as many images."""
    figures = {}
    for key, timed in graphs.items():
        value = timed["difference"]["median"] / (1000 * calls[key.rpartition("_")[2]])
        figures[key] = {"value": round(value, 6), "goal": GOAL, "holds": value < GOAL}
    return figures


def measure(effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    """Measure both, and return the result as JSON.

    Raises:
        DefensembleError, ServerError, RepositoryError, DifferentAnswersError: Why it could not be measured.
    """
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(max(BATCHES), seed)
    members = untrained_networks(images, seed, count=MEMBERS, on_progress=on_progress).members
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        calls, machine = time_calls(written(Path(folder) / "repository", members), images, effort)
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
        "call": "five members of width 16 and 10 classes behind Triton, one caller over HTTP, probabilities alone",
        "graphs_us": graphs,
        **machine,
        "figures": figures_of(graphs, calls),
    }


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    rows = []
    for key, timed in result["graphs_us"].items():
        figure = result["figures"][key]
        times = (ranged(timed[which], ".1f") for which in ("old", "new", "difference"))
        rows.append((key.replace("_", ", "), *times, f"{100 * figure['value']:.2f} %", "holds" if figure["holds"] else "**missed**"))
    calls = ", ".join(f"{milliseconds:.2f} ms with {batch}" for batch, milliseconds in result["call_ms"].items())
    return "\n".join(
        [
            "# What one averaging model with all outputs costs",
            look(result),
            measured_on(result, json_name, "averaging_cost") + f"ONNX Runtime {result['versions']['onnxruntime']}, "
            f"commit {commit(result)}, seed {result['seed']}.",
            *note(result),
            "",
            f"A call ({result['call']}) takes {calls} images. Times of the graphs in microseconds, on one thread: median of "
            f"{result['rounds']} rounds of {result['runs']} runs, smallest and largest in brackets. Goal: a difference below "
            f"{100 * GOAL:g} % of a call.",
            "",
            table(("average, classes, batch", "`probabilities` alone", "all outputs", "difference", "by a call", ""), rows),
            "",
        ]
    )


@benchmark_command("averaging_cost", quick="few runs", seed="weights, masks, images and logits")
def main(options: Options) -> NoReturn:
    """Measure what one averaging model with all outputs costs, where a model of the average alone was run before.

    About a minute on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    errors = (DefensembleError, RepositoryError, ServerError, DifferentAnswersError)
    run(lambda on_progress: measure(QUICK if options.quick else FULL, options.seed, on_progress), page, options, errors=errors)


if __name__ == "__main__":
    main()
