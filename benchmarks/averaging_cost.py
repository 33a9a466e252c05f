"""What does it cost that one model averages and measures uncertainty, where a model of the average alone was run before?

Two graphs of five members, the one that is exported now and the old one of `probabilities` alone, are timed in ONNX Runtime on one thread;
the difference is divided by the time of a call of five ResNet-18s of width 16 behind Triton.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import exit_status, spread
from benchmarks.serving.forms import session_of
from benchmarks.serving.processes import pin, started
from defensemble import Client, DefensembleError
from defensemble.results.provenance import provenance
from defensemble.results.result_file import write_result
from defensemble_export import average_onnx, repository_plan, write_plan
from defensemble_repository.ensemble import Ensemble, Vote
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.averaging_cost/1"
GOAL = 0.01
MEMBERS = 5
AVERAGES, CLASSES, BATCHES = ("probabilities", "logits"), (10, 1000), (1, 16)
# The old graphs, as the code of commit 820acde wrote them for `ensemble_of`: they give `probabilities` alone.
_OLD = Path(__file__).parent / "averaging"


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
    return Ensemble("ensemble", tuple(Vote(f"m{index}", 1, 1 + index / 4) for index in range(MEMBERS)), average)


def time_graphs(average: str, classes: int, batch: int, effort: Effort, seed: int) -> dict[str, Any]:
    """Time both graphs in turn, and return microseconds for each round: the medians of the old and the new, and their difference.

    Raises:
        ValueError: They answer other probabilities.
    """
    generator = np.random.default_rng(seed)
    logits = {f"logits_{index}": generator.normal(size=(batch, classes)).astype(np.float32) for index in range(MEMBERS)}
    old = session_of((_OLD / f"old_{average}_{classes}.onnx").read_bytes(), 1, False)
    new = session_of(average_onnx(ensemble_of(average), classes), 1, False)
    answers = [session.run(["probabilities"], logits)[0] for session in (old, new)]
    if not np.allclose(answers[0], answers[1], atol=1e-6):
        raise ValueError(f"the graphs of {average} differ by {np.abs(answers[0] - answers[1]).max():.3g}")
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
                client.predict(images[:batch], model="ensemble")
                if number >= 10:
                    seconds.append(time.perf_counter() - began)
            taken[str(batch)] = round(1000 * statistics.median(seconds), 4)
        return taken, provenance(client.server_metadata())


def figures_of(graphs: Mapping[str, Mapping[str, Any]], calls: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """For each pair of graphs the difference as a share of a call of as many images."""
    figures = {}
    for key, timed in graphs.items():
        value = timed["difference"]["median"] / (1000 * calls[key.rpartition("_")[2]])
        figures[key] = {"value": round(value, 6), "goal": GOAL, "holds": value < GOAL}
    return figures


def measure(effort: Effort, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure both, and return the result as JSON.

    Raises:
        DefensembleError, ServerError, RepositoryError, ValueError: Why it could not be measured.
    """
    from benchmarks.serving.members import SPEC, random_images, untrained_members

    images = random_images(max(BATCHES), seed)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        say("five networks are made and exported")
        members, _ = untrained_members(Path(folder), images, seed, count=MEMBERS)
        repository = Path(folder) / "repository"
        write_plan(repository, repository_plan(repository, members))
        calls, told = time_calls(repository, images, effort)
    for size, milliseconds in calls.items():
        say(f"a call of batch {size}: {milliseconds:.3f} ms")
    graphs = {}
    for average in AVERAGES:
        for classes in CLASSES:
            for batch in BATCHES:
                key = f"{average}_{classes}_{batch}"
                graphs[key] = time_graphs(average, classes, batch, effort, seed)
                say(f"{average}, {classes} classes, batch {batch}: {graphs[key]['difference']['median']:+.1f} us")
    told["versions"] |= {"onnxruntime": onnxruntime.__version__}
    return {
        "schema": SCHEMA,
        "seed": seed,
        "rounds": effort.rounds,
        "runs": effort.runs,
        "calls": effort.calls,
        "member_spec": {**SPEC, "blocks": list(SPEC["blocks"]), "trained": False},
        "call_ms": calls,
        "call": "five members of width 16 and 10 classes behind Triton, one caller over HTTP, probabilities alone",
        "graphs_us": graphs,
        **told,
        "figures": figures_of(graphs, calls),
    }


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/averaging_cost.py --json docs/results/averaging_cost.json
      python benchmarks/averaging_cost.py --quick
    """
)
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result to FILE, as JSON.")
@click.option("--quick", is_flag=True, help="A look: few runs, which prove nothing.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, masks, images and logits.")
def main(out: Path | None, quick: bool, seed: int) -> None:
    """Measure what one averaging model with all outputs costs, where a model of the average alone was run before.

    About a minute on two cores, which nothing else should use meanwhile. Exit status 1 where a figure does not hold.
    """
    console = Console()
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    pin()
    try:
        result = {**measure(QUICK if quick else FULL, seed, say), "quick": quick, "duration_s": round(time.monotonic() - began, 1)}
        if out is not None:
            write_result(out, result)
    except (DefensembleError, RepositoryError, ServerError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for name, figure in result["figures"].items():
        console.print(
            f"{name}: {100 * figure['value']:.2f} % of a call {'(holds)' if figure['holds'] else '(does NOT hold)'}", highlight=False
        )
    raise SystemExit(exit_status(result["figures"]))


if __name__ == "__main__":
    main()
