"""HTTP, with tensors as bytes (the binary extension of the KServe v2 protocol)."""

from __future__ import annotations

import html
import json
import math
import re
import ssl
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError, ServerFailedError, ServiceError
from .address import address_from_url
from .base import (
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    TensorMetadata,
    Transport,
    check_admin_key,
    version_text,
)
from .error_mapping import (
    NO_HINTS,
    error_from_http,
    error_from_os,
    error_from_redirect,
    hints_for_admins,
    model_control_disabled,
    reading,
    redact_key,
    service_error,
)
from .http_connection import Answer, HttpPool, ProtocolError
from .tensor_codec import array_from_wire

_NOT_SHOWN = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_LONGEST_ERROR_BYTES = 1 << 16
_LONGEST_ERROR = 4000  # a load that is refused comes with a reason for each version
_PAGE_CHARACTERS = 4096  # of which the text is taken: the pattern above takes up to the square of that
_LONGEST_PAGE_TEXT = 200
_NO_TRITON = "Is this the address of a Triton server's HTTP port (8000 where none was chosen), and does a proxy pass its /v2 paths on?"


class HttpTransport(Transport):
    """Talks HTTP to a Triton server (`http://`, or `https://` to a TLS proxy before it); threads may share it, and forked children.

    `context` is for `https://`; the system's roots by default. `admin_key` goes with calls of the repository and for configurations, and
    with no others.

    Raises:
        InputError: The URL is not one of an HTTP server, or the key is none.
    """

    def __init__(self, url: str, *, context: ssl.SSLContext | None = None, admin_key: str | None = None) -> None:
        address = address_from_url(url)
        if address.scheme not in ("http", "https"):
            raise InputError(f"HttpTransport takes http:// and https://, got {url!r:.120}: use GrpcTransport, or Client, which chooses")
        self._url = address.url
        self._admin_key = check_admin_key(admin_key)
        self._admin_headers = "" if admin_key is None else f"x-admin-key: {admin_key}\r\n"
        self._pool = HttpPool(address, (context or ssl.create_default_context()) if address.scheme == "https" else None)

    def __repr__(self) -> str:
        return f"HttpTransport({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def infer(self, model: str, inputs: Inputs, outputs: Sequence[OutputRequest], timeout_s: float, version: int | None = None) -> Outputs:
        contents = [np.ascontiguousarray(array).data.cast("B") for array in inputs.values()]
        head = _request_head(tuple((name, array.shape) for name, array in inputs.items()), tuple(outputs))
        headers = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
        what = f"{self._url}, asked to run model {model!r}"
        answer = self._call("POST", f"{_path(model, version)}/infer", what, timeout_s, headers, [head, *contents])
        return _arrays_from_answer(answer, what)

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        asked = f"for the metadata of model {model!r}"
        told = self._json(_path(model), asked, timeout_s)
        with reading(f"{self._url}, asked {asked}"):
            inputs, outputs = (
                tuple(TensorMetadata(_text(t["name"]), _text(t["datatype"]), _shape(t["shape"])) for t in told.get(key, []))
                for key in ("inputs", "outputs")
            )
            return ModelMetadata(_text(told["name"]), _text(told.get("platform", "")), inputs, outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        what = f"{self._url}, asked for the configuration of model {model!r}"
        return _object_from_json(self._admin_call("GET", f"{_path(model, version)}/config", what, timeout_s), what)

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        what = f"{self._url}, asked for its repository's index"
        told = _from_json(self._admin_call("POST", "/v2/repository/index", what, timeout_s, [b"{}"]), what)
        with reading(what):
            if not isinstance(told, list):
                raise TypeError(f"expected a list, got {told!r:.100}")
            return [
                ModelState(
                    _text(one["name"]),
                    _whole(one["version"]) if one.get("version") else None,
                    _text(one.get("state", "")),
                    _text(one.get("reason", "")),
                )
                for one in told
            ]

    def load_model(self, model: str, timeout_s: float) -> None:
        self._change("load", model, timeout_s)

    def unload_model(self, model: str, timeout_s: float) -> None:
        self._change("unload", model, timeout_s)

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        asked = "which models it serves"
        told = self._json("/v2/models/stats", asked, timeout_s)
        with reading(f"{self._url}, asked {asked}"):
            return [
                ModelStatistics(
                    _text(one["name"]),
                    _whole(one["version"]),
                    sum(_whole(one["inference_stats"][ended]["count"]) for ended in ("success", "fail")),
                    _whole(one["execution_count"]),
                    _whole(one["last_inference"]),
                )
                for one in told["model_stats"]
            ]

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        told = self._json("/v2", "for its version", timeout_s)
        with reading(f"{self._url}, asked for its version"):
            return ServerMetadata(_text(told["name"]), _text(told["version"]))

    def live(self, timeout_s: float) -> bool:
        return self._health("live", timeout_s)

    def ready(self, timeout_s: float) -> bool:
        return self._health("ready", timeout_s)

    def close(self) -> None:
        self._pool.close()

    def _health(self, kind: str, timeout_s: float) -> bool:
        what = f"{self._url}, asked for its health"
        answer = self._exchange("GET", f"/v2/health/{kind}", what, timeout_s)
        if answer.status not in (400, 503):  # Triton answers 400 where it is not, newer ones 503
            self._check(answer, what)
        return answer.status == 200

    def _json(self, target: str, asked: str, timeout_s: float) -> dict[str, Any]:
        what = f"{self._url}, asked {asked}"
        answer = self._call("GET", target, what, timeout_s)
        return _object_from_json(bytes(answer.body), what)

    def _change(self, verb: str, model: str, timeout_s: float) -> None:
        what = f"{self._url}, asked to {verb} model {model!r}"
        answer = self._exchange(
            "POST", f"/v2/repository/models/{quote(model, safe='')}/{verb}", what, timeout_s, self._admin_headers, [b"{}"]
        )
        if answer.status == 503 and self._tells_its_index(timeout_s):
            raise model_control_disabled(what, f"HTTP 503, {_told(answer, self._admin_key)!r}")
        self._check(answer, what, hints_for_admins(self._admin_key))

    def _tells_its_index(self, timeout_s: float) -> bool:
        # A server without explicit model control does; one on its way down answers 503 to that, too.
        try:
            self.repository_index(timeout_s)
        except ServiceError:
            return False  # not swallowed: the caller is about to raise the error that made it ask
        return True

    def _admin_call(self, method: str, target: str, what: str, timeout_s: float, body: Sequence[bytes] = ()) -> bytes:
        answer = self._exchange(method, target, what, timeout_s, self._admin_headers, body)
        self._check(answer, what, hints_for_admins(self._admin_key))
        return bytes(answer.body)

    def _check(self, answer: Answer, what: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> None:
        if answer.status != 200:
            raise error_from_http(answer.status, _told(answer, self._admin_key), what, hints, answer.headers)

    def _call(
        self, method: str, target: str, what: str, timeout_s: float, headers: str = "", body: Sequence[bytes | memoryview] = ()
    ) -> Answer:
        answer = self._exchange(method, target, what, timeout_s, headers, body)
        self._check(answer, what)
        return answer

    def _exchange(
        self, method: str, target: str, what: str, timeout_s: float, headers: str = "", body: Sequence[bytes | memoryview] = ()
    ) -> Answer:
        try:
            answer = self._pool.exchange(method, target, headers, body, timeout_s)
        except OSError as error:
            raise error_from_os(error, what) from error
        except ProtocolError as error:
            raise service_error(ServerFailedError, what, f"no HTTP/1.1 that can be read: {error}") from error
        if 300 <= answer.status < 400:
            location = answer.headers.get(b"location")
            place = None if location is None else redact_key(location.decode("latin-1"), self._admin_key)
            raise error_from_redirect(answer.status, place, what, f"{self._url}{target}")
        if answer.status == 200 and _is_page(answer):
            told = f"a web page instead of an answer of the KServe protocol: {_told(answer, self._admin_key)!r}"
            raise service_error(ServerFailedError, what, told, {ServerFailedError: _NO_TRITON})
        return answer


def _path(model: str, version: int | None = None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version_text(version)}"


# The JSON beside the tensors is the same in most requests and answers of a model. Kept, it need not be written and read again, which took
# 25 us of a call of 460: right after a call the processor's caches hold nothing of json.
@lru_cache(maxsize=256)
def _request_head(inputs: tuple[tuple[str, tuple[int, ...]], ...], outputs: tuple[OutputRequest, ...]) -> bytes:
    tensors = [
        {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 4 * math.prod(shape)}}
        for name, shape in inputs
    ]
    wanted = []
    for output in outputs:
        classes = {"classification": output.class_count} if output.class_count else {}
        wanted.append({"name": output.name, "parameters": {"binary_data": True, **classes}})
    return json.dumps({"inputs": tensors, "outputs": wanted}).encode()


@lru_cache(maxsize=256)
def _layout(head: bytes, what: str) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    """Name, datatype, shape and size in bytes of each output, in the order of their data."""
    told = _object_from_json(head, what)
    with reading(what):
        return tuple(
            (_text(o["name"]), _text(o["datatype"]), _shape(o["shape"]), _size(o["parameters"]["binary_data_size"]))
            for o in told["outputs"]
        )


def _arrays_from_answer(answer: Answer, what: str) -> dict[str, NDArray[Any]]:
    length = answer.headers.get(b"inference-header-content-length", b"")
    if not length.isdigit():
        raise service_error(ServerFailedError, what, f"its answer has no binary data: {_told(answer)!r}")
    with reading(what):
        at = int(length)  # which refuses more digits than it will read
    arrays = {}
    for name, datatype, shape, size in _layout(bytes(answer.body[:at]), what):
        arrays[name] = array_from_wire(datatype, shape, answer.body[at : at + size], what)
        at += size
    return arrays


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r:.100}")
    return value


