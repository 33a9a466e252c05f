"""Start NVIDIA Triton on a model repository, check that it answers rightly, and leave nothing behind."""

from __future__ import annotations

from .admin_key import read_admin_key
from .doctor.diagnose import diagnose
from .errors import BackendBuildError, NotServableError, PlanError, PortError, RuntimeMissingError, ServerError, StartError, StateError
from .options import ServeOptions
from .plans.compatibility import problem_of_version
from .plans.machine import Machine
from .process.events import DeadServer, ServerEvent, ServerStatus, dead_servers, server_status
from .process.state import ServerState, find_states, read_states
from .runtime.find import find_runtime
from .serve import Server, serve, stop_server

__all__ = [
    "BackendBuildError",
    "DeadServer",
    "Machine",
    "NotServableError",
    "PlanError",
    "PortError",
    "RuntimeMissingError",
    "ServeOptions",
    "Server",
    "ServerError",
    "ServerEvent",
    "ServerState",
    "ServerStatus",
    "StartError",
    "StateError",
    "dead_servers",
    "diagnose",
    "find_runtime",
    "find_states",
    "problem_of_version",
    "read_admin_key",
    "read_states",
    "serve",
    "server_status",
    "stop_server",
]
