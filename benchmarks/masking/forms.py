"""The forms of a network that are compared, and their time in turn."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.figures import round_ratios, spread
from defensemble_export import ExportOptions, onnx_from_checkpoint
from defensemble_ops import is_active, library_path
from defensemble_training import ModelSpec, TrainingRecord, build, save_checkpoint

Images = NDArray[np.float32]
Run = Callable[[Images], NDArray[np.float32]]

# The masked blocks of the paper.
BLOCKS = {"resnet18": (0, 1, 2), "resnet50": (0, 1, 2), "vgg19": (0, 1), "wrn32_4": (0, 1), "senet18": (1, 2), "densenet121": (1, 2)}


def untrained_graph(arch: str, keep: float, images: Images, seed: int, *, width: int = 64) -> onnx.ModelProto:
    """Return the plain graph of an untrained network whose BatchNorm has seen `images`. The speed does not depend on training."""
    channels = images.shape[1]
    spec = ModelSpec(
        arch=arch,
        keep=keep,
        blocks=BLOCKS[arch],
        width=width,
        mask_seed=seed,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        input_shape=images.shape[1:],
    )
    torch.manual_seed(seed)
    module = build(spec).train()
    with torch.no_grad():
        module(torch.from_numpy(images))
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        checkpoint = Path(folder) / "network.safetensors"
        save_checkpoint(checkpoint, module.eval(), spec, TrainingRecord.untrained(tuple(map(str, range(spec.num_classes))), seed=seed))
        plain = ExportOptions(mask_aware="off")
        return onnx.load(onnx_from_checkpoint(checkpoint, Path(folder) / "network.onnx", options=plain, verify=False))


def library_for(instruction_set: str, folder: Path) -> Path:
    """Return a copy of the operator library in `folder` that uses some instruction set; each copy in a process chooses its own, once."""
    copy = Path(shutil.copy(library_path(), folder))
    ctypes.CDLL(str(copy))  # stays open: session options close it at their end
    earlier = os.environ.get("DEFENSEMBLE_OPS_ISA")
    os.environ["DEFENSEMBLE_OPS_ISA"] = instruction_set
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(copy))
    finally:
        os.environ.pop("DEFENSEMBLE_OPS_ISA")
        if earlier is not None:
            os.environ["DEFENSEMBLE_OPS_ISA"] = earlier
    return copy


def onnxruntime_form(model: onnx.ModelProto, *, operators: Path | None = None, threads: int = 1) -> Run:
    """Return a function that computes the logits with ONNX Runtime.

    Args:
        model: The graph.
        operators: The operator library, which then has to run.
        threads: Threads of the session. They do not spin.
    """
    session = session_from_onnx(model.SerializeToString(), threads, operators=operators)
    assert operators is None or is_active(session), "the operator does not run"

    def run(images: Images) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
        return logits

    return run


def openvino_form(model: onnx.ModelProto, *, threads: int = 1) -> Run | None:
    """Return a function that computes the logits with OpenVINO in float32; None if it is not installed (`pip install openvino`)."""
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", settings).create_infer_request()

    def run(images: Images) -> NDArray[np.float32]:
        request.infer({0: images}, share_inputs=True)
        logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        return logits

    return run


def average_of(runs: Sequence[Run]) -> Run:
    """Return a function that runs networks in turn and averages their logits."""
    return lambda images: np.mean([run(images) for run in runs], axis=0)


def time_forms(forms: Mapping[str, Run], images: Images, *, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Time each form in turn, in every round. Returns milliseconds per image, and the speed relative to the first form by rounds.

    Between two calls of a form every other form has run, as in an ensemble: no form finds its weights in the cache because it ran just
    before. The order is reversed in every second pass.
    """
    first = next(iter(forms))
    for run in forms.values():
        run(images)
        run(images)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        calls: dict[str, list[float]] = {name: [] for name in forms}
        deadline = time.perf_counter() + seconds * len(forms)
        while time.perf_counter() < deadline or len(calls[first]) < 2:
            for name in list(forms)[:: 1 if len(calls[first]) % 2 else -1]:
                start = time.perf_counter()
                forms[name](images)
                calls[name].append(1000 * (time.perf_counter() - start) / len(images))
        for name, values in calls.items():
            times[name].append(float(np.median(values)))
    return {name: {"ms_per_image": spread(values), "speed": spread(round_ratios(times[first], values))} for name, values in times.items()}
