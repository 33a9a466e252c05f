"""The errors of this package.

ServerError
├── RuntimeMissingError     no Triton, no ONNX Runtime library, an unfit platform
├── BackendBuildError       the native backend could not be built
├── NotServableError        the model repository cannot be served as it lies on disk
├── PlanError               a TensorRT plan cannot be checked
├── PortError               a port is taken or not allowed
├── StartError              Triton did not come up, or did not answer rightly
│   └── CrashError          Triton crashed while it started
└── StateError              no such running server
"""

from __future__ import annotations


class ServerError(Exception):
    """Anything that stops this package from serving; its text says what, got, expected and how to mend it."""


class RuntimeMissingError(ServerError):
    """A part that serving needs is not on this machine: Triton, ONNX Runtime's library, glibc."""


class BackendBuildError(ServerError):
    """The native backend could not be compiled."""


class NotServableError(ServerError):
    """The model repository cannot be served as it lies on disk."""


class PlanError(ServerError):
    """A TensorRT plan cannot be checked: its manifest is damaged, or the server's Python does not answer."""


class PortError(ServerError):
    """A port is taken, or the address is not one that this runtime may listen on."""


class StartError(ServerError):
    """Triton did not start, or its answers were not what they must be."""


class CrashError(StartError):
    """Triton crashed while it started."""


class StateError(ServerError):
    """There is no such running server."""
