"""Trace context: the W3C header `traceparent`, and spans of OpenTelemetry where the application uses it.

Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from .._exceptions import InputError
from .._transport.base import NO_HEADERS
from .._version import __version__

_NO_TRACE = nullcontext(NO_HEADERS)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def trace_headers(action: str, model: str | None, url: str, traceparent: str | None) -> AbstractContextManager[Mapping[str, str]]:
    """Return a context that gives the headers that connect the server's trace with the caller's.

    If the application has imported OpenTelemetry, the context is a client span, which the headers carry.

    Args:
        action: What the call does, such as `predict`.
        model: The model's name, if the caller named one.
        url: The servers.
        traceparent: The parent of the call; None for the current span, if there is one.

    Raises:
        InputError: `traceparent` is not a W3C `traceparent`.
    """
    uses_spans = "opentelemetry.trace" in sys.modules
    if traceparent is None and not uses_spans:
        return _NO_TRACE
    if traceparent is not None and (not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent)):
        raise InputError(
            "traceparent must be a W3C trace context such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, "
            f"got {traceparent!r:.100}"
        )
    given = NO_HEADERS if traceparent is None else {"traceparent": traceparent}
    return _span(action, model, url, given) if uses_spans else nullcontext(given)


@contextmanager
def _span(action: str, model: str | None, url: str, given: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import SpanKind, get_tracer

    attributes = {"server.address": url} if model is None else {"server.address": url, "defensemble.model": model}
    tracer = get_tracer("defensemble", __version__)
    context = extract(given) if given else None
    with tracer.start_as_current_span(f"defensemble {action}", context, SpanKind.CLIENT, attributes):
        headers: dict[str, str] = {}
        inject(headers)
        yield headers or given
