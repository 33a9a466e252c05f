"""Trace context: the W3C header `traceparent`, and spans of OpenTelemetry where the application uses it.

Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .._exceptions import InputError
from .._transport.base import NO_HEADERS
from .._version import __version__

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@contextmanager
def trace_headers(action: str, model: str | None, url: str, traceparent: str | None) -> Iterator[Mapping[str, str]]:
    """Yield the headers that connect the server's trace with the caller's.

    If the application has imported OpenTelemetry, the block is a client span, whose context the headers carry.

    Args:
        action: What the call does, such as `predict`.
        model: The model's name, if the caller named one.
        url: The servers.
        traceparent: The parent of the call; None for the current span, if there is one.

    Raises:
        InputError: `traceparent` is not a W3C `traceparent`.
    """
    if traceparent is not None and (not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent)):
        raise InputError(
            "traceparent must be a W3C trace context such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, "
            f"got {traceparent!r:.100}"
        )
    given = NO_HEADERS if traceparent is None else {"traceparent": traceparent}
    if "opentelemetry.trace" not in sys.modules:  # an application that does not use it pays nothing
        yield given
        return
    from opentelemetry import propagate, trace

    attributes = {"server.address": url} if model is None else {"server.address": url, "defensemble.model": model}
    tracer = trace.get_tracer("defensemble", __version__)
    context = propagate.extract(given) if given else None
    with tracer.start_as_current_span(f"defensemble {action}", context, trace.SpanKind.CLIENT, attributes):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        yield headers or given
