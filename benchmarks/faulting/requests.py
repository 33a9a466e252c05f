"""Hostile requests: random bytes, cut-off and oversized requests, bad tensors, path tricks, and bodies that end core 2.51."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common import http2
from benchmarks.common.raw_http import chunked
from benchmarks.common.servers import ENSEMBLE
from benchmarks.faulting.bad_tensors import HUGE_BATCH, grpc_bad_tensors, http_bad_tensors
from benchmarks.faulting.fault import ACCEPTED, REFUSED, TRUNCATED, UNANSWERED, UNREACHED, Injection
from benchmarks.faulting.raw import grpc_frames, http_request, infer_path, json_request, send_bytes, valid_document
from benchmarks.faulting.stage import Stage

_CALL_S = 5.0
_RANDOM_BYTES = 4096
_QUIET_S = 0.2  # to wait for an answer to nonsense
NAMES = (
    "..",
    ".",
    "../ensemble",
    "../../../../etc/passwd",
    "/etc/passwd",
    f"{ENSEMBLE}/../{ENSEMBLE}",
    f"./{ENSEMBLE}",
    f"{ENSEMBLE}/",
    f"{ENSEMBLE}\\..\\{ENSEMBLE}",
    f"{ENSEMBLE[:3]}\x00{ENSEMBLE[3:]}",  # core 2.51 ends a name at NUL: with it at the end, a name over gRPC is the name without it
    f"{ENSEMBLE}\n",
    f" {ENSEMBLE}",
    ENSEMBLE.upper(),
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "$(id)",
    "`id`",
    "{{7*7}}",
    "%s%s%s%n",
    "\u202eelbmesne",
    "\uff0e\uff0e\uff0fetc",
    "a" * 10_000,
    "a" * 200_000,
)
"""Names of models that do not exist, some of which are paths to files if a server joins them to a folder."""


def random_requests(names: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Return `count` random requests for each port of `names`: nonsense, nonsense behind a head, and random HTTP/2 frames."""
    generator = np.random.default_rng((seed, 1))
    for _, name in itertools.product(range(count), names):
        content = generator.bytes(int(generator.integers(1, _RANDOM_BYTES)))
        how = int(generator.integers(0, 3))
        if how == 1:
            content = grpc_frames(generator, len(content)) if name == "grpc" else http_request(infer_path(ENSEMBLE), content)
        elif how == 2:
            content = http2.PREFACE + content if name == "grpc" else b"GET /" + content
        yield name, content


def send_random_bytes(stage: Stage) -> Injection:
    """Send random requests to every port."""
    injection = Injection()
    for name, content in random_requests(list(stage.ports), stage.effort.requests, stage.seed):
        injection.add(send_bytes(stage.ports[name], content, timeout_s=_QUIET_S), f"random bytes to {name}: {content[:40]!r}")
    return injection.end()


def send_truncated(stage: Stage) -> Injection:
    """Send valid requests up to a random byte, and then nothing more, to every port."""
    generator = np.random.default_rng((stage.seed, 2))
    images = stage.pool[:1]
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
    requests = [
        json_request(ENSEMBLE, valid_document(images)),
        json_request(ENSEMBLE, {"inputs": [tensor]}, images.tobytes()),
        http_request("/v2/repository/index", b"{}"),
    ]
    injection = Injection()
    for number, (name, port) in itertools.product(range(stage.effort.requests), stage.ports.items()):
        request = http2.PREFACE if name == "grpc" else requests[number % len(requests)]
        cut = request[: int(generator.integers(1, len(request)))]
        injection.add(send_bytes(port, cut, timeout_s=_QUIET_S), f"{len(cut)} of {len(request)} bytes to {name}")
    return injection.end()


def send_oversized(stage: Stage) -> Injection:
    """Send oversized requests to every port: paths, headers, numbers of headers, declared and real bodies, gRPC messages."""
    injection = Injection()
    path, big = infer_path(ENSEMBLE), 1 << 20
    requests = {
        "a path of 1 MB": http_request(f"/{'a' * big}", method="GET"),
        "a header of 1 MB": http_request(path, headers={"X-Big": "a" * big}),
        "100,000 headers": http_request(path, headers={f"X-{number}": "a" for number in range(100_000)}),
        "a declared body of 1 EB": http_request(path, b"{}", headers={"Content-Length": str(10**18)}),
        "a declared body above 64 bits": http_request(path, b"{}", headers={"Content-Length": str(2**70)}),
        "a negative body": http_request(path, b"{}", headers={"Content-Length": "-1"}),
        "a body of 64 MB of blanks": http_request(path, b" " * (64 * big)),
        "a text of 16 MB in the JSON": http_request(path, b'{"inputs": [{"name": "' + b"a" * (16 * big) + b'"}]}'),
    }
    for (description, request), (name, port) in itertools.product(requests.items(), stage.ports.items()):
        injection.add(send_bytes(port, request, timeout_s=_CALL_S if name == "http" else 1.0), f"{description} to {name}")
    frame = http2.PREFACE + b"\xff\xff\xff\x00\x00" + (1).to_bytes(4, "big") + bytes(big)
    injection.add(send_bytes(stage.ports["grpc"], frame), "a frame of 16 MB to grpc")
    message = service_pb2.ModelInferRequest(model_name=ENSEMBLE, raw_input_contents=[bytes(64 * big)])
    message.inputs.add(name="images", datatype="FP32", shape=stage.pool[:1].shape)
    _infer_all(stage, {"a message of 64 MB": message}, injection)
    return injection.end()


