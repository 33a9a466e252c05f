"""Compute the outputs of a graph, compare them with float32, and time it: ONNX Runtime on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.figures import round_ratios, spread
from defensemble import rate
from defensemble_export import fp16_from_onnx, int8_from_onnx
from defensemble_repository.averaging import softmax

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

FORMS = ("fp32", "fp16", "int8")


def convert_to_forms(model: onnx.ModelProto, calibration: Images) -> dict[str, onnx.ModelProto]:
    """Return the graph in each precision."""
    return {"fp32": model, "fp16": fp16_from_onnx(model), "int8": int8_from_onnx(model, calibration)}


def compute_logits(
    model: onnx.ModelProto,
    images: Images,
    *,
    optimised: bool = False,
    batch_size: int = 50,
    on_batch: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Return the logits (n, K) of images, float32 (n, C, H, W)."""
    session = session_from_onnx(model.SerializeToString(deterministic=True), optimised=optimised)
    parts = []
    for start in range(0, len(images), batch_size):
        (part,) = session.run(["logits"], {"images": images[start : start + batch_size]})
        parts.append(part.astype(np.float64))
        on_batch(min(start + batch_size, len(images)))
    return np.concatenate(parts)


def compare_with_float32(logits: NDArray[np.float64], float32: NDArray[np.float64], labels: Labels) -> dict[str, Any]:
    """Return accuracy, agreement with float32's classes, the difference of accuracies in points, and the largest of a probability."""
    classes, expected = logits.argmax(axis=1), float32.argmax(axis=1)
    correct, fp32_correct = classes == labels, expected == labels
    return {
        "accuracy": rate(correct).json(),
        "agreement": rate(classes == expected).json(),
        "accuracy_points": round(100 * (int(correct.sum()) - int(fp32_correct.sum())) / len(labels), 4),
        "only_this_right": int((correct & ~fp32_correct).sum()),
        "only_fp32_right": int((fp32_correct & ~correct).sum()),
        "largest_probability_difference": float(np.abs(softmax(logits) - softmax(float32)).max()),
    }


def time_loading(models: Mapping[str, onnx.ModelProto], rounds: int) -> dict[str, dict[str, Any]]:
    """Time the loading of each form by ONNX Runtime with all optimisations, in milliseconds."""
    contents = {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, content in contents.items():
            start = time.thread_time()
            session_from_onnx(content)
            times[name].append(1000 * (time.thread_time() - start))
    return {name: spread(values) for name, values in times.items()}


def time_inference(
    models: Mapping[str, onnx.ModelProto], images: Images, batches: Sequence[int], *, rounds: int, seconds: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Time each form at each batch. Returns milliseconds per image, and the speed relative to the first form, round by round.

    Time is processor time of the one computing thread, which excludes other programs. In a round each form runs for about `seconds`, one
    after the other, so that contention for caches and memory affects all forms alike.
    """
    first = next(iter(models))
    sessions = {name: session_from_onnx(model.SerializeToString(deterministic=True)) for name, model in models.items()}
    result: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in models}
    for batch in batches:
        inputs = {"images": np.ascontiguousarray(images[:batch])}
        calls = {name: _calls_per_round(session, inputs, seconds) for name, session in sessions.items()}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(rounds):
            names = list(sessions)[:: 1 if number % 2 else -1]
            for name in names:
                start = time.thread_time()
                for _ in range(calls[name]):
                    sessions[name].run(None, inputs)
                times[name].append(1000 * (time.thread_time() - start) / calls[name] / batch)
        for name, values in times.items():
            result[name][str(batch)] = {"ms_per_image": spread(values), "speed_by_fp32": spread(round_ratios(times[first], values))}
    return result


def _calls_per_round(session: onnxruntime.InferenceSession, inputs: Mapping[str, Images], seconds: float) -> int:
    session.run(None, inputs)
    start = time.thread_time()
    session.run(None, inputs)
    return max(1, round(seconds / (time.thread_time() - start)))
