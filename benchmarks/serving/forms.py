"""The forms that are compared: the ensemble behind Triton, and the same members in the caller's own process, in four ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_of
from benchmarks.common.forms import Form, asked_in_process, asked_of
from benchmarks.common.timing import Predict
from defensemble import Client
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_server import Server

_POOL = 2
_FUSED_THREADS = (1, 2)


@contextmanager
def forms_in_process(members: Sequence[ExportedMember]) -> Iterator[list[Form]]:
    """Every form that needs no server, each with ONNX Runtime's `session.intra_op.allow_spinning` 0 and 1.

    Sessions are of one thread: run in turn by their caller, or by a pool of two. What has one thread has no others that could spin; it is
    timed under both all the same.
    """
    fused = fused_onnx([member.onnx for member in members], Ensemble("fused", tuple(Member(member.name) for member in members)))
    with ExitStack() as stack:
        forms = []
        for spins in (False, True):
            sessions = [session_of(member.onnx, spins=spins) for member in members]
            pool = stack.enter_context(ThreadPoolExecutor(_POOL, thread_name_prefix="pool"))
            forms.append(Form(_named("sessions, averaged by numpy", spins), _in_turn(sessions), spins=spins))
            forms.append(Form(_named(f"sessions in a pool of {_POOL}", spins), _in_pool(sessions, pool), spins=spins))
            for threads in _FUSED_THREADS:
                name = _named(f"fused graph, {threads} thread{'s' if threads > 1 else ''}", spins)
                forms.append(Form(name, asked_in_process(session_of(fused, threads, spins=spins)), spins=spins))
        yield forms


@contextmanager
def forms_served(server: Server) -> Iterator[list[Form]]:
    """Our client over gRPC and over HTTP, one for all callers."""
    with Client(server.grpc_url) as over_grpc, Client(server.http_url) as over_http:
        yield [
            Form("Triton, gRPC", asked_of(over_grpc), protocol="grpc"),
            Form("Triton, HTTP", asked_of(over_http), protocol="http"),
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
    """As one would write it in a service: float32 throughout."""
    stacked = np.stack(logits)
    stacked -= stacked.max(axis=2, keepdims=True)
    np.exp(stacked, out=stacked)
    stacked /= stacked.sum(axis=2, keepdims=True)
    probabilities: NDArray[np.float32] = stacked.mean(axis=0)
    return probabilities


def _named(what: str, spins: bool) -> str:
    return f"{what}, spins" if spins else what
