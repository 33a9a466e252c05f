"""What does each precision of an exported graph gain, and what does it cost?

The networks of the zoo in float32, float16 and int8: size of the file, accuracy and agreement with float32 on CIFAR-10's test images, time
to load and to run on ONNX Runtime; and two untrained networks of the paper's width, timed alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import onnx
import torch

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import cifar10_for, described, zoo_options
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.provenance import surroundings
from benchmarks.precision.masks import mask_bytes, with_packed_masks
from benchmarks.precision.measuring import FORMS, Images, Labels, beside_float32, forms_of, load_times, logits_of, speeds
from benchmarks.precision.page import page
from benchmarks.zoo.plan import PLAN
from defensemble_export import calibration_images, onnx_from_checkpoint
from defensemble_repository.errors import RepositoryError
from defensemble_training import ModelSpec, TrainingError, TrainingRecord, build, save_checkpoint

SCHEMA = "defensemble.benchmark.precisions/1"
BATCHES = (1, 16, 64)
QUICK_IMAGES = 200
# Timed alone: what they have learnt changes no time.
WIDE = {"width 64, keep 1": {"keep": 1.0}, "width 64, keep 0.3": {"keep": 0.3}}


def measure(
    checkpoints: Mapping[str, Path],
    images: Images,
    labels: Labels,
    calibration: Images,
    *,
    wide: Mapping[str, Mapping[str, Any]] = WIDE,
    rounds: int = 7,
    seconds: float = 0.1,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Converts each network, compares its forms with float32 and times them: `networks` and `wide` of the result, and its `figures`.

    Args:
        checkpoints: by name; all must be there.
        images: test images, float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        calibration: training images for int8.
        wide: arguments of `ModelSpec` of networks that are timed alone.
        rounds: of each timing.
        seconds: of each form in a round.
        on_progress: told what is being done.

    Raises:
        TrainingError, RepositoryError: a checkpoint is damaged, or a graph cannot be converted.
    """
    networks, widths = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        for name, checkpoint in checkpoints.items():
            on_progress(name)
            model = onnx.load(onnx_from_checkpoint(checkpoint, path, images=images))
            networks[name] = _network(model, images, labels, calibration, rounds, seconds)
        for name, arguments in wide.items():
            on_progress(name)
            model = onnx.load(_untrained(Path(folder), images.shape[1:], arguments))
            forms = forms_of(model, calibration[:32])
            timed = speeds(forms, images, BATCHES, rounds=rounds, seconds=seconds)
            widths[name] = {form: {"file_bytes": _size(graph), "time": timed[form]} for form, graph in forms.items()}
    return {"networks": networks, "wide": widths, "figures": figures_of(networks), "int8_beside_fp32": verdicts_of({**networks, **widths})}


