"""Callers that abort their calls: deadlines, cancelled calls, closed channels and sockets. Killed callers are in `killed.py`."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from benchmarks.aborting.patient import PATIENCE_S
from benchmarks.aborting.plan import Abort, draw_aborts
from benchmarks.common.answers import Array
from benchmarks.common.callers import choose_rows
from benchmarks.common.oracle import OUTPUTS, find_mistake
from defensemble import GrpcTransport, HttpTransport, OutputRequest, ServiceError, Transport

ABORTED, ANSWERED, REFUSED, PLAIN, WRONG = "aborted", "answered", "refused", "plain", "wrong"
"""Aborted before the response; answered before it; no server; a call without an abort; such a call with a wrong response."""
_PLAIN_INTERVAL = 16
_MIN_S = 0.0002
_RECENT = 32
_PAUSE_S = 0.05
_HEAD_BYTES = 200  # fewer than the head of any response, so that part of every response remains unread
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attempt: `calls` were in flight at the abort, `seconds` after their start."""

    protocol: str
    kind: str
    how: str
    seconds: float
    calls: int = 1
    detail: str = ""


@dataclass(frozen=True)
class AbortingCallers:
    """The aborting callers of one process.

    Calls that fail because the server is down are repeated and do not count. Callers end when done, or after 30 s without a server.

    Attributes:
        url: The server's URL.
        model: Name of the model.
        pool: The images.
        right: The expected outputs for the pool.
        counts: Number of aborts by kind.
        threads: Number of callers.
        seed: Seed of the aborts.
        made: Counter of the aborts, shared with the main process.
    """

    url: str
    model: str
    pool: NDArray[np.float32]
    right: Mapping[str, Array]
    counts: Mapping[str, int]
    threads: int
    seed: int
    made: Synchronized[int]

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[Outcome]:
        """Make all aborts, or end when `stop` is set."""
        aborts = draw_aborts(self.url.partition(":")[0], self.counts, self.seed)
        pace = Pace()
        callers = [_Caller(self, pace, stop) for _ in range(self.threads)]
        threads = [
            threading.Thread(target=caller.make_aborts, args=(aborts[index :: self.threads],), name=f"aborting-{index}")
            for index, caller in enumerate(callers)
        ]
        on_started()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [outcome for caller in callers for outcome in caller.outcomes]


