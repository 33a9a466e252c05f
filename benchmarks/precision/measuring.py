"""What a graph answers, how far that is from float32, and how long it takes: ONNX Runtime on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_of
from benchmarks.common.figures import round_ratios, spread
from defensemble import rate
from defensemble_export import fp16_from_onnx, int8_from_onnx
from defensemble_repository.averaging import softmax

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

FORMS = ("fp32", "fp16", "int8")


def forms_of(model: onnx.ModelProto, calibration: Images) -> dict[str, onnx.ModelProto]:
    """The graph in each precision."""
    return {"fp32": model, "fp16": fp16_from_onnx(model), "int8": int8_from_onnx(model, calibration)}


def logits_of(
    model: onnx.ModelProto,
    images: Images,
    *,
    optimised: bool = False,
    batch_size: int = 50,
    on_batch: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Logits (n, K) of the images, float32 (n, C, H, W)."""
    session = session_of(model.SerializeToString(deterministic=True), optimised=optimised)
    parts = []
    for start in range(0, len(images), batch_size):
        (part,) = session.run(["logits"], {"images": images[start : start + batch_size]})
        parts.append(part.astype(np.float64))
        on_batch(min(start + batch_size, len(images)))
    return np.concatenate(parts)


def beside_float32(logits: NDArray[np.float64], float32: NDArray[np.float64], labels: Labels) -> dict[str, Any]:
    """Accuracy, the share of images that get float32's class, the difference of accuracy in points, the largest one of a probability."""
    classes, expected = logits.argmax(axis=1), float32.argmax(axis=1)
    right, before = classes == labels, expected == labels
    return {
        "accuracy": rate(right).json(),
        "agreement": rate(classes == expected).json(),
        "accuracy_points": round(100 * (int(right.sum()) - int(before.sum())) / len(labels), 4),
        "only_this_right": int((right & ~before).sum()),
        "only_fp32_right": int((before & ~right).sum()),
        "largest_probability_difference": float(np.abs(softmax(logits) - softmax(float32)).max()),
    }


def load_times(models: Mapping[str, onnx.ModelProto], rounds: int) -> dict[str, dict[str, Any]]:
    """How long ONNX Runtime takes to load each form with all its optimisations, in milliseconds."""
    contents = {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, content in contents.items():
            began = time.thread_time()
            session_of(content)
            times[name].append(1000 * (time.thread_time() - began))
    return {name: spread(values) for name, values in times.items()}


def speeds(
    models: Mapping[str, onnx.ModelProto], images: Images, batches: Sequence[int], *, rounds: int, seconds: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Milliseconds an image of each form at each batch, and its speed by that of the first form, round by round.

    The time is the processor's, of the one thread that computes, so that other programs are not in it. In a round each form runs for about
    `seconds`, one after the other, so that a machine whose caches and memory others use is slower for all of them.
    """
    first = next(iter(models))
    sessions = {name: session_of(model.SerializeToString(deterministic=True)) for name, model in models.items()}
    result: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in models}
    for batch in batches:
        given = {"images": np.ascontiguousarray(images[:batch])}
        calls = {name: _calls_in(session, given, seconds) for name, session in sessions.items()}
        took: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(rounds):
            names = list(sessions)[:: 1 if number % 2 else -1]
            for name in names:
                began = time.thread_time()
                for _ in range(calls[name]):
                    sessions[name].run(None, given)
                took[name].append(1000 * (time.thread_time() - began) / calls[name] / batch)
        for name, values in took.items():
            result[name][str(batch)] = {"ms_per_image": spread(values), "speed_by_fp32": spread(round_ratios(took[first], values))}
    return result


def _calls_in(session: onnxruntime.InferenceSession, given: Mapping[str, Images], seconds: float) -> int:
    session.run(None, given)
    began = time.thread_time()
    session.run(None, given)
    return max(1, round(seconds / (time.thread_time() - began)))
