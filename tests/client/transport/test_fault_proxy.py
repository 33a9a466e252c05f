"""The proxy of the fault tests does what its faults promise, seen from a raw socket in front of a server that echoes."""

from __future__ import annotations

import gc
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support import tcp_proxy
from tests.support.scripted import ScriptedServer, scripted
from tests.support.tcp_proxy import TcpProxy, answer, connected_sockets, corrupt, cut, delay, drip, proxied, replace, reset, slow, stall


@pytest.fixture
def echo() -> Iterator[ScriptedServer]:
    with scripted(lambda connection, received: connection.sendall(received)) as server:
        yield server


@pytest.fixture
def proxy(echo: ScriptedServer) -> Iterator[TcpProxy]:
    with proxied(echo.url) as proxy:
        yield proxy


@pytest.fixture
def caller(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as caller:
        yield caller


def echoed(caller: socket.socket, text: bytes) -> bytes:
    """Send a text, and return as many bytes as it has, or those before the connection's end."""
    caller.sendall(text)
    received = b""
    while len(received) < len(text) and (more := caller.recv(len(text) - len(received))):
        received += more
    return received


def test_without_faults_it_forwards_and_counts(proxy: TcpProxy, caller: socket.socket) -> None:
    assert echoed(caller, b"abc") == b"abc"
    assert echoed(caller, b"abc") == b"abc"
    assert (proxy.accepted, proxy.open, proxy.exchanges) == (1, 1, 2)
    large = bytes(range(256)) * 8000
    assert echoed(caller, large) == large
    assert connected_sockets(proxy.port) == 1
    with pytest.raises(AssertionError):
        proxy.assert_no_socket_left(0.01)
    caller.close()
    proxy.assert_no_socket_left()


def test_each_fault_takes_one_exchange(proxy: TcpProxy, caller: socket.socket) -> None:
    proxy.inject(None, corrupt(1, 2), replace(b"XY", 2), replace(b"Z", 0, "up"), answer("503 Busy"))
    assert echoed(caller, b"abcd") == b"abcd"
    changed = echoed(caller, b"abcd")
    assert (changed[:1], changed[3:]) == (b"a", b"d")
    assert all(now != before for now, before in zip(changed[1:3], b"bc", strict=True))
    assert echoed(caller, b"abcd") == b"abXY"
    assert echoed(caller, b"abcd") == b"Zbcd"
    request = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n1234"
    expected = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    caller.sendall(request[:30])
    assert echoed(caller, request[30:]) == expected[: len(request) - 30]
    assert caller.recv(100) == expected[len(request) - 30 :]
    assert echoed(caller, b"abcd") == b"abcd"
    assert [fault.action for fault in proxy.taken] == ["corrupt", "corrupt", "corrupt", "answer"]


def test_corruption_depends_only_on_the_seed(echo: ScriptedServer) -> None:
    def corrupted(seed: int) -> bytes:
        with proxied(echo.url, seed) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 5) as caller:
            proxy.inject(corrupt(count=8))
            return echoed(caller, b"abcdefgh")

    assert corrupted(1) == corrupted(1) != corrupted(2)


def test_a_cut_truncates(proxy: TcpProxy, caller: socket.socket) -> None:
    proxy.inject(cut(2))
    assert echoed(caller, b"abcd") == b"ab"
    assert proxy.open == 1, "the client has to close its side"
    caller.close()
    proxy.assert_no_socket_left()


def test_a_reset_raises(proxy: TcpProxy, caller: socket.socket) -> None:
    proxy.inject(reset(0, "up"))
    with pytest.raises(ConnectionResetError):
        echoed(caller, b"abcd")


def test_a_stalled_connection_is_silent_and_open(proxy: TcpProxy, caller: socket.socket) -> None:
    proxy.inject(stall(2))
    caller.sendall(b"abcd")
    assert caller.recv(2) == b"ab"
    caller.settimeout(0.02)
    with pytest.raises(TimeoutError):
        caller.recv(1)
    caller.close()
    proxy.assert_no_socket_left()


@pytest.mark.parametrize(("fault", "seconds"), [(delay(0.02), (0.02, 0.0)), (slow(0.02), (0.02, 0.02)), (drip(0.01), (0.04, 0.04))])
def test_bytes_come_late(proxy: TcpProxy, caller: socket.socket, fault: tcp_proxy.Fault, seconds: tuple[float, float]) -> None:
    proxy.inject(fault)
    for least in seconds:
        started = time.monotonic()
        assert echoed(caller, b"abcd") == b"abcd"
        assert time.monotonic() - started >= least


def test_it_refuses_and_accepts_again_on_the_same_port(proxy: TcpProxy) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as caller:
            assert echoed(caller, b"abcd") == b"abcd"
            with proxy.refusing():
                with pytest.raises(ConnectionResetError):
                    echoed(caller, b"abcd")
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", proxy.port), 5)


@pytest.mark.filterwarnings("always::ResourceWarning")
def test_a_connection_that_comes_as_it_closes_is_closed_too(echo: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    gc.collect()  # what earlier tests left
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: warned.append(str(unraisable.exc_value)))
    monkeypatch.setattr("warnings.showwarning", lambda message, *_: warned.append(str(message)))
    for count in range(1, 20):
        proxy = TcpProxy(int(echo.url.rpartition(":")[2]))
        callers = [socket.create_connection(("127.0.0.1", proxy.port), 5) for _ in range(count)]
        proxy.close()
        for caller in callers:
            caller.close()
        del proxy
        gc.collect()
    assert warned == []