class Pace:
    """The current duration of a call: the median of the last ones with a response."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)  # its append is atomic

    def add(self, seconds: float) -> None:
        """Add the duration of a call."""
        self._recent.append(seconds)

    def after(self, moment: float) -> float:
        """Return a fraction of the duration of a call, in seconds."""
        return max(_MIN_S, moment * statistics.median(list(self._recent)))


class _Caller:
    def __init__(self, job: AbortingCallers, pace: Pace, stop: Event) -> None:
        self.outcomes: list[Outcome] = []
        self._job, self._pace, self._stop = job, pace, stop
        self._protocol, _, self._netloc = job.url.partition("://")
        self._host, _, port = self._netloc.rpartition(":")
        self._port = int(port)

    def make_aborts(self, aborts: list[Abort]) -> None:
        with contextlib.ExitStack() as stack:
            self._transport = transport_to(self._job.url)
            stack.callback(self._transport.close)
            if self._protocol == "grpc":
                self._channel = stack.enter_context(grpc.insecure_channel(self._netloc, _OPTIONS))
            for index, abort in enumerate(aborts):
                if index % _PLAIN_INTERVAL == 0 and not self._is_served(abort):
                    return
                while not self._attempt(abort):
                    if not self._is_served(abort):
                        return
                with self._job.made.get_lock():
                    self._job.made.value += 1

    def _attempt(self, abort: Abort) -> bool:
        """Abort one call. Returns False if no server accepted it."""
        methods = {"deadline": self._deadline, "cancel": self._cancel, "expire": self._expire}
        methods["close"] = self._close_channel if self._protocol == "grpc" else self._close_socket
        began = time.monotonic()
        how, calls, detail = methods[abort.kind](abort, self._pace.after(abort.moment))
        took = time.monotonic() - began
        if how == ANSWERED and abort.in_flight == 1:
            self._pace.add(took)  # excludes the time of our client and of the comparison, which is most of a call of 1 ms
        self.outcomes.append(Outcome(self._protocol, abort.kind, how, took, calls, detail))
        return how != REFUSED

    def _is_served(self, abort: Abort) -> bool:
        """Make a call without an abort, and check its response. Returns False after 30 s without one, or when stopped."""
        ends = time.monotonic() + PATIENCE_S
        while not self._stop.is_set() and time.monotonic() < ends:
            began = time.monotonic()
            try:
                wrong = self._infer(abort, PATIENCE_S)
            except ServiceError as error:
                self.outcomes.append(Outcome(self._protocol, PLAIN, REFUSED, time.monotonic() - began, 1, _class_name(error)))
                self._stop.wait(_PAUSE_S)
                continue
            took = time.monotonic() - began
            self._pace.add(took)
            self.outcomes.append(Outcome(self._protocol, PLAIN, PLAIN if wrong is None else WRONG, took, 1, wrong or ""))
            return True
        return False

    def _infer(self, abort: Abort, timeout_s: float) -> str | None:
        """Call with our own transport. Returns what is wrong with the response, or None."""
        rows, images = self._images(abort)
        outputs = abort.outputs or (
            () if self._protocol == "grpc" else OUTPUTS
        )  # over HTTP, our transport reads only outputs that it requested
        response = self._transport.infer(self._job.model, {"images": images}, [OutputRequest(name) for name in outputs], timeout_s)
        return find_mistake(response, self._job.right, rows, outputs)

    def _images(self, abort: Abort) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = choose_rows(self._job.seed, 0, abort.number, len(self._job.pool), abort.batch)
        return rows, self._job.pool[rows]

    # Over gRPC

    def _deadline(self, abort: Abort, after_s: float) -> tuple[str, int, str]:
        """Let a deadline expire that the server knows, as other clients do: our transport does not send one to a Triton before 2.54."""
        call = self._start_call(self._channel, abort, after_s)
        error = call.exception()
        if error is not None:
            return (ABORTED, 1, "") if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else (REFUSED, 1, error.code().name)
        result = InferResult(call.result())
        response = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
        wrong = find_mistake(response, self._job.right, self._images(abort)[0], abort.outputs)
        return (ANSWERED, 0, "") if wrong is None else (WRONG, 0, wrong)

    def _cancel(self, abort: Abort, after_s: float) -> tuple[str, int, str]:
        call = self._start_call(self._channel, abort)
        with contextlib.suppress(grpc.FutureTimeoutError):
            if (error := call.exception(timeout=after_s)) is not None:
                return REFUSED, 1, error.code().name
        return (ABORTED, 1, "") if call.cancel() else (ANSWERED, 0, "")

    def _close_channel(self, abort: Abort, after_s: float) -> tuple[str, int, str]:
        responded = threading.Event()
        with grpc.insecure_channel(self._netloc, _OPTIONS) as channel:
            try:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(service_pb2.ServerLiveRequest(), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                return REFUSED, abort.in_flight, error.code().name
            calls = [self._start_call(channel, abort) for _ in range(abort.in_flight)]
            if abort.at_response:
                for call in calls:
                    call.add_done_callback(lambda _: responded.set())
                responded.wait(PATIENCE_S)
            else:
                time.sleep(after_s)
            open_calls = [call for call in calls if not call.done()]
        failures = [call.exception() for call in calls if call not in open_calls]
        refused = [failure.code().name for failure in failures if failure is not None]
        if refused:
            return REFUSED, abort.in_flight, refused[0]
        return (ABORTED if open_calls else ANSWERED), len(open_calls), ""

    def _start_call(self, channel: grpc.Channel, abort: Abort, timeout_s: float = PATIENCE_S) -> Any:
        _, images = self._images(abort)
        request = service_pb2.ModelInferRequest(model_name=self._job.model, raw_input_contents=[images.tobytes()])
        request.inputs.add(name="images", datatype="FP32", shape=images.shape)
        for name in abort.outputs:
            request.outputs.add(name=name)
        return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request, timeout=timeout_s)

    # Over HTTP

    def _expire(self, abort: Abort, after_s: float) -> tuple[str, int, str]:
        ends = time.monotonic() + after_s
        try:
            with socket.create_connection((self._host, self._port), timeout=after_s) as connection:
                connection.sendall(self._request(abort))
                connection.settimeout(max(_MIN_S, ends - time.monotonic()))
                response = connection.recv(1)
        except TimeoutError:
            return ABORTED, 1, ""
        except OSError as error:
            return REFUSED, 1, type(error).__name__
        return (ANSWERED, 0, "") if response else (REFUSED, 1, "no response")

    def _close_socket(self, abort: Abort, after_s: float) -> tuple[str, int, str]:
        """Close within the request or the response. Half of the closes discard unread data, so that the server sees a reset."""
        part = 2 * abort.part
        try:
            with socket.create_connection((self._host, self._port), timeout=PATIENCE_S) as connection:
                request = self._request(abort)
                if part < 1:
                    connection.sendall(request[: int(part * len(request))])
                else:
                    connection.sendall(request)
                    if not connection.recv(1 + int((part - 1) * (_HEAD_BYTES - 1))):
                        return REFUSED, 1, "no response"
                if abort.number % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as error:
            return REFUSED, 1, type(error).__name__
        return ABORTED, 1, ""

    def _request(self, abort: Abort) -> bytes:
        """Return an HTTP request with binary tensors."""
        _, images = self._images(abort)
        tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
        document: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        if abort.outputs:
            document["outputs"] = [{"name": name} for name in abort.outputs]
        head = json.dumps(document).encode()
        headers = [
            f"POST /v2/models/{self._job.model}/infer HTTP/1.1",
            f"Host: {self._netloc}",
            f"Inference-Header-Content-Length: {len(head)}",
            f"Content-Length: {len(head) + images.nbytes}",
        ]
        return "\r\n".join([*headers, "", ""]).encode() + head + images.tobytes()


def transport_to(url: str) -> Transport:
    """Return the client's transport for a URL."""
    return GrpcTransport(url) if url.startswith("grpc:") else HttpTransport(url)


def _class_name(error: ServiceError) -> str:
    return type(error).__name__
