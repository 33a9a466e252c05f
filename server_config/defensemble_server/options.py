"""Options of `serve`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .addresses import is_loopback
from .admin_key import check_admin_key
from .errors import PortError, ServerError
from .runtime.find import RUNTIMES

EXPOSE_FLAG = "--expose-outdated-server"


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, and which runtime and profile it uses.

    Args:
        runtime: `embedded`, `path` or `docker`.
        host: Address or host name to listen on.
        http_port: Port of the HTTP front end; 0 chooses a free one.
        grpc_port: Port of the gRPC front end; 0 chooses a free one.
        metrics_port: Port of the Prometheus metrics; 0 chooses a free one.
        profile: Serving profile; None uses each model's `config.pbtxt`.
        admin_key: Key for the administrative APIs; None creates a random one.
        drain_s: Seconds that running requests get to finish when the server is stopped.
        expose_outdated_server: Allow the embedded Triton to listen on other addresses than loopback.
        supervisor_port: Port of the supervisor; 0 chooses a free one.
        check_interval_s: Seconds between two checks of each model by the supervisor; 0: no supervisor.
        hang_after_s: Restart a server one of whose models has not answered a check and has executed nothing for so many seconds.
        restart: Restart a server that dies or hangs. A container is not restarted: set its own restart policy.

    Raises:
        ServerError: A value is out of range.
        PortError: A port or the address is not allowed.

    Example:
        >>> ServeOptions(http_port=0, grpc_port=0, metrics_port=0, profile="cpu")
    """

    runtime: str = "embedded"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    profile: str | None = None
    admin_key: str | None = None
    drain_s: int = 5
    expose_outdated_server: bool = False
    restart: bool = True
    supervisor_port: int = 8003
    check_interval_s: float = 0.0
    hang_after_s: float = 10.0

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ServerError(f"runtime must be one of {', '.join(RUNTIMES)}, got {self.runtime!r}")
        for what, port in self.ports.items():
            if not 0 <= port <= 65535:
                raise PortError(f"{what} port must be 0 (any free port) to 65535, got {port}")
        chosen = [port for port in self.ports.values() if port]
        if len(set(chosen)) < len(chosen):
            raise PortError(f"the ports must differ, got {self.ports}")
        for name, seconds, least in (("check_interval_s", self.check_interval_s, 0.0), ("hang_after_s", self.hang_after_s, 1.0)):
            if not least <= seconds < math.inf:
                raise ServerError(f"{name} must be a finite number from {least:g}, got {seconds}")
        if self.drain_s < 0:
            raise ServerError(f"drain_s must be 0 or more, got {self.drain_s}")
        if self.profile is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", self.profile):
            raise ServerError(f"a profile name consists of letters, digits, '_', '.' and '-', got {self.profile!r}")
        if self.admin_key is not None:
            check_admin_key(self.admin_key)
        if self.runtime == "embedded" and not is_loopback(self.host) and not self.expose_outdated_server:
            raise PortError(
                "the embedded Triton dates from October 2024 and has published vulnerabilities that need no login "
                f"(CVE-2025-23310, CVE-2026-24206 and more), so it listens on loopback only, not on {self.host!r}. "
                "Use NVIDIA's container (--runtime docker), "
                f"or accept the risk with {EXPOSE_FLAG}"
            )

    @property
    def triton_ports(self) -> dict[str, int]:
        """Port by front end of Triton."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def ports(self) -> dict[str, int]:
        """Port by front end, with that of the supervisor if there is one."""
        return {**self.triton_ports, **({"supervisor": self.supervisor_port} if self.check_interval_s else {})}
