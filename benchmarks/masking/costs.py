"""What the mask-aware form of a network costs in file size, loading time and memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common.figures import round_ratios, spread
from benchmarks.common.processes import pss_bytes
from benchmarks.masking.forms import Images


def measure_costs(plain: onnx.ModelProto, aware: onnx.ModelProto, images: Images, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Compare the file, the time to load and the resident memory of two forms, each in processes of its own.

    Args:
        plain: The plain graph.
        aware: The mask-aware graph.
        images: A batch that is run before the memory is read.
        folder: A folder for the files.
        rounds: Processes for each form, in turn.
    """
    sizes, paths = {}, {}
    load_s: dict[str, list[float]] = {"plain": [], "mask_aware": []}
    memory: dict[str, list[int]] = {"plain": [], "mask_aware": []}
    for name, model in (("plain", plain), ("mask_aware", aware)):
        paths[name] = folder / f"{name}.onnx"
        onnx.save(model, paths[name])
        sizes[name] = paths[name].stat().st_size
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for _ in range(rounds):
            for name, path in paths.items():
                seconds, resident = pool.apply(_load_and_run, (str(path), name == "mask_aware", images))
                load_s[name].append(seconds)
                memory[name].append(resident)
    return {
        "file_bytes": sizes,
        "file": sizes["mask_aware"] / sizes["plain"],
        "load_s": {name: spread(values) for name, values in load_s.items()},
        "load": spread(round_ratios(load_s["mask_aware"], load_s["plain"])),
        "resident_bytes": {name: spread(values) for name, values in memory.items()},
        "resident": spread(round_ratios(memory["mask_aware"], memory["plain"])),
    }


def _load_and_run(path: str, operator: bool, images: Images) -> tuple[float, int]:
    """Return the seconds to load a file in this process, with the operator's library, and the memory that it added, after some runs."""
    import onnxruntime

    from defensemble_ops import register

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    before = pss_bytes(os.getpid())
    start = time.perf_counter()
    if operator:
        register(options)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    for batch in (1, len(images)):
        for _ in range(3):
            session.run(["logits"], {"images": np.ascontiguousarray(images[:batch])})
    return seconds, pss_bytes(os.getpid()) - before
