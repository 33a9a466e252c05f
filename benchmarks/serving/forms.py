"""The compared forms with a server: the ensemble behind Triton and behind FastAPI, and a single member."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import session_from_onnx
from benchmarks.common.forms import Form
from benchmarks.common.raw_calls import Sockets, bytes_request, triton_forms
from benchmarks.common.server_processes import ServerProcesses
from benchmarks.common.servers import ENSEMBLE, free_port, wait_for_response
from benchmarks.peering.catalogue import FASTAPI_SERVER, Launch
from defensemble_export import ExportedMember
from defensemble_server import Server

FASTAPI = "fastapi"


class FastApiError(Exception):
    """The FastAPI service did not start."""


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
