"""The compared forms: the ensemble behind Triton, and the same members in the caller's process, in four ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.forms import Form, predict_in_process, predict_with
from benchmarks.common.timing import Predict
from defensemble import Client
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_server import Server

_POOL = 2
_FUSED_THREADS = (1, 2)


@contextmanager
def forms_in_process(members: Sequence[ExportedMember]) -> Iterator[list[Form]]:
    """Create every form without a server, each with ONNX Runtime's `session.intra_op.allow_spinning` 0 and 1.

    Sessions have one thread; their caller runs them in turn, or a pool of two runs them. Forms with one thread have no others that could
    spin, and are timed with both values all the same.
    """
    fused = fused_onnx([member.onnx for member in members], Ensemble("fused", tuple(Member(member.name) for member in members)))
    with ExitStack() as stack:
        forms = []
        for spins in (False, True):
            sessions = [session_from_onnx(member.onnx, spins=spins) for member in members]
            pool = stack.enter_context(ThreadPoolExecutor(_POOL, thread_name_prefix="pool"))
            forms.append(Form(_form_name("sessions, averaged by numpy", spins), _in_turn(sessions), spins=spins))
            forms.append(Form(_form_name(f"sessions in a pool of {_POOL}", spins), _in_pool(sessions, pool), spins=spins))
            for threads in _FUSED_THREADS:
                name = _form_name(f"fused graph, {threads} thread{'s' if threads > 1 else ''}", spins)
                forms.append(Form(name, predict_in_process(session_from_onnx(fused, threads, spins=spins)), spins=spins))
        yield forms


@contextmanager
def forms_served(server: Server) -> Iterator[list[Form]]:
    """Create the forms of our client, over gRPC and over HTTP, each shared by all callers."""
    with Client(server.grpc_url) as over_grpc, Client(server.http_url) as over_http:
        yield [
            Form("Triton, gRPC", predict_with(over_grpc), protocol="grpc"),
            Form("Triton, HTTP", predict_with(over_http), protocol="http"),
        ]


def _in_turn(sessions: Sequence[onnxruntime.InferenceSession]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return _average([session.run(["logits"], {"images": images})[0] for session in sessions])

    return predict


def _in_pool(sessions: Sequence[onnxruntime.InferenceSession], pool: ThreadPoolExecutor) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        runs = [pool.submit(session.run, ["logits"], {"images": images}) for session in sessions]
        return _average([run.result()[0] for run in runs])

    return predict


def _average(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Average in float32 throughout, as a typical service does."""
    stacked = np.stack(logits)
    stacked -= stacked.max(axis=2, keepdims=True)
    np.exp(stacked, out=stacked)
    stacked /= stacked.sum(axis=2, keepdims=True)
    probabilities: NDArray[np.float32] = stacked.mean(axis=0)
    return probabilities


def _form_name(name: str, spins: bool) -> str:
    return f"{name}, spins" if spins else name
