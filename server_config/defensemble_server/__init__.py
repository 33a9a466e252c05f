"""Start NVIDIA Triton on a model repository, check that it answers rightly, and leave nothing behind."""

from ._errors import (
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
from .repository import Repository, read_repository
from .serving import Server, serve, start_server, stop_server
from .state import ServerState, find_state, read_states

__all__ = [
    "BackendBuildError",
    "NotServableError",
    "PlanError",
    "PortError",
    "Repository",
    "RuntimeMissingError",
    "ServeOptions",
    "Server",
    "ServerError",
    "ServerState",
    "StartError",
    "StateError",
    "find_state",
    "read_admin_key",
    "read_repository",
    "read_states",
    "serve",
    "start_server",
    "stop_server",
]
