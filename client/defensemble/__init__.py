"""Calls, and probes from outside, an ensemble of defective CNNs that NVIDIA Triton serves.

Images are float32 arrays of shape (N, C, H, W) with values in [0, 1], everywhere. The names below are loaded when
they are first used, so that `import defensemble` loads neither numpy nor tritonclient (half a second).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from defensemble._version import __version__

if TYPE_CHECKING:
    from defensemble._client import Client
    from defensemble._exceptions import (
        ClientClosedError,
        ConnectionFailedError,
        DeadlineExceededError,
        DefensembleError,
        ForbiddenError,
        InputError,
        MissingExtraError,
        ModelNotFoundError,
        NotReadyError,
        OutputNotRequestedError,
        RequestRefusedError,
        ServerFailedError,
        ServiceError,
    )
    from defensemble._fake import FakeModel, FakeTransport
    from defensemble._grpc import GrpcTransport
    from defensemble._http import HttpTransport
    from defensemble._intervals import Rate, rate, wilson
    from defensemble._model import ModelInfo
    from defensemble._prediction import Prediction
    from defensemble._transport import (
        ModelMetadata,
        ModelState,
        ModelStatistics,
        OutputRequest,
        ServerMetadata,
        TensorMetadata,
        Transport,
    )

__all__ = [
    "Client",
    "ClientClosedError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "DefensembleError",
    "FakeModel",
    "FakeTransport",
    "ForbiddenError",
    "GrpcTransport",
    "HttpTransport",
    "InputError",
    "MissingExtraError",
    "ModelInfo",
    "ModelMetadata",
    "ModelNotFoundError",
    "ModelState",
    "ModelStatistics",
    "NotReadyError",
    "OutputNotRequestedError",
    "OutputRequest",
    "Prediction",
    "Rate",
    "RequestRefusedError",
    "ServerFailedError",
    "ServerMetadata",
    "ServiceError",
    "TensorMetadata",
    "Transport",
    "__version__",
    "rate",
    "wilson",
]

_HOMES = {
    "_client": ("Client",),
    "_exceptions": (
        "ClientClosedError",
        "ConnectionFailedError",
        "DeadlineExceededError",
        "DefensembleError",
        "ForbiddenError",
        "InputError",
        "MissingExtraError",
        "ModelNotFoundError",
        "NotReadyError",
        "OutputNotRequestedError",
        "RequestRefusedError",
        "ServerFailedError",
        "ServiceError",
    ),
    "_fake": ("FakeModel", "FakeTransport"),
    "_grpc": ("GrpcTransport",),
    "_http": ("HttpTransport",),
    "_intervals": ("Rate", "rate", "wilson"),
    "_model": ("ModelInfo",),
    "_prediction": ("Prediction",),
    "_transport": (
        "ModelMetadata",
        "ModelState",
        "ModelStatistics",
        "OutputRequest",
        "ServerMetadata",
        "TensorMetadata",
        "Transport",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
