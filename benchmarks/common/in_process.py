"""Forms of an ensemble in the caller's process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.averaging import average
from benchmarks.common.forms import Form, predict_in_process
from benchmarks.common.timing import Predict
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member

_POOL = 2


@contextmanager
def forms_in_process(members: Sequence[ExportedMember]) -> Iterator[list[Form]]:
    """Create every form of an ensemble without a server.

    Sessions have one thread; their caller runs them in turn, or a pool of two runs them. The graph of all members has one thread or two,
    and with two also ONNX Runtime's `session.intra_op.allow_spinning`.
    """
    fused = fused_onnx([member.onnx for member in members], Ensemble("fused", tuple(Member(member.name) for member in members)))
    sessions = [session_from_onnx(member.onnx) for member in members]
    with ThreadPoolExecutor(_POOL, thread_name_prefix="pool") as pool:
        yield [
            Form("sessions, averaged by numpy", _in_turn(sessions)),
            Form(f"sessions in a pool of {_POOL}", _in_pool(sessions, pool)),
            Form("fused graph, 1 thread", predict_in_process(session_from_onnx(fused))),
            Form("fused graph, 2 threads", predict_in_process(session_from_onnx(fused, 2))),
            Form("fused graph, 2 threads, spins", predict_in_process(session_from_onnx(fused, 2, spins=True)), spins=True),
        ]


def _in_turn(sessions: Sequence[onnxruntime.InferenceSession]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return average([session.run(["logits"], {"images": images})[0] for session in sessions])

    return predict


def _in_pool(sessions: Sequence[onnxruntime.InferenceSession], pool: ThreadPoolExecutor) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        runs = [pool.submit(session.run, ["logits"], {"images": images}) for session in sessions]
        return average([run.result()[0] for run in runs])

    return predict
