"""The compared forms: the ensemble behind Triton and behind FastAPI, the same members in the caller's process, and a single member."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.forms import Form, predict_in_process
from benchmarks.common.raw_calls import Sockets, bytes_request, triton_forms
from benchmarks.common.servers import ENSEMBLE, free_port, wait_for_response
from benchmarks.common.timing import Predict
from benchmarks.peering.apps.ensemble import average
from benchmarks.peering.catalogue import FASTAPI_SERVER, Launch
from benchmarks.peering.running import ServerProcesses
from defensemble_export import ExportedMember, fused_onnx
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_server import Server

FASTAPI = "fastapi"
_POOL = 2


class FastApiError(Exception):
    """The FastAPI service did not start."""


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


@contextmanager
def forms_served(server: Server, members: Sequence[ExportedMember]) -> Iterator[list[Form]]:
    """Create the forms with a server: the ensemble over gRPC and over HTTP, and the members behind FastAPI.

    Raises:
        FastApiError: The FastAPI service did not start.
    """
    with ExitStack() as stack:
        forms = triton_forms(server.http_url, server.grpc_url, ENSEMBLE, "probabilities", stack)
        sockets = Sockets(stack.enter_context(_fastapi_server(members)), bytes_request("/predict"))
        stack.callback(sockets.close)
        yield [*forms, Form("FastAPI", sockets.predict, FASTAPI)]


@contextmanager
def forms_of_one_member(server: Server, member: ExportedMember) -> Iterator[list[Form]]:
    """Create the forms of a single member: over gRPC, over HTTP, and in the caller's process. They return logits."""
    session = session_from_onnx(member.onnx)

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
        return logits

    with ExitStack() as stack:
        forms = triton_forms(server.http_url, server.grpc_url, member.name, "logits", stack)
        yield [*forms, Form("session, run by its callers", predict)]


@contextmanager
def _fastapi_server(members: Sequence[ExportedMember]) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as name:
        folder = Path(name)
        paths = [folder / f"{member.name}.onnx" for member in members]
        for path, member in zip(paths, members, strict=True):
            path.write_bytes(member.onnx)
        launch = Launch(FASTAPI_SERVER.python, folder, free_port(), 0, {})
        server = ServerProcesses(
            FASTAPI_SERVER.command(launch), folder, {"MEMBERS": ":".join(map(str, paths)), **FASTAPI_SERVER.environment_variables(launch)}
        )
        try:
            url = f"http://127.0.0.1:{launch.http_port}"
            if not wait_for_response(url, lambda: server.running, ok=lambda status: True):
                raise FastApiError(f"uvicorn did not start:\n{server.log_end}")
            yield url
        finally:
            server.stop()


def _in_turn(sessions: Sequence[onnxruntime.InferenceSession]) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return average([session.run(["logits"], {"images": images})[0] for session in sessions])

    return predict


def _in_pool(sessions: Sequence[onnxruntime.InferenceSession], pool: ThreadPoolExecutor) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        runs = [pool.submit(session.run, ["logits"], {"images": images}) for session in sessions]
        return average([run.result()[0] for run in runs])

    return predict
