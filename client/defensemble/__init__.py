"""Calls, and probes from outside, an ensemble of defective CNNs that NVIDIA Triton serves.

Images are float32 arrays of shape (N, C, H, W) with values in [0, 1], everywhere. The names below are loaded when
they are first used, so that `import defensemble` loads neither numpy nor tritonclient (half a second).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from ._client.client import Client
    from ._client.model_info import ModelInfo
    from ._client.prediction import Prediction
    from ._exceptions import (
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
    from ._transport.base import (
        ModelMetadata,
        ModelState,
        ModelStatistics,
        OutputRequest,
        ServerMetadata,
        TensorMetadata,
        Transport,
    )
    from ._transport.fake import FakeModel, FakeTransport
    from ._transport.grpc_transport import GrpcTransport
    from ._transport.http_transport import HttpTransport
    from .results.intervals import Rate, rate, wilson

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
    "_client.client": ("Client",),
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
    "_transport.fake": ("FakeModel", "FakeTransport"),
    "_transport.grpc_transport": ("GrpcTransport",),
    "_transport.http_transport": ("HttpTransport",),
    "results.intervals": ("Rate", "rate", "wilson"),
    "_client.model_info": ("ModelInfo",),
    "_client.prediction": ("Prediction",),
    "_transport.base": (
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
