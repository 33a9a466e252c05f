"""Time the calls of one caller, those of many tasks, and imports."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.figures import spread
from benchmarks.common.forms import Form
from benchmarks.common.timing import Call, Timing, calls_in_window

PredictAsync = Callable[[NDArray[np.float32]], Awaitable[Any]]

HEAVY = ("torch", "onnx", "onnxruntime", "pandas", "matplotlib", "scipy", "sklearn")
_ONLY_GRPC = ("grpc", "tritonclient")
_IMPORT = "import defensemble"
_FIRST_CALL = """
from defensemble import Client
import numpy
with Client({url!r}) as client:
    client.predict(numpy.full({shape}, 0.5, numpy.float32))
"""
_PROGRAM = """
import time
began = time.perf_counter()
{statements}
seconds = time.perf_counter() - began
import json, sys
print(json.dumps([seconds, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


@dataclass(frozen=True)
class OneCaller:
    """The calls of one caller in a round: their median duration, and this process's processor time per call."""

    p50_ms: float
    cpu_us: float


def time_one_caller(
    forms: Sequence[Form], images: NDArray[np.float32], *, blocks: int, calls: int, generator: np.random.Generator
) -> dict[str, OneCaller]:
    """Time forms that take turns after every few calls, so that drift of the machine affects all alike.

    Args:
        forms: The forms.
        images: The images of each call.
        blocks: Number of turns of each form.
        calls: Calls in a turn.
        generator: Draws the order of each turn.
    """
    durations_ms: dict[str, list[float]] = {form.name: [] for form in forms}
    cpu_s = dict.fromkeys(durations_ms, 0.0)
    for _ in range(blocks):
        for index in generator.permutation(len(forms)):
            form = forms[index]
            own = durations_ms[form.name]
            cpu_began = time.process_time()
            for _ in range(calls):
                began = time.perf_counter()
                form.predict(images)
                own.append(1000 * (time.perf_counter() - began))
            cpu_s[form.name] += time.process_time() - cpu_began
    return {name: OneCaller(statistics.median(own), 1e6 * cpu_s[name] / len(own)) for name, own in durations_ms.items()}


async def time_tasks(predict: PredictAsync, images: NDArray[np.float32], tasks: int, *, warm_s: float, seconds: float) -> Timing:
    """Time `predict` with many tasks of one event loop, each of which calls again as soon as it has a response; see `time_form`.

    Args:
        predict: The coroutine function to time.
        images: Batches (B, N, C, H, W), which the tasks use in turn.
        tasks: Number of tasks.
        warm_s: Seconds before the window starts.
        seconds: Length of the window.
    """
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    calls: list[Call] = []
    unfinished = tasks

    async def call(batch: NDArray[np.float32]) -> None:
        nonlocal unfinished
        is_counted = False
        while unfinished:
            began = time.perf_counter()
            await predict(batch)
            ended = time.perf_counter()
            calls.append((began, ended))
            if ended >= end and not is_counted:
                is_counted = True
                unfinished -= 1

    await asyncio.gather(*(call(images[number % len(images)]) for number in range(tasks)))
    durations_ms = tuple(1000 * (ended - began) for began, ended in calls if begin <= ended < end)
    return Timing(calls_in_window(calls, begin, end) * images.shape[1] / seconds, durations_ms)


def time_imports(http_url: str, image_shape: Sequence[int], runs: int) -> dict[str, Any]:
    """Time, in processes of their own, the import of `defensemble`, and that of `Client` with a first prediction over HTTP.

    Args:
        http_url: The server.
        image_shape: (C, H, W) of an image.
        runs: Number of timed runs of each.

    Raises:
        CalledProcessError: A program failed.
    """
    programs = {
        "import_s": _IMPORT,
        "first_http_call_s": _FIRST_CALL.format(url=http_url, shape=(1, *image_shape)),
    }
    seconds: dict[str, list[float]] = {key: [] for key in programs}
    unwanted: set[str] = set()
    for run in range(runs + 1):
        for key, statements in programs.items():
            taken_s, modules = _run(statements)
            if run:  # the first one compiles to bytecode, and reads files that are not in memory yet
                seconds[key].append(taken_s)
            unwanted |= set(modules) & {*HEAVY, *_ONLY_GRPC}
    return {**{key: spread(values) for key, values in seconds.items()}, "unwanted_modules": sorted(unwanted)}


def _run(statements: str) -> tuple[float, list[str]]:
    program = _PROGRAM.format(statements=statements)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    seconds, modules = json.loads(done.stdout)
    return seconds, modules
