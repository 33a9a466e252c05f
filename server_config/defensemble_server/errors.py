"""The errors of this package.

ServerError
├── RuntimeMissingError     Triton, ONNX Runtime or glibc is missing or too old
├── BackendBuildError       the native backend could not be built
├── NotServableError        the model repository cannot be served
├── PlanError               a TensorRT plan cannot be checked
├── PortError               a port is taken or not allowed
├── StartError              Triton did not start, or its answers are wrong
│   └── CrashError          Triton crashed during startup
└── StateError              no such server is running
"""

from __future__ import annotations


class ServerError(Exception):
    """Base class of the errors of this package: what is wrong, what was found, what was expected and how to fix it."""


class RuntimeMissingError(ServerError):
    """A requirement of serving is missing on this machine: Triton, the ONNX Runtime library or a recent glibc."""


class BackendBuildError(ServerError):
    """The native backend could not be compiled."""


class NotServableError(ServerError):
    """The model repository cannot be served in its present state."""


class PlanError(ServerError):
    """A TensorRT plan cannot be checked: its manifest is damaged, or the server's Python cannot be run."""


class PortError(ServerError):
    """A port is in use, or this runtime must not listen on the address."""


class StartError(ServerError):
    """Triton did not start in time, or its answers are wrong."""


class CrashError(StartError):
    """Triton crashed during startup."""


class StateError(ServerError):
    """No such server is running."""
