"""Where a server listens, where it is reached, and which ports are free."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Container, Mapping
from pathlib import Path

from .errors import PortError
from .process.state import read_states

# The kernel gives ports from here on to clients.
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_FREE_PORT = 10_000
_FREE_PORT_TRIES = 200


def address_from_host(host: str) -> str:
    """The address that a host name stands for, IPv4 where it has one: Triton takes addresses alone (a name becomes 255.255.255.255).

    Raises:
        PortError: no such host is known.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortError(f"host {host!r} cannot be resolved: {error}. Name an address of this machine, such as 127.0.0.1 or ::1") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def claim_ports(host: str, wanted: Mapping[str, int], *, guard_pid: int | None = None) -> dict[str, int]:
    """Return the ports to listen on: those in `wanted`, by what listens on them, checked to be free; free ones instead of 0.

    The ports of our other servers are not free, even while one of these is restarted. `guard_pid` is the guard whose server may have them.
    A port that is taken is a PortError.
    """
    hosts = {host, "0.0.0.0", "::"}
    others = [state for state in read_states() if state.pid != guard_pid and (state.host in hosts or host in ("0.0.0.0", "::"))]
    ours = {port: state for state in others for port in state.ports}
    held: list[socket.socket] = []
    ports = {}
    try:
        for what, port in wanted.items():
            if port in ours:
                raise PortError(
                    f"{what} port {port} is held by our server of {ours[port].repository}: stop it with "
                    f"`defensemble serve --stop --grpc-port {ours[port].grpc_port}`, or pass --free-ports"
                )
            try:
                held.append(_listener(host, port) if port else _free_listener(host, set(ours)))
            except OSError as error:
                raise PortError(
                    f"{what} port {port} on {host} cannot be used: {error.strerror or error}. Choose another with --{what}-port "
                    "(0: any free one) or --free-ports, or stop what holds it"
                ) from error
            ports[what] = held[-1].getsockname()[1]
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
    """Listen on a free port below those that the kernel gives to clients.

    While a server restarts, nothing listens on its port. A client that connects then could be given that very port by the kernel, as its
    own, and would hold it.
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
    return _listener(host, 0)  # there is none below
