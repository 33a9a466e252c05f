"""Compare the mask-aware form of networks with their dense form, with the standard network, and with OpenVINO, on a CPU.

Networks of width 64 on images of CIFAR-10, untrained: ResNet-18 in detail, all architectures at four keeps, five members in one process and
served, and what the form costs in file size, loading and memory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import torch

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import dataset_option, describe_dataset
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.provenance import machine_info
from benchmarks.masking.costs import measure_costs
from benchmarks.masking.figures import compute_figures
from benchmarks.masking.forms import BLOCKS, Images, average_of, library_for, onnxruntime_form, openvino_form, time_forms, untrained_graph
from benchmarks.masking.page import page
from benchmarks.masking.served import measure_served
from defensemble import DefensembleError
from defensemble_export import mask_aware_from_onnx
from defensemble_ops import BuildError, instruction_set, library_path
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError
from defensemble_training import TrainingError, load_dataset

SCHEMA = "defensemble.benchmark.mask_aware/1"


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        detail_keeps: Keeps of ResNet-18 in detail.
        grid_keeps: Keeps of every architecture.
        architectures: The architectures.
        batches: Batch sizes in detail.
        grid_batches: Batch sizes of every architecture.
        rounds: Rounds of each comparison.
        seconds: Seconds of each form in a round.
        served_s: Seconds of each form in a round of the served ensemble.
        width: Width of the networks.
        members: Networks of an ensemble.
    """

    detail_keeps: tuple[float, ...] = (0.1, 0.3, 0.5)
    grid_keeps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    architectures: tuple[str, ...] = tuple(BLOCKS)
    batches: tuple[int, ...] = (1, 16, 64)
    grid_batches: tuple[int, ...] = (1, 4, 16, 64)
    rounds: int = 5
    seconds: float = 0.5
    served_s: float = 8.0
    width: int = 64
    members: int = 5


QUICK = Effort((0.1,), (0.1,), ("resnet18", "vgg19"), (1, 16), (1, 16), rounds=2, seconds=0.2, served_s=2.0)


