"""Start NVIDIA Triton on a model repository, check that it answers rightly, and leave nothing behind."""

from __future__ import annotations

from .errors import (
    BackendBuildError,
    NotServableError,
    PlanError,
    PortError,
    RuntimeMissingError,
    ServerError,
    StartError,
    StateError,
)
from .options import ServeOptions, read_admin_key
from .process.events import DeadServer, ServerEvent, ServerStatus, dead_servers, server_events, server_status
from .process.state import ServerState, find_state, find_states, read_states
from .repository import Repository, read_repository
from .serve import Server, serve, start_server, stop_server

__all__ = [
    "BackendBuildError",
    "DeadServer",
    "NotServableError",
    "PlanError",
    "PortError",
    "Repository",
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
    "find_state",
    "find_states",
    "read_admin_key",
    "read_repository",
    "read_states",
    "serve",
    "server_events",
    "server_status",
    "start_server",
    "stop_server",
]