def send_bad_tensors(stage: Stage) -> Injection:
    """Send inferences with wrong types, shapes and sizes over both protocols, for a while."""
    injection = Injection()
    http_requests, messages = http_bad_tensors(stage.pool[:1]), grpc_bad_tensors(stage.pool[:1])
    ends = time.monotonic() + stage.effort.flood_s
    while True:
        for description, request in http_requests.items():
            injection.add(send_bytes(stage.ports["http"], request, timeout_s=_CALL_S, half_close=False), f"{description} over HTTP")
        _infer_all(stage, messages, injection)
        if time.monotonic() > ends:
            return injection.end()


def send_path_tricks(stage: Stage) -> Injection:
    """Ask for models whose names mean paths: inference, metadata, configuration, statistics, loads and unloads, with the admin key."""
    injection = Injection()
    port, key = stage.ports["http"], {"x-admin-key": stage.server.state.admin_key}
    document = valid_document(stage.pool[:1])
    for name in NAMES:
        for encoded in dict.fromkeys((quote(name, safe=""), "".join(f"%{byte:02x}" for byte in name.encode()[:1000]))):
            base = f"/v2/models/{encoded}"
            requests = {
                "inference": json_request(encoded, document),
                "metadata": http_request(base, method="GET"),
                "configuration": http_request(f"{base}/config", method="GET", headers=key),
                "readiness": http_request(f"{base}/ready", method="GET"),
                "statistics": http_request(f"{base}/stats", method="GET"),
                "load": http_request(f"/v2/repository/models/{encoded}/load", b"{}", headers=key),
            }
            for action, request in requests.items():
                outcome = send_bytes(port, request, timeout_s=_CALL_S, half_close=False)
                injection.add(outcome, f"{action} of {name[:40]!r} over HTTP")
    _call_by_name(stage, injection)
    return injection.end()


def send_deep_json(stage: Stage) -> Injection:
    """Send 120 kB of `[`, which ends core 2.51."""
    injection = Injection()
    injection.add(send_bytes(stage.ports["http"], http_request(infer_path(ENSEMBLE), b"[" * 120_000), half_close=False), "120 kB of `[`")
    return injection.end()


def send_inflating_body(stage: Stage) -> Injection:
    """Send a small gzip body that inflates to gigabytes."""
    size = stage.effort.inflated_bytes
    coder = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    part = b" " * 1_000_000
    body = b"".join(coder.compress(part) for _ in range(size // len(part))) + coder.flush()
    injection = Injection(facts={"bytes_sent": len(body), "bytes_inflated": size})
    request = http_request(infer_path(ENSEMBLE), body, headers={"Content-Encoding": "gzip"})
    injection.add(send_bytes(stage.ports["http"], request, timeout_s=60.0, half_close=False), "a gzip body")
    return injection.end()


def send_chunks(stage: Stage) -> Injection:
    """Send two million HTTP chunks of one byte, which end core 2.51."""
    request = http_request(infer_path(ENSEMBLE), chunked(b" " * 2_000_000, 1), headers={"Transfer-Encoding": "chunked"})
    injection = Injection()
    injection.add(send_bytes(stage.ports["http"], request, timeout_s=30.0, half_close=False), "two million chunks")
    return injection.end()


def _infer_all(stage: Stage, messages: dict[str, service_pb2.ModelInferRequest], injection: Injection) -> None:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{stage.ports['grpc']}", options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for description, message in messages.items():
            outcome = _outcome(stub.ModelInfer.future(message, timeout=_CALL_S))
            injection.add(TRUNCATED if (outcome, description) == (ACCEPTED, HUGE_BATCH) else outcome, f"{description} over gRPC")


def _call_by_name(stage: Stage, injection: Injection) -> None:
    images = stage.pool[:1]
    key = (("triton-grpc-protocol-x-admin-key", stage.server.state.admin_key),)
    with grpc.insecure_channel(f"127.0.0.1:{stage.ports['grpc']}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name in NAMES:
            request = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[images.tobytes()])
            request.inputs.add(name="images", datatype="FP32", shape=images.shape)
            calls = {
                "inference": stub.ModelInfer.future(request, timeout=_CALL_S),
                "metadata": stub.ModelMetadata.future(service_pb2.ModelMetadataRequest(name=name), timeout=_CALL_S),
                "configuration": stub.ModelConfig.future(service_pb2.ModelConfigRequest(name=name), timeout=_CALL_S, metadata=key),
                "load": stub.RepositoryModelLoad.future(
                    service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=_CALL_S, metadata=key
                ),
            }
            for action, call in calls.items():
                injection.add(_outcome(call), f"{action} of {name[:40]!r} over gRPC")


def _outcome(call: grpc.Future) -> str:
    error = call.exception()
    if error is None:
        return ACCEPTED
    return {grpc.StatusCode.DEADLINE_EXCEEDED: UNANSWERED, grpc.StatusCode.UNAVAILABLE: UNREACHED}.get(error.code(), REFUSED)
