"""Compare the precisions of exported graphs.

The networks of the zoo in float32, float16 and int8: file size, accuracy and agreement with float32 on CIFAR-10's test images, time to load
and to run on ONNX Runtime. Two untrained networks of the paper's width are only timed.
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

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import cifar10_for, describe_dataset, zoo_options
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.provenance import machine_info
from benchmarks.precision.masks import mask_bytes, with_packed_masks
from benchmarks.precision.measuring import (
    FORMS,
    Images,
    Labels,
    compare_with_float32,
    compute_logits,
    convert_to_forms,
    time_inference,
    time_loading,
)
from benchmarks.precision.page import page
from benchmarks.zoo.plan import TABLE
from defensemble_export import ExportOptions, calibration_images, onnx_from_checkpoint
from defensemble_repository.errors import RepositoryError
from defensemble_training import ModelSpec, TrainingError, TrainingRecord, build, save_checkpoint

SCHEMA = "defensemble.benchmark.precisions/1"
BATCHES = (1, 16, 64)
QUICK_IMAGES = 200
# The other precisions are made from the plain graph, and compared with it.
PLAIN = ExportOptions(mask_aware="off")
# Only timed: the speed does not depend on training.
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
    """Convert each network, compare its forms with float32, and time them. Returns `networks`, `wide` and `figures` of the result.

    Args:
        checkpoints: The checkpoints by name; all must exist.
        images: Test images, float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        calibration: Training images for int8.
        wide: Arguments of `ModelSpec` for networks that are only timed.
        rounds: Rounds of each timing.
        seconds: Seconds of each form in a round.
        on_progress: Called with the current step.

    Raises:
        TrainingError, RepositoryError: A checkpoint is damaged, or a graph cannot be converted.
    """
    networks, widths = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        for name, checkpoint in checkpoints.items():
            on_progress(name)
            model = onnx.load(onnx_from_checkpoint(checkpoint, path, images=images, options=PLAIN))
            networks[name] = _network(model, images, labels, calibration, rounds, seconds)
        for name, arguments in wide.items():
            on_progress(name)
            model = onnx.load(_untrained(Path(folder), images.shape[1:], arguments))
            forms = convert_to_forms(model, calibration[:32])
            timings = time_inference(forms, images, BATCHES, rounds=rounds, seconds=seconds)
            widths[name] = {form: {"file_bytes": _size(graph), "time": timings[form]} for form, graph in forms.items()}
    return {
        "networks": networks,
        "wide": widths,
        "figures": compute_figures(networks),
        "int8_beside_fp32": compare_int8_speed({**networks, **widths}),
    }


def _network(
    model: onnx.ModelProto, images: Images, labels: Labels, calibration: Images, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    forms = convert_to_forms(model, calibration)
    timings = time_inference(forms, images, BATCHES, rounds=rounds, seconds=seconds)
    logits = {form: compute_logits(graph, images) for form, graph in forms.items()}
    result = {}
    for form, graph in forms.items():
        packed = with_packed_masks(graph)
        assert np.array_equal(compute_logits(packed, images[:50]), logits[form][:50]), "packed masks change the outputs"
        pair = {"bool": graph, "packed": packed}
        pair_times = time_inference(pair, images, (16,), rounds=rounds, seconds=seconds)
        load_ms = time_loading(pair, rounds)
        result[form] = {
            "file_bytes": _size(graph),
            "mask_bytes": mask_bytes(graph),
            **compare_with_float32(logits[form], logits["fp32"], labels),
            "load_ms": load_ms["bool"],
            "time": timings[form],
            "packed_masks": {
                "file_bytes": _size(packed),
                "load_ms": load_ms["packed"],
                "speed_by_bool_at_16": pair_times["packed"]["16"]["speed_by_fp32"],
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
    return onnx_from_checkpoint(folder / "wide.safetensors", folder / "wide.onnx", verify=False, options=PLAIN)


def compute_figures(networks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Compute the figures, each for the worst network."""

    def figure(form: str, key: Callable[[Mapping[str, Any]], float], goal: str, holds: Callable[[float], bool]) -> dict[str, Any]:
        values = {name: key(entry[form]) for name, entry in networks.items()}
        worst = min(values, key=lambda name: (holds(values[name]), -abs(values[name] - 1) if "agree" in goal else -values[name]))
        return {"value": values[worst], "network": worst, "goal": goal, "holds": holds(values[worst])}

    def agreement(entry: Mapping[str, Any]) -> float:
        return float(entry["agreement"]["value"])

    return {
        "fp16_agreement": figure("fp16", agreement, "agree on at least 0.999", lambda value: value >= 0.999),
        "fp16_probability_difference": figure(
            "fp16", lambda entry: float(entry["largest_probability_difference"]), "at most 0.01", lambda value: value <= 0.01
        ),
        "int8_agreement": figure("int8", agreement, "agree on at least 0.98", lambda value: value >= 0.98),
        "int8_accuracy_points": figure(
            "int8", lambda entry: abs(float(entry["accuracy_points"])), "at most 0.5 points away", lambda value: value <= 0.5
        ),
    }


def compare_int8_speed(networks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """Return for each network and batch whether int8 was "faster" than float32 in every round, "slower" in every one, or "alike"."""

    def verdict(speed: Mapping[str, Any]) -> str:
        return "faster" if speed["min"] > 1 else "slower" if speed["max"] < 1 else "alike"

    return {
        name: {batch: verdict(entry["speed_by_fp32"]) for batch, entry in forms["int8"]["time"].items()} for name, forms in networks.items()
    }


@benchmark_command(
    "precisions", quick=f"{QUICK_IMAGES} images and two networks", seed="the calibration images", example="--quick --dataset data/cifar10"
)
@zoo_options
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds of each timing.")
def main(options: Options, zoo: Path, data_dir: Path | None, rounds: int) -> NoReturn:
    """Compare float32, float16 and int8 on the networks of the zoo.

    Takes about ten minutes on two cores. The exit status is 1 if a goal is missed.
    """
    torch.set_num_threads(1)
    errors = (TrainingError, RepositoryError)
    run(lambda on_progress: _measure_networks(options, zoo, data_dir, rounds, on_progress), page, options, errors=errors, cores=None)


def _measure_networks(options: Options, zoo: Path, data_dir: Path | None, rounds: int, on_progress: OnProgress) -> dict[str, Any]:
    load = os.getloadavg()[0]
    plan = [network for network in TABLE if network.name in ("standard", "keep0.1")] if options.quick else TABLE
    checkpoints = {network.name: zoo / network.path.name for network in plan}
    data = cifar10_for(checkpoints.values(), data_dir)
    source = f"training images of {data.source}"
    calibration_set, calibration = calibration_images(data.train.images, len(data.train), source=source, seed=options.seed)
    selected = slice(0, QUICK_IMAGES if options.quick else len(data.test))
    labels = data.test.labels[selected]
    measured = measure(checkpoints, data.test.images(selected), labels, calibration_set, rounds=rounds, on_progress=on_progress)
    machine = machine_info(packages=("torch", "onnx", "onnxruntime"))
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
        "data": describe_dataset(data),
        **measured,
        **machine,
    }


def _int8_instructions() -> list[str]:
    """Return the processor's instructions that sum int8 products in int32; without them, sums of two products saturate in int16."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(errors="replace").split()) if info.exists() else set()
    return sorted(flags.intersection(("avx512_vnni", "avx_vnni", "amx_int8")))


if __name__ == "__main__":
    main()