def measure(images: Images, effort: Effort, *, seed: int = 0, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Measure everything; returns the parts of the result and its figures.

    Args:
        images: At least 128 images, float32 (n, C, H, W) in [0, 1].
        effort: How much is measured.
        seed: Seed of weights and masks.
        on_progress: Called with the current step.
    """
    on_progress("standard ResNet-18")
    standard = untrained_graph("resnet18", 1.0, images[:64], seed, width=effort.width)
    detail, two_threads = {}, {}
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        operators = {"mask_aware": library_path()}
        if instruction_set() == "avx512":
            operators["mask_aware_avx2"] = library_for("avx2", Path(folder))
        for keep in effort.detail_keeps:
            on_progress(f"ResNet-18, keep {keep:g}")
            plain, aware = _forms("resnet18", keep, images, seed, effort)
            forms = {
                "dense": onnxruntime_form(plain),
                **{name: onnxruntime_form(aware, operators=path) for name, path in operators.items()},
                "standard": onnxruntime_form(standard),
                "standard_openvino": openvino_form(standard),
                "dense_openvino": openvino_form(plain),
            }
            present = {name: form for name, form in forms.items() if form is not None}
            detail[f"{keep:g}"] = _batches(present, images, effort)
            pair = {"dense": onnxruntime_form(plain, threads=2), "mask_aware": onnxruntime_form(aware, operators=library_path(), threads=2)}
            two_threads[f"{keep:g}"] = _batches(pair, images, effort)
    on_progress(f"{effort.members} members, keep 0.1")
    pairs = [_forms("resnet18", 0.1, images, seed + number, effort) for number in range(effort.members)]
    members = _batches(
        {
            "dense": average_of([onnxruntime_form(plain) for plain, _ in pairs]),
            "mask_aware": average_of([onnxruntime_form(aware, operators=library_path()) for _, aware in pairs]),
        },
        images,
        effort,
    )
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        on_progress("file, loading and memory, ResNet-18, keep 0.1")
        costs = measure_costs(*pairs[0], images[:16], Path(folder), rounds=effort.rounds)
        on_progress("served ensembles")
        served = measure_served(pairs, images, Path(folder), rounds=effort.rounds, seconds=effort.served_s)
    grid = {arch: _grid(arch, images, effort, seed, on_progress) for arch in effort.architectures}
    measured = {
        "detail": detail,
        "two_threads": two_threads,
        "members": members,
        "costs": costs,
        "served": served,
        "grid": grid,
    }
    return {**measured, "figures": compute_figures(measured)}


def _forms(arch: str, keep: float, images: Images, seed: int, effort: Effort) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the plain and the mask-aware graph."""
    plain = untrained_graph(arch, keep, images[:64], seed, width=effort.width)
    return plain, mask_aware_from_onnx(plain, "on").model


def _batches(forms: Mapping[str, Any], images: Images, effort: Effort) -> dict[str, Any]:
    return {
        str(batch): time_forms(forms, np.ascontiguousarray(images[:batch]), rounds=effort.rounds, seconds=effort.seconds)
        for batch in effort.batches
    }


def _grid(arch: str, images: Images, effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    result = {}
    for keep in effort.grid_keeps:
        on_progress(f"{arch}, keep {keep:g}")
        plain = untrained_graph(arch, keep, images[:64], seed, width=effort.width)
        compiled = mask_aware_from_onnx(plain, "auto")
        entry: dict[str, Any] = {key: compiled.report[key] for key in ("operator", "reason", "expected_gain", "multiplications")}
        if compiled.report["operator"] is not None:
            forms = {"dense": onnxruntime_form(plain), "mask_aware": onnxruntime_form(compiled.model, operators=library_path())}
            logits = [form(np.ascontiguousarray(images[:128])) for form in forms.values()]
            entry["difference"] = float(np.abs(logits[0] - logits[1]).max() / max(1.0, np.abs(logits[0]).max()))
            entry["same_class"] = float(np.mean(logits[0].argmax(1) == logits[1].argmax(1)))
            entry["time"] = {
                str(batch): time_forms(forms, np.ascontiguousarray(images[:batch]), rounds=effort.rounds, seconds=effort.seconds / 4)
                for batch in effort.grid_batches
            }
        result[f"{keep:g}"] = entry
    return result


@benchmark_command("mask_aware", quick="two architectures, keep 0.1, short rounds", seed="weights and masks")
@dataset_option()
def main(options: Options, data_dir: Path | None) -> NoReturn:
    """Compare the mask-aware form of networks with their dense form.

    Takes about fifteen minutes on two cores. With OpenVINO in the environment (`pip install openvino`), it is measured too. Where the
    operator uses AVX-512, ResNet-18 is measured with AVX2 too; DEFENSEMBLE_OPS_ISA chooses one for everything. The exit status is 1 if a
    goal is missed.
    """
    torch.set_num_threads(1)
    errors = (TrainingError, RepositoryError, DefensembleError, ServerError, BuildError)

    def measured(on_progress: OnProgress) -> dict[str, Any]:
        data = load_dataset("cifar10", data_dir=data_dir)
        images = np.ascontiguousarray(data.test.images(slice(0, 128)))
        parts = measure(images, QUICK if options.quick else Effort(), seed=options.seed, on_progress=on_progress)
        machine = machine_info(packages=("torch", "onnx", "onnxruntime"))
        openvino = parts["detail"]["0.1"]["16"].get("standard_openvino")
        if openvino is not None:
            import openvino as package

            machine["versions"]["openvino"] = package.__version__
        return {
            "schema": SCHEMA,
            "seed": options.seed,
            "n": len(images),
            "instruction_set": instruction_set(),
            "data": describe_dataset(data),
            **parts,
            **machine,
        }

    run(measured, page, options, errors=errors, cores=None)


if __name__ == "__main__":
    main()
