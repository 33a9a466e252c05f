"""Start a contender as its users do, and call it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.forms import Form, check_answers
from benchmarks.common.raw_calls import Sockets, predict_with_stub
from benchmarks.common.server_processes import ServerProcesses
from benchmarks.common.servers import ENSEMBLE, free_port
from benchmarks.peering.catalogue import FUSED, Contender, Launch
from defensemble_export import ExportedMember

_START_TIMEOUT_S = 120.0
_POLL_S = 0.02
_SETTLE_S = 2.0  # from the first answer, more workers start; Ray's proxy closes all connections when it hears of them


class ContenderError(Exception):
    """A server did not start, or ended by itself."""


@dataclass(frozen=True)
class Served:
    """What is served, and how the answers are checked.

    Attributes:
        members: The members.
        images: (N, C, H, W), with N at least 128, the largest number that all callers of a setting use together.
        expected: The correct probabilities (N, K) for `images`.
        repositories: Our repositories, by the key of the server.
        variables: Environment variables of all servers.
    """

    members: Sequence[ExportedMember]
    images: NDArray[np.float32]
    expected: Array
    repositories: Mapping[str, Path]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Running:
    """A server that answers correctly.

    Attributes:
        processes: Its processes.
        forms: Ways to call it.
        start_s: Seconds from the start of its first process to the first right answer.
    """

    processes: ServerProcesses
    forms: list[Form]
    start_s: float


@contextmanager
def running(contender: Contender, python: Path, served: Served) -> Iterator[Running]:
    """Start a server, wait for its first right answer, and end it.

    Args:
        contender: The server.
        python: The Python of its environment.
        served: What it serves.

    Raises:
        ContenderError: The server did not start.
        WrongAnswerError: Its first answer is wrong.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True)))
        launch = Launch(python, folder, free_port(), free_port(), served.repositories)
        command = contender.command(launch)
        began = time.monotonic()
        processes = ServerProcesses(command, folder, {**served.variables, **contender.environment_variables(launch)})
        stack.callback(processes.stop)
        url = f"http://127.0.0.1:{launch.http_port}"
        _wait_for_answer(contender, processes, url, served)
        start_s = time.monotonic() - began
        settled = time.monotonic() + _SETTLE_S
        while time.monotonic() < settled:
            _wait_for_answer(contender, processes, url, served)
        sockets = Sockets(url, contender.http)
        stack.callback(sockets.close)
        forms = [Form(contender.form_names[0], sockets.predict, "http")]
        if contender.grpc:
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{launch.grpc_port}"))
            grpc.channel_ready_future(channel).result(_START_TIMEOUT_S)
            model = FUSED if contender.key == FUSED else ENSEMBLE
            forms.append(Form(contender.form_names[1], predict_with_stub(channel, model), "grpc"))
        yield Running(processes, forms, start_s)


def _wait_for_answer(contender: Contender, processes: ServerProcesses, url: str, served: Served) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while processes.running:
        sockets = Sockets(url, contender.http)
        try:
            check_answers(Form(contender.title, sockets.predict), served.images[:1], served.expected[:1])
        except OSError as error:  # not listening, or not ready
            if time.monotonic() > deadline:
                raise ContenderError(
                    f"{contender.title} did not answer within {_START_TIMEOUT_S:g} s: {error}; it printed:\n{processes.log_end}"
                ) from error
            time.sleep(_POLL_S)
        else:
            return
        finally:
            sockets.close()
    raise ContenderError(f"{contender.title} ended before its first answer; it printed:\n{processes.log_end}")
