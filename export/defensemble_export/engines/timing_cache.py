"""How long TensorRT's kernels took on this GPU, kept between builds: the second build of a network times nothing again.

What is kept is bound to the exact TensorRT and to the device, so each pair has a file of its own.
"""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import platformdirs

from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.filesystem.locks import held
from defensemble_repository.filesystem.regular_files import read_regular

from .build_steps import TIMING_STEPS, Step
from .target import Target


def default_timing_cache(target: Target) -> Path:
    """Where the timings of a TensorRT on a GPU are kept: ``$XDG_CACHE_HOME/defensemble/timings/<TensorRT>-<GPU>-<capability>.cache``."""
    gpu = re.sub("[^A-Za-z0-9]+", "-", target.gpu).strip("-")
    return platformdirs.user_cache_path("defensemble") / "timings" / f"{target.tensorrt}-{gpu}-{target.compute_capability}.cache"


def attach_timings(
    trt: Any,
    carry_out: Callable[[Any, Iterable[Step], dict[str, Any]], None],
    results: dict[str, Any],
    path: Path,
    logger: logging.Logger,
) -> None:
    """Give the configuration in ``results`` the timings of a file; where it is of another TensorRT or GPU, or damaged, begin without.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        kept = read_regular(path)
    except FileNotFoundError:
        kept = b""
    for timings in (kept, b"") if kept else (b"",):
        results["timings"] = timings
        results["attached"] = False
        carry_out(trt, TIMING_STEPS[:1], results)
        if results["cache"] is not None:
            carry_out(trt, TIMING_STEPS[1:], results)
        if results["attached"]:
            return
        if timings:
            logger.warning("%s is of another TensorRT or GPU, or damaged: this build begins it afresh", path)
    raise RuntimeError("TensorRT takes no timing cache, not even an empty one")


def save_timings(config: Any, cache: Any, path: Path) -> None:
    """Write the timings back, with those that another build has written meanwhile.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent, fcntl.LOCK_EX):
        try:
            others = config.create_timing_cache(serialized_timing_cache=read_regular(path))
        except FileNotFoundError:
            others = None
        if others is not None:
            cache.combine(input_cache=others, ignore_mismatch=False)  # False, and nothing done, where they are of another TensorRT
        write_atomic(path, bytes(cache.serialize()))
