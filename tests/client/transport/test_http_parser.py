"""The HTTP parser: a response is the same however it is cut, and what cannot be a response raises."""

from __future__ import annotations

import gc
import os
import tracemalloc
import weakref
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from defensemble._transport.http_parser import HttpResponse, ProtocolError, ResponseReader, request_parts

BODY = bytes(range(256)) * 3
CHUNKED = b"".join(f"{len(BODY[at : at + 100]):x};x=y\r\n".encode() + BODY[at : at + 100] + b"\r\n" for at in range(0, len(BODY), 100))
RESPONSES = {
    "with a length": b"HTTP/1.1 200 OK\r\nContent-Length: 768\r\nX-A:  b \r\n\r\n" + BODY,
    "in chunks": b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: Chunked\r\n\r\n" + CHUNKED + b"0\r\nX-A: trailer\r\n\r\n",
    "after others": b"HTTP/1.1 100 Continue\r\nX-A: c\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n"
    b"HTTP/1.1 200\r\nx-a: b\r\nContent-Length: 768\r\n\r\n" + BODY,
    "to the end": b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\n" + BODY,
}


def read(parts: list[bytes]) -> tuple[HttpResponse, bool]:
    """Return the response, and whether its connection is reusable; an empty part is the end of the connection."""
    reader = ResponseReader(memoryview(bytearray(1 << 16)))
    for part in parts:
        left = part
        while left or not part:
            assert not reader.is_complete
            buffer = reader.buffer()
            count = min(len(buffer), len(left))
            buffer[:count] = left[:count]
            reader.received(count)
            left = left[count:]
            if not part:
                break
    assert reader.is_complete
    return reader.response(), reader.is_reusable


@pytest.mark.parametrize("name", RESPONSES)
@given(data=st.data())
def test_a_response_is_the_same_however_it_is_cut(name: str, data: st.DataObject) -> None:
    whole = RESPONSES[name]
    places = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    parts = [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]
    ends_with_connection = name == "to the end"
    response, is_reusable = read([*parts, b""] if ends_with_connection else parts)
    assert (response.status, response.headers[b"x-a"], bytes(response.body)) == (200, b"b", BODY)
    assert response.body.readonly
    assert is_reusable is not ends_with_connection


@pytest.mark.parametrize("name", ["with a length", "in chunks", "after others"])
@pytest.mark.parametrize("rest", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n", b"HTTP", b"x"])
def test_a_connection_with_more_than_the_response_is_not_reused(name: str, rest: bytes) -> None:
    response, is_reusable = read([RESPONSES[name] + rest])
    assert (response.status, bytes(response.body), is_reusable) == (200, BODY, False)


@pytest.mark.parametrize("name", RESPONSES)
def test_a_cut_response_raises(name: str) -> None:
    whole = RESPONSES[name]
    for end in range(0, len(whole) - (len(BODY) if name == "to the end" else 0), 7):
        with pytest.raises(ConnectionResetError):
            read([whole[:end], b""] if end else [b""])


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_responses_have_no_body_whatever_they_announce(status: str) -> None:
    response, is_reusable = read([f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode()])
    assert (bytes(response.body), is_reusable) == (b"", True)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_after_a_head_never_raise_another_error(garbage: bytes) -> None:
    for head in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        reader = ResponseReader(memoryview(bytearray(1 << 16)))
        content = head + garbage
        reader.buffer()[: len(content)] = content
        try:
            reader.received(len(content) or 0)
        except (ProtocolError, ConnectionResetError):
            continue
        assert reader.is_complete or len(reader.buffer()) > 0


def test_the_body_is_freed_without_a_garbage_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        reader = ResponseReader(memoryview(bytearray(1 << 16)))
        whole = RESPONSES["with a length"]
        reader.buffer()[: len(whole)] = whole
        reader.received(len(whole))
        alive = weakref.ref(reader)
        del reader
        assert alive() is None
    finally:
        gc.enable()


def test_a_length_that_is_announced_and_not_sent_takes_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    reader = ResponseReader(memoryview(bytearray(1 << 16)))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000000\r\n\r\n{"
    before = resident_bytes()
    reader.buffer()[: len(head)] = head
    reader.received(len(head))
    assert len(reader.buffer()) == 2_000_000_000 - 1
    assert resident_bytes() - before < 1 << 24


def test_tiny_chunks_take_the_memory_of_their_content() -> None:
    tracemalloc.start()
    try:
        reader = ResponseReader(memoryview(bytearray(1 << 16)))
        for part in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"2\r\nab\r\n" * 5000] * 4):
            reader.buffer()[: len(part)] = part
            reader.received(len(part))
        assert tracemalloc.get_traced_memory()[0] < 300_000, "40,000 bytes of content, and the memory to receive into"
    finally:
        tracemalloc.stop()


def test_small_parts_of_a_request_are_joined() -> None:
    big = bytes(1 << 17)
    parts = request_parts("POST", "/x", "Host: h\r\n", [b"head", memoryview(big), b"end"])
    assert [len(part) for part in parts[1:]] == [len(big), 3]
    assert bytes(parts[0]) == f"POST /x HTTP/1.1\r\nContent-Length: {len(big) + 7}\r\nHost: h\r\n\r\nhead".encode()
