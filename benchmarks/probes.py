"""Measure what the probes add to the calls of a client: the base, a decision attack, and noise.

Five defective ResNet-18s of the zoo at 3x32x32, averaged and served over HTTP.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import cifar10_for, zoo_options
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.figures import at_least_figure, at_most_figure, spread
from benchmarks.common.markdown import quick_warning, table_row
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import ENSEMBLE, start_server
from benchmarks.probing.bare_foolbox import attack_images
from defensemble import Client
from defensemble.probes import (
    Boundary,
    Condition,
    FunctionTarget,
    LabelledImages,
    Noise,
    PerturbationProbe,
    ProbeImage,
    RunOptions,
    measure as measure_probe,
    served_targets,
)
from defensemble_export import export_checkpoints
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError
from defensemble_training import TrainingError

SCHEMA = "defensemble.benchmark.probes/1"
MEMBERS = ("keep0.1", "keep0.3", "keep0.5", "keep0.7", "keep0.1-other")
PROCESSES = 2
BASE_GOAL, FOOLBOX_GOAL, NOISE_GOAL, THROUGHPUT_GOAL = 0.02, 1.1, 1.2, 0.8


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: Rounds, in each of which everything is measured once.
        noise_images: Images of the noise probe.
        boundary_images: Images of the boundary attack against bare Foolbox.
        boundary_steps: Steps of it.
        lanes: Images of the boundary attack whose throughput is measured.
        lane_steps: Steps of it.
    """

    rounds: int = 3
    noise_images: int = 5000
    boundary_images: int = 16
    boundary_steps: int = 500
    lanes: int = 64
    lane_steps: int = 600


@dataclass(frozen=True)
class Unchanged(PerturbationProbe):
    """A probe that costs nothing itself.

    Example:
        >>> measure_probe(Unchanged(), targets, data)
    """

    name: ClassVar[str] = "unchanged"
    title: ClassVar[str] = "Unchanged images"
    threat_model: ClassVar[str] = "no attacker"

    def conditions(self) -> Sequence[Condition]:
        """Return four conditions."""
        return [Condition(f"again {number}") for number in range(4)]

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the image."""
        return image.pixels


def measure(repository: Path, images: NDArray[np.float32], sizes: Sizes, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Serve an ensemble, measure the probes and plain calls of it, and return the result as JSON.

    Args:
        repository: The model repository, with the ensemble `ENSEMBLE`.
        images: float32 (n, C, H, W) in [0, 1]: at least as many as `sizes` needs.
        sizes: How much is measured.
        on_progress: Called with a line after each step.

    Raises:
        ServerError, RepositoryError, OSError: The server could not be started.
    """
    rounds: list[dict[str, float]] = []
    with start_server(repository) as (server, _), Client(server.http_url, ENSEMBLE) as client:
        *members, _ = client.describe().steps  # the last one is the averaging model
        labels = np.concatenate([prediction.indices for prediction in client.predict_iter(images)]).astype(np.int64)
        for number in range(sizes.rounds):
            rounds.append(_measure_round(client, members[0], server.http_url, LabelledImages(images, labels), sizes))
            texts = ", ".join(f"{name} {value:.4g}" for name, value in rounds[-1].items())
            on_progress(f"round {number + 1} of {sizes.rounds}: {texts}")
    return {
        "schema": SCHEMA,
        **machine_info(packages=("foolbox", "tritonclient")),
        "members": len(members),
        "member": members[0],
        "processes": PROCESSES,
        "sizes": vars(sizes),
        "rounds": rounds,
        "figures": compute_figures(rounds),
    }


