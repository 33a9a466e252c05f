"""Resolve host names and find free ports."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Container, Mapping
from pathlib import Path

from .errors import PortError
from .process.state import read_states

# Lowest port that the kernel assigns to outgoing connections.
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_FREE_PORT = 10_000
_FREE_PORT_TRIES = 200


def address_from_host(host: str) -> str:
    """Resolve a host name to an address, IPv4 if it has one: Triton only accepts addresses (it turns a name into 255.255.255.255).

    Raises:
        PortError: The host name cannot be resolved.
    """
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortError(f"host {host!r} cannot be resolved: {error}. Use an address of this machine, such as 127.0.0.1 or ::1") from error
    return str(min(entries, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def claim_ports(host: str, requested: Mapping[str, int], *, guard_pid: int | None = None) -> dict[str, int]:
    """Return the ports to listen on, and check that they are free.

    The ports of our other servers count as taken, even while such a server restarts.

    Args:
        host: The address to listen on.
        requested: Port by front end (`http`, `grpc`, `metrics`); 0 chooses a free one.
        guard_pid: The guard process whose server may already use these ports.

    Raises:
        PortError: A port is in use or cannot be bound.
    """
    hosts = {host, "0.0.0.0", "::"}
    others = [state for state in read_states() if state.pid != guard_pid and (state.host in hosts or host in ("0.0.0.0", "::"))]
    ours = {port: state for state in others for port in state.ports}
    held: list[socket.socket] = []
    ports = {}
    try:
        for front_end, port in requested.items():
            if port in ours:
                raise PortError(
                    f"{front_end} port {port} is used by our server of {ours[port].repository}. Stop that server with "
                    f"`defensemble serve --stop --grpc-port {ours[port].grpc_port}`, or pass --free-ports"
                )
            try:
                held.append(_listener(host, port) if port else _free_listener(host, set(ours)))
            except OSError as error:
                raise PortError(
                    f"{front_end} port {port} on {host} cannot be used: {error.strerror or error}. Choose another with --{front_end}-port "
                    "(0: any free port) or --free-ports, or stop the program that uses it"
                ) from error
            ports[front_end] = held[-1].getsockname()[1]
    finally:
        for probe in held:
            probe.close()
    return ports


def _listener(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
    except BaseException:
        probe.close()
        raise
    return probe


def _free_listener(host: str, excluded: Container[int]) -> socket.socket:
    """Listen on a free port below the kernel's range for outgoing connections.

    While a server restarts, nothing listens on its port. From that range, the kernel could assign the port to a client that connects, and
    the server could not bind it again.
    """
    low = int(_EPHEMERAL_PORTS.read_text().split()[0])
    for _ in range(_FREE_PORT_TRIES if low > _FIRST_FREE_PORT else 0):
        port = _FIRST_FREE_PORT + secrets.randbelow(low - _FIRST_FREE_PORT)
        if port not in excluded:
            try:
                return _listener(host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    return _listener(host, 0)  # no port below the range is free
