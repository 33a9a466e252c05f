"""The HTTP transports, for Triton and other servers of the KServe v2 protocol."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from .._exceptions import InputError, ServerFailedError, ServiceError
from .address import address_from_url
from .base import (
    BINARY_TENSORS,
    NO_HEADERS,
    STATISTICS,
    AsyncTransport,
    ConnectionOptions,
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    check_admin_key,
    check_compression,
    format_version,
)
from .blocking import BlockingTransport
from .error_mapping import (
    NO_HINTS,
    call_context,
    error_from_connect,
    error_from_http,
    error_from_os,
    error_from_redirect,
    hints_for_admins,
    model_control_disabled,
    redact_key,
    service_error,
)
from .error_pages import error_text, is_html
from .http_connection import ConnectError, HttpPool
from .http_documents import (
    parse_index,
    parse_json_object,
    parse_model_metadata,
    parse_model_names,
    parse_server_metadata,
    parse_statistics,
)
from .http_parser import HttpResponse, ProtocolError
from .http_tensors import binary_request, fits_json, json_request, outputs_from_response
from .socket_waits import BlockingWaits, SocketWaits
from .tls import ssl_context_for_address

_Body = Sequence[bytes | memoryview]

_MAX_INFLATED_BYTES = 1 << 28  # outputs are small: a few compressed bytes must not fill the memory
_NOT_TRITON_HINT = "Is this the HTTP port of a Triton server (8000 by default), and does a proxy forward its /v2 paths?"
# For binary tensors, MLServer responds with 422 or 500, also where another reason is the true one; the others are in the protocol's spirit.
_REFUSALS_OF_BINARY = (400, 415, 422, 500, 501)
_REFUSALS_OF_API = (400, 404, 405, 501)


class AsyncHttpTransport(AsyncTransport):
    """Call a server over HTTP from an event loop (`http://`, or `https://` to a TLS proxy in front of Triton).

    It may be used from several event loops, one after the other, and from forked children.

    Args:
        url: The server's URL.
        options: The admin key, the files for TLS, and the compression.

    Raises:
        InputError: The URL is not the URL of an HTTP server, or an option is invalid.

    Example:
        >>> transport = AsyncHttpTransport("http://localhost:8000")
        >>> await transport.models(timeout_s=5)
    """

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        from .asyncio_waits import AsyncioWaits  # asyncio takes 80 ms to import, which blocking callers need not pay

        self._connect(url, options or ConnectionOptions(), AsyncioWaits())

    def _connect(self, url: str, options: ConnectionOptions, waits: SocketWaits) -> None:
        address = address_from_url(url)
        if address.scheme not in ("http", "https"):
            raise InputError(
                f"HttpTransport expects http:// or https://, got {url!r:.120}: use GrpcTransport, or Client, which chooses by the URL"
            )
        self._url = address.url
        self._admin_key = check_admin_key(options.admin_key)
        self._admin_headers = "" if self._admin_key is None else f"x-admin-key: {self._admin_key}\r\n"
        self._compression = check_compression(options.compression)
        self._pool = HttpPool(address, ssl_context_for_address(address, options.tls), waits)
        self._missing_features: frozenset[str] = frozenset()
        self._reads_binary = False  # whether the server was seen to do so

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    @property
    def missing_features(self) -> frozenset[str]:
        return self._missing_features

    async def infer(
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
        deadline = time.monotonic() + timeout_s
        context = call_context(self._url, "run model", model)
        target = f"{_path(model, version)}/infer"
        more_headers = _header_lines(headers) if headers else ""

        async def send(request: tuple[str, list[bytes | memoryview]]) -> HttpResponse:
            return await self._exchange("POST", target, context, deadline, more_headers + request[0], request[1])

        if BINARY_TENSORS in self._missing_features:
            response = await send(json_request(inputs, outputs, request_id))
        else:
            response = await send(binary_request(inputs, outputs, request_id))
            if response.status in _REFUSALS_OF_BINARY and not self._reads_binary and fits_json(inputs):
                # Every server reads JSON: what it refuses there, it did not refuse for the tensors' form.
                response = await send(json_request(inputs, outputs, request_id))
                if response.status == 200:
                    values = outputs_from_response(response, outputs, request_id, context)
                    self._missing_features |= {BINARY_TENSORS}
                    return values
            elif response.status == 200:
                self._reads_binary = True
        self._check(response, context)
        return outputs_from_response(response, outputs, request_id, context)

    async def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        context = call_context(self._url, "read the metadata of model", model)
        return parse_model_metadata(await self._get(_path(model), context, timeout_s), context)

    async def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        context = call_context(self._url, "read the configuration of model", model)
        response = await self._admin_exchange("GET", f"{_path(model, version)}/config", context, time.monotonic() + timeout_s)
        return parse_json_object(bytes(response.body), context)

    async def models(self, timeout_s: float) -> list[str]:
        deadline = time.monotonic() + timeout_s
        context = call_context(self._url, "list the models")
        response: HttpResponse | None = None
        if STATISTICS not in self._missing_features:
            response = await self._exchange("GET", "/v2/models/stats", context, deadline)
            if response.status not in _REFUSALS_OF_API:
                self._check(response, context)
                return sorted({entry.name for entry in parse_statistics(bytes(response.body), context)})
        names = await self._models_without_statistics(context, deadline, response)
        self._missing_features |= {STATISTICS}
        return sorted(set(names))

    async def repository_index(self, timeout_s: float) -> list[ModelState]:
        context = call_context(self._url, "read the repository index")
        response = await self._admin_exchange("POST", "/v2/repository/index", context, time.monotonic() + timeout_s, [b"{}"])
        return parse_index(bytes(response.body), context)

    async def load_model(self, model: str, timeout_s: float) -> None:
        await self._load_or_unload("load", model, timeout_s)

    async def unload_model(self, model: str, timeout_s: float) -> None:
        await self._load_or_unload("unload", model, timeout_s)

    async def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        context = call_context(self._url, "read the statistics")
        return parse_statistics(await self._get("/v2/models/stats", context, timeout_s), context)

    async def server_metadata(self, timeout_s: float) -> ServerMetadata:
        context = call_context(self._url, "read the server metadata")
        return parse_server_metadata(await self._get("/v2", context, timeout_s), context)

    async def live(self, timeout_s: float) -> bool:
        return await self._health("live", timeout_s)

    async def ready(self, timeout_s: float) -> bool:
        return await self._health("ready", timeout_s)

    async def close(self) -> None:
        self._pool.close()

    async def _health(self, kind: str, timeout_s: float) -> bool:
        context = call_context(self._url, "check the health")
        response = await self._exchange("GET", f"/v2/health/{kind}", context, time.monotonic() + timeout_s)
        if response.status not in (400, 503):  # 400 means "not healthy" from Triton, 503 from newer versions
            self._check(response, context)
        return response.status == 200

    async def _get(self, target: str, context: str, timeout_s: float) -> bytes:
        response = await self._exchange("GET", target, context, time.monotonic() + timeout_s)
        self._check(response, context)
        return bytes(response.body)

    async def _models_without_statistics(self, context: str, deadline: float, refusal: HttpResponse | None) -> list[str]:
        """Return the names of the loaded models from the index or, of KServe's own server, from its list.

        Args:
            context: The failed call, for the message of an error.
            deadline: The deadline.
            refusal: The response to the request for statistics, which is reported if there is neither.
        """
        response = await self._exchange("POST", "/v2/repository/index", context, deadline, self._admin_headers, [b"{}"])
        if response.status == 200:
            return [entry.name for entry in parse_index(bytes(response.body), context) if entry.state == "READY"]
        response = await self._exchange("GET", "/v2/models", context, deadline)
        if response.status == 200:
            return parse_model_names(bytes(response.body), context)
        raise self._error(refusal or response, context)

    async def _load_or_unload(self, verb: str, model: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        context = call_context(self._url, f"{verb} model", model)
        target = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
        response = await self._exchange("POST", target, context, deadline, self._admin_headers, [b"{}"])
        if response.status == 503 and await self._index_is_open(deadline):
            raise model_control_disabled(context, f"HTTP 503, {error_text(response, self._admin_key)!r}")
        self._check(response, context, hints_for_admins(self._admin_key))

    async def _index_is_open(self, deadline: float) -> bool:
        # A server without explicit model control serves its index; one that is shutting down responds with 503 to that, too.
        try:
            await self.repository_index(deadline - time.monotonic())
        except ServiceError:
            return False  # not swallowed: the caller raises the error that led here
        return True

    async def _admin_exchange(self, method: str, target: str, context: str, deadline: float, body: _Body = ()) -> HttpResponse:
        response = await self._exchange(method, target, context, deadline, self._admin_headers, body)
        self._check(response, context, hints_for_admins(self._admin_key))
        return response

    def _check(self, response: HttpResponse, context: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> None:
        if response.status != 200:
            raise self._error(response, context, hints)

    def _error(self, response: HttpResponse, context: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> ServiceError:
        return error_from_http(response.status, error_text(response, self._admin_key), context, hints, response.headers)

    async def _exchange(self, method: str, target: str, context: str, deadline: float, headers: str = "", body: _Body = ()) -> HttpResponse:
        if self._compression is not None:
            headers += "Accept-Encoding: gzip\r\n"
            if body:
                headers += "Content-Encoding: gzip\r\n"
                body = [_compress(body)]
        try:
            response = _decompressed(await self._pool.exchange(method, target, headers, body, deadline))
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
        if response.status == 200 and is_html(response):
            reason = f"the response is a web page, not a KServe response: {error_text(response, self._admin_key)!r}"
            raise service_error(ServerFailedError, context, reason, {ServerFailedError: _NOT_TRITON_HINT})
        return response


class _BlockingCalls(AsyncHttpTransport):
    """The calls over sockets that block, so that no call suspends."""

    def __init__(self, url: str, options: ConnectionOptions | None) -> None:
        self._connect(url, options or ConnectionOptions(), BlockingWaits())


class HttpTransport(BlockingTransport):
    """Call a server over HTTP (`http://`, or `https://` to a TLS proxy in front of Triton). Threads and forked children may share it.

    Args:
        url: The server's URL.
        options: The admin key, the files for TLS, and the compression.

    Raises:
        InputError: The URL is not the URL of an HTTP server, or an option is invalid.

    Example:
        >>> client = Client("http://localhost:8000", transport=HttpTransport("http://localhost:8000"))
    """

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        super().__init__(_BlockingCalls(url, options))


@lru_cache(maxsize=256)
def _model_path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _path(model: str, version: int | None = None) -> str:
    path = _model_path(model)
    return path if version is None else f"{path}/versions/{format_version(version)}"


def _header_lines(headers: Mapping[str, str]) -> str:
    for name, value in headers.items():
        if not (f"{name}{value}".isascii() and f"{name}{value}".isprintable() and name.strip() and ":" not in name):
            raise InputError(
                f"header {name!r:.100} with the value {value!r:.100}: expected a name and a value of printable ASCII characters"
            )
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def _compress(body: _Body) -> bytes:
    compressor = zlib.compressobj(level=1, wbits=31)  # as gzip
    return b"".join([*(compressor.compress(part) for part in body), compressor.flush()])


def _decompressed(response: HttpResponse) -> HttpResponse:
    encoding = response.headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity" or not response.body:
        return response
    try:
        body = _inflate(response.body, encoding)
    except ProtocolError:
        if response.status == 200:
            raise
        body = b""  # the status of an error matters more than a page that nobody can read
    return HttpResponse(response.status, response.headers, memoryview(body))


def _inflate(content: memoryview, encoding: bytes) -> bytes:
    if encoding not in (b"gzip", b"x-gzip"):
        raise ProtocolError(f"unknown content encoding {encoding[:40]!r}; expected gzip")
    decompressor = zlib.decompressobj(wbits=31)
    try:
        inflated = decompressor.decompress(content, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ProtocolError(f"its gzip content is corrupt ({error})") from error
    if decompressor.unconsumed_tail:
        raise ProtocolError(f"a response of more than {_MAX_INFLATED_BYTES} bytes when decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise ProtocolError("its gzip content is cut, or has more after its end")
    return inflated