def _whole(value: object) -> int:
    # As a number or, as the JSON form of protobuf's int64 and Triton's versions, a text.
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {value!r:.100}")
    return int(value)


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a number of bytes, got {value!r:.100}")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of whole numbers, got {value!r:.100}")
    return tuple(_whole(size) for size in value)


def _from_json(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise service_error(ServerFailedError, what, f"its answer is not JSON: {content[:200]!r}") from error


def _object_from_json(content: bytes, what: str) -> dict[str, Any]:
    told = _from_json(content, what)
    if not isinstance(told, dict):
        raise service_error(ServerFailedError, what, f"its answer is not a JSON object: {content[:200]!r}")
    return told


def _told(answer: Answer, admin_key: str | None = None) -> str:
    """The server's own words in an answer that is not a success."""
    text = redact_key(bytes(answer.body[:_LONGEST_ERROR_BYTES]).decode("utf-8", "replace"), admin_key)
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return _page_text(text) if _is_page(answer) else text[:300]
    return str(told["error"])[:_LONGEST_ERROR] if isinstance(told, dict) and "error" in told else text[:300]


def _is_page(answer: Answer) -> bool:
    return answer.headers.get(b"content-type", b"").lower().startswith((b"text/html", b"application/xhtml"))


def _page_text(page: str) -> str:
    """What a page of HTML shows, or the beginning of its source where it shows nothing."""
    shown = " ".join(html.unescape(_NOT_SHOWN.sub(" ", page[:_PAGE_CHARACTERS])).split())
    return (shown or page)[:_LONGEST_PAGE_TEXT]