def _network(
    model: onnx.ModelProto, images: Images, labels: Labels, calibration: Images, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    forms = forms_of(model, calibration)
    timed = speeds(forms, images, BATCHES, rounds=rounds, seconds=seconds)
    logits = {form: logits_of(graph, images) for form, graph in forms.items()}
    result = {}
    for form, graph in forms.items():
        packed = with_packed_masks(graph)
        assert np.array_equal(logits_of(packed, images[:50]), logits[form][:50]), "packed masks answer otherwise"
        pair = {"bool": graph, "packed": packed}
        both = speeds(pair, images, (16,), rounds=rounds, seconds=seconds)
        loads = load_times(pair, rounds)
        result[form] = {
            "file_bytes": _size(graph),
            "mask_bytes": mask_bytes(graph),
            **beside_float32(logits[form], logits["fp32"], labels),
            "load_ms": loads["bool"],
            "time": timed[form],
            "packed_masks": {
                "file_bytes": _size(packed),
                "load_ms": loads["packed"],
                "speed_by_bool_at_16": both["packed"]["16"]["speed_by_fp32"],
            },
        }
    return result


def _size(model: onnx.ModelProto) -> int:
    return len(model.SerializeToString(deterministic=True))


def _untrained(folder: Path, shape: tuple[int, ...], arguments: Mapping[str, Any]) -> Path:
    channels = shape[0]
    spec = ModelSpec(
        **{"arch": "resnet18", "blocks": (0, 1, 2), "mean": (0.5,) * channels, "std": (0.25,) * channels, "input_shape": shape, **arguments}
    )
    torch.manual_seed(0)
    module = build(spec).train()
    with torch.no_grad():
        module(torch.rand(16, *shape))
    save_checkpoint(
        folder / "wide.safetensors", module.eval(), spec, TrainingRecord.untrained(tuple(map(str, range(spec.num_classes))), seed=0)
    )
    return onnx_from_checkpoint(folder / "wide.safetensors", folder / "wide.onnx", verify=False)


def figures_of(networks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The goals, each for the network that does worst."""

    def figure(form: str, key: Callable[[Mapping[str, Any]], float], goal: str, holds: Callable[[float], bool]) -> dict[str, Any]:
        values = {name: key(told[form]) for name, told in networks.items()}
        worst = min(values, key=lambda name: (holds(values[name]), -abs(values[name] - 1) if "agree" in goal else -values[name]))
        return {"value": values[worst], "network": worst, "goal": goal, "holds": holds(values[worst])}

    def agreement(told: Mapping[str, Any]) -> float:
        return float(told["agreement"]["value"])

    return {
        "fp16_agreement": figure("fp16", agreement, "agree on at least 0.999", lambda value: value >= 0.999),
        "fp16_probability_difference": figure(
            "fp16", lambda told: float(told["largest_probability_difference"]), "at most 0.01", lambda value: value <= 0.01
        ),
        "int8_agreement": figure("int8", agreement, "agree on at least 0.98", lambda value: value >= 0.98),
        "int8_accuracy_points": figure(
            "int8", lambda told: abs(float(told["accuracy_points"])), "at most 0.5 points away", lambda value: value <= 0.5
        ),
    }


def verdicts_of(networks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """For each network and batch whether int8 ran "faster" than float32 in every round, "slower" in every round, or neither ("alike")."""

    def verdict(speed: Mapping[str, Any]) -> str:
        return "faster" if speed["min"] > 1 else "slower" if speed["max"] < 1 else "alike"

    return {
        name: {batch: verdict(told["speed_by_fp32"]) for batch, told in forms["int8"]["time"].items()} for name, forms in networks.items()
    }


@benchmark_command(
    "precisions", quick=f"{QUICK_IMAGES} images and two networks", seed="the calibration images", example="--quick --data-dir data/cifar10"
)
@zoo_options
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds of each timing.")
def main(options: Options, zoo: Path, data_dir: Path | None, rounds: int) -> NoReturn:
    """Compare float32, float16 and int8 on the networks of the zoo.

    About ten minutes on two cores. Exit status 1 where a goal is not reached.
    """
    torch.set_num_threads(1)
    errors = (TrainingError, RepositoryError)
    run(lambda on_progress: _measured(options, zoo, data_dir, rounds, on_progress), page, options, errors=errors, cores=None)


def _measured(options: Options, zoo: Path, data_dir: Path | None, rounds: int, on_progress: OnProgress) -> dict[str, Any]:
    load = os.getloadavg()[0]
    plan = [network for network in PLAN if network.name in ("standard", "keep0.1")] if options.quick else PLAN
    checkpoints = {network.name: zoo / network.path.name for network in plan}
    data = cifar10_for(checkpoints.values(), data_dir)
    source = f"training images of {data.source}"
    drawn, calibration = calibration_images(data.train.images, len(data.train), source=source, seed=options.seed)
    chosen = slice(0, QUICK_IMAGES if options.quick else len(data.test))
    labels = data.test.labels[chosen]
    measured = measure(checkpoints, data.test.images(chosen), labels, drawn, rounds=rounds, on_progress=on_progress)
    machine = surroundings(packages=("torch", "onnx", "onnxruntime"))
    machine["hardware"] |= {
        "int8_instructions": _int8_instructions(),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }
    return {
        "schema": SCHEMA,
        "n": len(labels),
        "forms": list(FORMS),
        "rounds": rounds,
        "threads": 1,
        "calibration": asdict(calibration),
        "data": described(data),
        **measured,
        **machine,
    }


def _int8_instructions() -> list[str]:
    """Those of the processor that multiply int8 and add up in int32; without them sums of two products saturate in int16."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(errors="replace").split()) if info.exists() else set()
    return sorted(flags.intersection(("avx512_vnni", "avx_vnni", "amx_int8")))


if __name__ == "__main__":
    main()