def _measure_round(client: Client, member: str, url: str, data: LabelledImages, sizes: Sizes) -> dict[str, float]:
    many = LabelledImages(data.images[: sizes.noise_images], data.labels[: sizes.noise_images])
    few = LabelledImages(data.images[: sizes.boundary_images], data.labels[: sizes.boundary_images])
    wide = LabelledImages(data.images[: sizes.lanes], data.labels[: sizes.lanes])
    options = RunOptions(workers=PROCESSES)
    ensemble = [ENSEMBLE]

    twice = np.concatenate([many.images, many.images])  # as noise sends them: clean, and with noise
    plain_s, plain = _timed(lambda: sum(1 for _ in client.predict_iter(twice)))
    noise_s, _ = _timed(lambda: measure_probe(Noise((8.0,)), served_targets(url, ensemble), many))
    instant = FunctionTarget("instant", lambda images: np.zeros(len(images), np.int64))
    base_s, base = _timed(lambda: measure_probe(Unchanged(), [instant], many))
    attack = Boundary(steps=sizes.boundary_steps)
    ours_s, _ = _timed(lambda: measure_probe(attack, served_targets(url, ensemble), few, options=options))
    host = url.partition("//")[2]
    bare_s, bare = _timed(lambda: attack_images(host, ENSEMBLE, few.images, few.labels, sizes.boundary_steps, PROCESSES))
    lanes = Boundary(steps=sizes.lane_steps)
    wide_s, outcome = _timed(lambda: measure_probe(lanes, served_targets(url, ensemble), wide, options=options))
    sent = outcome.targets[0].queries.sent
    member_s, _ = _timed(lambda: sum(1 for _ in client.predict_iter(many.images, model=member)))
    member_per_s = len(many.images) / member_s
    member_wide_s, outcome = _timed(lambda: measure_probe(lanes, served_targets(url, [member]), wide, options=options))
    member_sent = outcome.targets[0].queries.sent
    base_sent = base.targets[0].queries.sent
    return {
        "plain_images_per_s": plain / plain_s,
        "noise_per_plain": noise_s / plain_s,
        "base_share": (base_s / base_sent) / (plain_s / plain),
        "boundary_per_bare": ours_s / bare_s,
        "bare_queries": float(bare),
        "attack_throughput": (sent / wide_s) / (plain / plain_s),
        "member_images_per_s": member_per_s,
        "member_attack_throughput": (member_sent / member_wide_s) / member_per_s,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.monotonic()
    result = work()
    return time.monotonic() - begin, result


def compute_figures(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Compute the figures from the rounds: medians with their goals."""

    def median(name: str) -> float:
        return round(statistics.median(entry[name] for entry in rounds), 4)

    return {
        "base_share_of_time": at_most_figure(median("base_share"), BASE_GOAL),
        "boundary_per_bare_foolbox": at_most_figure(median("boundary_per_bare"), FOOLBOX_GOAL),
        "noise_per_predict_iter": at_most_figure(median("noise_per_plain"), NOISE_GOAL),
        "attack_throughput_per_predict_iter": at_least_figure(median("attack_throughput"), THROUGHPUT_GOAL),
    }


_ROWS = {
    "base_share_of_time": ("base_share", "time of the base and the ledger for an image, as a part of the time of a served image"),
    "boundary_per_bare_foolbox": ("boundary_per_bare", "boundary attack: time / time of Foolbox at batch 1 on tritonclient"),
    "noise_per_predict_iter": ("noise_per_plain", "noise: time / time of `predict_iter` on as many images"),
    "attack_throughput_per_predict_iter": ("attack_throughput", "boundary attack: images per second / those of `predict_iter`"),
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    sizes, hardware, versions = result["sizes"], result["hardware"], result["versions"]
    note = f"\n{result['note']}\n" if result["note"] else ""
    rows = []
    for name, (key, text) in _ROWS.items():
        figure = result["figures"][name]
        verdict = "" if figure["holds"] else ", missed"
        rows.append(table_row(text, _spread(result, key), f"{figure['goal']}{verdict}"))
    rows.append(table_row("the same on a single member: reported, without a goal", _spread(result, "member_attack_throughput"), "-"))
    table = "\n".join(["| | median (range) | goal |", "|---|---|---|", *rows])
    speed, member_speed = (
        statistics.median(entry[key] for entry in result["rounds"]) for key in ("plain_images_per_s", "member_images_per_s")
    )
    return f"""# What the probes cost
{quick_warning(result)}{note}
Generated by `benchmarks/probes.py` from `{json_name}`: {len(result["rounds"])} rounds, each with all measurements. Measured on
{result["measured_at"][:10]} on {hardware["cores"]} cores of {hardware["cpu"]}, Python {versions["python"]}, Foolbox {versions["foolbox"]},
commit {str(result["git_commit"])[:12]}.

An ensemble of {result["members"]} members, served over HTTP on the same cores: `predict_iter` gets {speed:,.0f} images/s,
and {member_speed:,.0f} images/s from one member, `{result["member"]}`.

{table}

- Noise: {sizes["noise_images"]:,} images, clean and at one sigma; `predict_iter` classifies as many.
- The base: a probe that changes nothing, on a target that returns at once, with its ledger on disk.
- Boundary against Foolbox: {sizes["boundary_images"]} images, {sizes["boundary_steps"]} steps, {result["processes"]} processes each, with
  their start.
- Throughput: {sizes["lanes"]} images, {sizes["lane_steps"]} steps, {result["processes"]} worker processes, with their start.
"""


def _spread(result: Mapping[str, Any], key: str) -> str:
    values = spread([entry[key] for entry in result["rounds"]])
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


@benchmark_command("probes", quick="one round with fewer images and steps", seed="nothing, the zoo is trained", result="probes")
@zoo_options
def main(options: Options, zoo: Path, data_dir: Path | None) -> NoReturn:
    """Serve five networks of the zoo, and measure what the probes add to plain calls.

    Takes 9 to 30 minutes on two cores, on an otherwise idle machine, and needs CIFAR-10. The exit status is 1 if a figure misses its goal.
    """
    sizes = Sizes(1, 500, 4, 50, 16, 50) if options.quick else Sizes()
    run(
        lambda on_progress: _measure_zoo(zoo, data_dir, sizes, on_progress),
        page,
        options,
        errors=(RepositoryError, ServerError, TrainingError),
    )


def _measure_zoo(zoo: Path, data_dir: Path | None, sizes: Sizes, on_progress: OnProgress) -> dict[str, Any]:
    checkpoints = [zoo / f"{name}.safetensors" for name in MEMBERS]
    data = cifar10_for(checkpoints, data_dir)
    images = data.test.images(np.arange(max(sizes.noise_images, sizes.lanes)))
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = Path(folder) / "repository"
        export_checkpoints(checkpoints, repository, ensemble=ENSEMBLE, data_dir=data_dir)
        on_progress(f"exported {len(checkpoints)} members")
        return measure(repository, images, sizes, on_progress)


if __name__ == "__main__":
    main()
