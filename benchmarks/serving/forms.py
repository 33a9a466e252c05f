"""The forms that are compared: the ensemble behind Triton, and the same members in the caller's own process, in four ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.serving.timing import Predict
from defensemble import Client
from defensemble_export import Member, fused_onnx
from defensemble_repository.ensemble import Ensemble, Vote
from defensemble_server import Server

TOLERANCE = 1e-5
"""Of a probability, between any form's answer and numpy's average."""
_POOL = 2
_FUSED_THREADS = (1, 2)


@dataclass(frozen=True)
class Form:
    """A way to get the ensemble's probabilities; `protocol` is None where it stays in the caller's process."""

    name: str
    predict: Predict
    protocol: str | None = None
    spins: bool = False


class WrongAnswerError(Exception):
    """A form answers otherwise than numpy's average of the members, so its time means nothing."""


@contextmanager
def forms_in_process(members: Sequence[Member]) -> Iterator[list[Form]]:
    """Every form that needs no server, each with ONNX Runtime's `session.intra_op.allow_spinning` 0 and 1.

    Sessions are of one thread: run in turn by their caller, or by a pool of two. What has one thread has no others that could spin; it is
    timed under both all the same.
    """
    fused = fused_onnx([member.onnx for member in members], Ensemble("fused", tuple(Vote(member.name) for member in members)))
    with ExitStack() as stack:
        forms = []
        for spins in (False, True):
            sessions = [session_of(member.onnx, 1, spins) for member in members]
            pool = stack.enter_context(ThreadPoolExecutor(_POOL, thread_name_prefix="pool"))
            forms.append(Form(_named("sessions, averaged by numpy", spins), _in_turn(sessions), spins=spins))
            forms.append(Form(_named(f"sessions in a pool of {_POOL}", spins), _in_pool(sessions, pool), spins=spins))
            for threads in _FUSED_THREADS:
                name = _named(f"fused graph, {threads} thread{'s' if threads > 1 else ''}", spins)
                forms.append(Form(name, asked_in_process(session_of(fused, threads, spins)), spins=spins))
        yield forms


@contextmanager
def forms_served(server: Server) -> Iterator[list[Form]]:
    """Our client over gRPC and over HTTP, one for all callers."""
    with Client(server.grpc_url) as over_grpc, Client(server.http_url) as over_http:
        yield [
            Form("Triton, gRPC", asked_of(over_grpc), protocol="grpc"),
            Form("Triton, HTTP", asked_of(over_http), protocol="http"),
        ]


def average_of_logits(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What every form must answer: the mean over M of the softmax of logits (M, N, K), in float64: (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=2, keepdims=True))
    answer: NDArray[np.float64] = (powers / powers.sum(axis=2, keepdims=True)).mean(axis=0)
    return answer


def check_answers(form: Form, images: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """The largest difference between a form's probabilities for `images` (N, C, H, W) and the expected ones (N, K).

    Raises:
        WrongAnswerError: It is not within 1e-5.
    """
    got = form.predict(images)
    if got.shape != expected.shape:
        raise WrongAnswerError(f"{form.name} answers shape {got.shape}, expected {expected.shape}")
    difference = float(np.abs(got - expected).max())
    if not difference <= TOLERANCE:
        raise WrongAnswerError(
            f"{form.name} differs by {difference:.3g} from numpy's average on {len(images)} images, allowed {TOLERANCE:g}"
        )
    return difference


def session_of(content: bytes, threads: int, spins: bool) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a graph, in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _in_turn(sessions: Sequence[onnxruntime.InferenceSession]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return _average([session.run(["logits"], {"images": images})[0] for session in sessions])

    return predict


def _in_pool(sessions: Sequence[onnxruntime.InferenceSession], pool: ThreadPoolExecutor) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        runs = [pool.submit(session.run, ["logits"], {"images": images}) for session in sessions]
        return _average([run.result()[0] for run in runs])

    return predict


def asked_in_process(session: onnxruntime.InferenceSession) -> Predict:
    """The probabilities that a fused graph answers."""

    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        probabilities: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        return probabilities

    return predict


def asked_of(client: Client) -> Predict:
    """The probabilities that a client's own model answers."""
    return lambda images: client.predict(images).probabilities


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
