"""Start NVIDIA Triton on a model repository, verify its answers, and clean up afterwards."""

from __future__ import annotations

from .admin_key import read_admin_key as read_admin_key
from .doctor.diagnose import diagnose as diagnose
from .errors import (
    BackendBuildError as BackendBuildError,
    NotServableError as NotServableError,
    PlanError as PlanError,
    PortError as PortError,
    RuntimeMissingError as RuntimeMissingError,
    ServerError as ServerError,
    StartError as StartError,
    StateError as StateError,
)
from .options import ServeOptions as ServeOptions
from .plans.compatibility import problem_of_version as problem_of_version
from .plans.machine import Machine as Machine
from .process.events import (
    DeadServer as DeadServer,
    ServerEvent as ServerEvent,
    ServerStatus as ServerStatus,
    dead_servers as dead_servers,
    server_status as server_status,
)
from .process.state import ServerState as ServerState, find_states as find_states, read_states as read_states
from .runtime.find import find_runtime as find_runtime
from .serve import Server as Server, serve as serve, stop_server as stop_server
