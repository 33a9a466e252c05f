"""The HTTP transport, with tensors as bytes (the binary extension of the KServe v2 protocol)."""

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

from .._exceptions import InputError, ServerFailedError, ServiceError
from .address import address_from_url
from .base import (
    NO_HEADERS,
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
    format_version,
)
from .error_mapping import (
    NO_HINTS,
    call_context,
    error_from_connect,
    error_from_http,
    error_from_os,
    error_from_redirect,
    hints_for_admins,
    model_control_disabled,
    protocol_errors,
    redact_key,
    service_error,
)
from .http_connection import ConnectError, HttpPool, HttpResponse, ProtocolError
from .tensor_codec import array_from_wire

_HIDDEN_HTML = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_MAX_ERROR_BYTES = 1 << 16
_MAX_ERROR_CHARACTERS = 4000  # a rejected load comes with a reason for each version
_MAX_PAGE_CHARACTERS = 4096  # the pattern above takes up to quadratic time
_MAX_PAGE_TEXT = 200
_NOT_TRITON_HINT = "Is this the HTTP port of a Triton server (8000 by default), and does a proxy forward its /v2 paths?"


class HttpTransport(Transport):
    """Call a Triton server over HTTP (`http://`, or `https://` to a TLS proxy in front of it). Threads and forked children may share it.

    Args:
        url: The server's URL.
        context: The TLS context for `https://`; by default, the system's root certificates are trusted.
        admin_key: Sent only with calls of the repository API and for configurations.

    Raises:
        InputError: The URL is not the URL of an HTTP server, or the key is malformed.

    Example:
        >>> client = Client("http://localhost:8000", transport=HttpTransport("http://localhost:8000"))
    """

    def __init__(self, url: str, *, context: ssl.SSLContext | None = None, admin_key: str | None = None) -> None:
        address = address_from_url(url)
        if address.scheme not in ("http", "https"):
            raise InputError(
                f"HttpTransport expects http:// or https://, got {url!r:.120}: use GrpcTransport, or Client, which chooses by the URL"
            )
        self._url = address.url
        self._admin_key = check_admin_key(admin_key)
        self._admin_headers = "" if admin_key is None else f"x-admin-key: {admin_key}\r\n"
        self._pool = HttpPool(address, (context or ssl.create_default_context()) if address.scheme == "https" else None)

    def __repr__(self) -> str:
        return f"HttpTransport({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        contents = [np.ascontiguousarray(array).data.cast("B") for array in inputs.values()]
        head = _encode_head(tuple((name, array.shape) for name, array in inputs.items()), tuple(outputs))
        headers = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
        context = call_context(self._url, "run model", model)
        response = self._call("POST", f"{_path(model, version)}/infer", context, timeout_s, headers, [head, *contents])
        return _arrays_from_response(response, context)

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        context = call_context(self._url, "read the metadata of model", model)
        document = self._get_json(_path(model), context, timeout_s)
        with protocol_errors(context):
            inputs, outputs = (tuple(map(_parse_tensor, document.get(key, []))) for key in ("inputs", "outputs"))
            return ModelMetadata(_check_string(document["name"]), _check_string(document.get("platform", "")), inputs, outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        context = call_context(self._url, "read the configuration of model", model)
        return _parse_json_object(self._admin_call("GET", f"{_path(model, version)}/config", context, timeout_s), context)

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        context = call_context(self._url, "read the repository index")
        document = _parse_json(self._admin_call("POST", "/v2/repository/index", context, timeout_s, [b"{}"]), context)
        with protocol_errors(context):
            if not isinstance(document, list):
                raise TypeError(f"expected a list, got {document!r:.100}")
            return [
                ModelState(
                    _check_string(entry["name"]),
                    _check_integer(entry["version"]) if entry.get("version") else None,
                    _check_string(entry.get("state", "")),
                    _check_string(entry.get("reason", "")),
                )
                for entry in document
            ]

    def load_model(self, model: str, timeout_s: float) -> None:
        self._load_or_unload("load", model, timeout_s)

    def unload_model(self, model: str, timeout_s: float) -> None:
        self._load_or_unload("unload", model, timeout_s)

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        context = call_context(self._url, "list the models")
        document = self._get_json("/v2/models/stats", context, timeout_s)
        with protocol_errors(context):
            return [
                ModelStatistics(
                    _check_string(entry["name"]),
                    _check_integer(entry["version"]),
                    sum(_check_integer(entry["inference_stats"][outcome]["count"]) for outcome in ("success", "fail")),
                    _check_integer(entry["execution_count"]),
                    _check_integer(entry["last_inference"]),
                )
                for entry in document["model_stats"]
            ]

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        context = call_context(self._url, "read the server metadata")
        document = self._get_json("/v2", context, timeout_s)
        with protocol_errors(context):
            return ServerMetadata(_check_string(document["name"]), _check_string(document["version"]))

    def live(self, timeout_s: float) -> bool:
        return self._health("live", timeout_s)

    def ready(self, timeout_s: float) -> bool:
        return self._health("ready", timeout_s)

    def close(self) -> None:
        self._pool.close()

    def _health(self, kind: str, timeout_s: float) -> bool:
        context = call_context(self._url, "check the health")
        response = self._exchange("GET", f"/v2/health/{kind}", context, timeout_s)
        if response.status not in (400, 503):  # 400 means "not healthy" from Triton, 503 from newer versions
            self._check(response, context)
        return response.status == 200

    def _get_json(self, target: str, context: str, timeout_s: float) -> dict[str, Any]:
        response = self._call("GET", target, context, timeout_s)
        return _parse_json_object(bytes(response.body), context)

    def _load_or_unload(self, verb: str, model: str, timeout_s: float) -> None:
        context = call_context(self._url, f"{verb} model", model)
        response = self._exchange(
            "POST", f"/v2/repository/models/{quote(model, safe='')}/{verb}", context, timeout_s, self._admin_headers, [b"{}"]
        )
        if response.status == 503 and self._index_is_open(timeout_s):
            raise model_control_disabled(context, f"HTTP 503, {_error_text(response, self._admin_key)!r}")
        self._check(response, context, hints_for_admins(self._admin_key))

    def _index_is_open(self, timeout_s: float) -> bool:
        # A server without explicit model control serves its index; one that is shutting down responds with 503 to that, too.
        try:
            self.repository_index(timeout_s)
        except ServiceError:
            return False  # not swallowed: the caller raises the error that led here
        return True

    def _admin_call(self, method: str, target: str, context: str, timeout_s: float, body: Sequence[bytes] = ()) -> bytes:
        response = self._exchange(method, target, context, timeout_s, self._admin_headers, body)
        self._check(response, context, hints_for_admins(self._admin_key))
        return bytes(response.body)

    def _check(self, response: HttpResponse, context: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> None:
        if response.status != 200:
            raise error_from_http(response.status, _error_text(response, self._admin_key), context, hints, response.headers)

    def _call(
        self, method: str, target: str, context: str, timeout_s: float, headers: str = "", body: Sequence[bytes | memoryview] = ()
    ) -> HttpResponse:
        response = self._exchange(method, target, context, timeout_s, headers, body)
        self._check(response, context)
        return response

    def _exchange(
        self, method: str, target: str, context: str, timeout_s: float, headers: str = "", body: Sequence[bytes | memoryview] = ()
    ) -> HttpResponse:
        try:
            response = self._pool.exchange(method, target, headers, body, timeout_s)
        except ConnectError as error:
            raise error_from_connect(error.cause, self._url) from error.cause
        except OSError as error:
            raise error_from_os(error, context) from error
        except ProtocolError as error:
            raise service_error(ServerFailedError, context, f"the response is not valid HTTP/1.1: {error}") from error
        if 300 <= response.status < 400:
            location = response.headers.get(b"location")
            place = None if location is None else redact_key(location.decode("latin-1"), self._admin_key)
            raise error_from_redirect(response.status, place, context, f"{self._url}{target}")
        if response.status == 200 and _is_html(response):
            reason = f"the response is a web page, not a KServe response: {_error_text(response, self._admin_key)!r}"
            raise service_error(ServerFailedError, context, reason, {ServerFailedError: _NOT_TRITON_HINT})
        return response


def _path(model: str, version: int | None = None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{format_version(version)}"


# The JSON part is the same in most requests and responses of a model. Caching it saves 25 us of a call of 460: encoding and decoding are
# slow right after a call, when the code of json is not in the processor's caches.
@lru_cache(maxsize=256)
def _encode_head(inputs: tuple[tuple[str, tuple[int, ...]], ...], outputs: tuple[OutputRequest, ...]) -> bytes:
    tensors = [
        {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 4 * math.prod(shape)}}
        for name, shape in inputs
    ]
    requested = []
    for output in outputs:
        classes = {"classification": output.class_count} if output.class_count else {}
        requested.append({"name": output.name, "parameters": {"binary_data": True, **classes}})
    return json.dumps({"inputs": tensors, "outputs": requested}).encode()


@lru_cache(maxsize=256)
def _parse_layout(head: bytes, context: str) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    """Return name, datatype, shape and size in bytes of each output, in the order of their data."""
    document = _parse_json_object(head, context)
    with protocol_errors(context):
        tensors = [(_parse_tensor(output), _check_size(output["parameters"]["binary_data_size"])) for output in document["outputs"]]
        return tuple((tensor.name, tensor.datatype, tensor.shape, size) for tensor, size in tensors)


def _parse_tensor(document: Mapping[str, Any]) -> TensorMetadata:
    return TensorMetadata(_check_string(document["name"]), _check_string(document["datatype"]), _check_shape(document["shape"]))


def _arrays_from_response(response: HttpResponse, context: str) -> Outputs:
    length = response.headers.get(b"inference-header-content-length", b"")
    if not length.isdigit():
        raise service_error(ServerFailedError, context, f"the response has no binary data: {_error_text(response)!r}")
    with protocol_errors(context):
        position = int(length)  # raises for too many digits
    arrays = Outputs({})
    for name, datatype, shape, size in _parse_layout(bytes(response.body[:position]), context):
        arrays[name] = array_from_wire(datatype, shape, response.body[position : position + size], context)
        position += size
    return arrays


def _check_string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r:.100}")
    return value


def _check_integer(value: object) -> int:
    # A number, or a string: the JSON form of protobuf's int64 and of Triton's versions.
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r:.100}")
    return int(value)


