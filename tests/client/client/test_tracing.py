"""Trace context on the wire, and spans of OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from defensemble import Client, InputError, RequestRefusedError
from tests.support.facts import raises
from tests.support.flaky import FlakyTransport
from tests.support.tiny import images

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def headers_of(transport: FlakyTransport) -> dict[str, str]:
    headers: dict[str, str] = dict(transport.seen[-1]["headers"])
    return headers


def test_the_callers_trace_context_is_sent() -> None:
    transport = FlakyTransport()
    client = Client("fake", transport=transport)
    client.predict(images(1), traceparent=PARENT)
    sent = headers_of(transport)["traceparent"]
    assert sent.split("-")[1] == PARENT.split("-")[1], "the same trace"
    with raises(InputError, "traceparent | 'nonsense'"):
        client.predict(images(1), traceparent="nonsense")


def test_request_ids_are_the_callers_or_new_and_chunks_extend_them() -> None:
    transport = FlakyTransport()
    client = Client("fake", transport=transport)
    first, second = client.predict(images(1)), client.predict(images(1))
    assert first.request_id != second.request_id
    assert transport.seen[-1]["request_id"] == second.request_id
    assert client.predict(images(17), request_id="mine").request_id == "mine"
    assert sorted(seen["request_id"] for seen in transport.seen[-3:]) == ["mine/0", "mine/16", "mine/8"]
    for wrong in ("", "a\nb", "é", "x" * 201, 7):
        with raises(InputError, "request_id"):
            client.predict(images(1), request_id=wrong)  # type: ignore[arg-type]


def test_calls_are_client_spans_where_the_application_uses_opentelemetry() -> None:
    trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider: Any = trace.get_tracer_provider()
    if not isinstance(provider, trace_sdk.TracerProvider):
        provider = trace_sdk.TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    transport = FlakyTransport([None, None, RequestRefusedError("no")])
    client = Client("fake", transport=transport)
    with trace.get_tracer("test").start_as_current_span("parent") as parent:
        client.predict(images(1))
        with pytest.raises(RequestRefusedError):
            client.predict(images(1), model="ensemble")
    good, bad, _ = exporter.get_finished_spans()
    assert (good.name, good.kind) == ("defensemble predict", trace.SpanKind.CLIENT)
    assert good.parent is not None
    assert good.parent.span_id == parent.get_span_context().span_id
    assert good.attributes is not None
    assert good.attributes["server.address"] == "fake://server"
    assert bad.status.status_code is trace.StatusCode.ERROR
    assert f"{good.context.span_id:016x}" in transport.seen[1]["headers"]["traceparent"]


def test_opentelemetry_is_not_imported_by_the_client() -> None:
    script = "import sys, defensemble; defensemble.Client('http://localhost'); assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
