"""Calls of a model whose requests wait for each other, and what the recording stand-in of ONNX Runtime saw of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any, TypeAlias

import numpy.typing as npt
from tritonclient.grpc import InferResult
from tritonclient.utils import InferenceServerException

from tests.support.backend_triton import Triton, arrays, infer_inputs, infer_outputs, records

ANSWER_DEADLINE_S = 20.0
Answer: TypeAlias = "dict[str, npt.NDArray[Any]] | InferenceServerException"


def infer_together(
    triton: Triton, name: str, requests: list[dict[str, npt.NDArray[Any]]], outputs: list[list[str]] | None = None
) -> list[Answer]:
    """Send all requests before any is answered; return the answers in the requests' order."""
    done: Queue[tuple[int, Answer]] = Queue()

    def callback(index: int) -> Callable[[InferResult | None, InferenceServerException | None], None]:
        return lambda result, error: done.put((index, error if result is None else arrays(result)))

    for index, inputs in enumerate(requests):
        wanted = infer_outputs(outputs[index] if outputs else None)
        triton.client.async_infer(name, infer_inputs(inputs), callback(index), outputs=wanted)
    answers = dict(done.get(timeout=ANSWER_DEADLINE_S) for _ in requests)
    return [answers[index] for index in range(len(requests))]


def good(answer: Answer) -> dict[str, npt.NDArray[Any]]:
    assert isinstance(answer, dict), answer
    return answer


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ANSWER_DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def runs(record_file: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in records(record_file) if f"/{name}/" in record.get("run", "")]