def _check_size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a number of bytes, got {value!r:.100}")
    return value


def _check_shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of integers, got {value!r:.100}")
    return tuple(_check_integer(size) for size in value)


def _parse_json(content: bytes, context: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise service_error(ServerFailedError, context, f"the response is not JSON: {content[:200]!r}") from error


def _parse_json_object(content: bytes, context: str) -> dict[str, Any]:
    document = _parse_json(content, context)
    if not isinstance(document, dict):
        raise service_error(ServerFailedError, context, f"the response is not a JSON object: {content[:200]!r}")
    return document


def _error_text(response: HttpResponse, admin_key: str | None = None) -> str:
    """Return the server's text in a response that reports an error."""
    text = redact_key(bytes(response.body[:_MAX_ERROR_BYTES]).decode("utf-8", "replace"), admin_key)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _text_of_html(text) if _is_html(response) else text[:300]
    return str(document["error"])[:_MAX_ERROR_CHARACTERS] if isinstance(document, dict) and "error" in document else text[:300]


def _is_html(response: HttpResponse) -> bool:
    return response.headers.get(b"content-type", b"").lower().startswith((b"text/html", b"application/xhtml"))


def _text_of_html(page: str) -> str:
    """Return the visible text of an HTML page, or the start of its source if there is none."""
    text = " ".join(html.unescape(_HIDDEN_HTML.sub(" ", page[:_MAX_PAGE_CHARACTERS])).split())
    return (text or page)[:_MAX_PAGE_TEXT]
