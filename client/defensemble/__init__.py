"""Client for ensembles of defective CNNs that NVIDIA Triton serves: predictions, live edits, and robustness probes.

Images are float32 arrays of shape (N, C, H, W) with values in [0, 1], everywhere. `import defensemble` loads neither numpy nor tritonclient
(half a second): each name below is imported on first use.

Example:
    >>> from defensemble import Client
    >>> with Client("http://localhost:8000") as client:
    ...     print(client.predict(images).labels)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from ._client.async_client import AsyncClient as AsyncClient
    from ._client.calls import ServerHealth as ServerHealth
    from ._client.client import Client as Client
    from ._client.model_info import ModelInfo as ModelInfo
    from ._client.prediction import Prediction as Prediction
    from ._client.replicas import Counters as Counters
    from ._client.retries import RetryPolicy as RetryPolicy
    from ._exceptions import (
        Attempt as Attempt,
        ClientClosedError as ClientClosedError,
        ConnectionFailedError as ConnectionFailedError,
        DeadlineExceededError as DeadlineExceededError,
        DefensembleError as DefensembleError,
        ForbiddenError as ForbiddenError,
        InputError as InputError,
        MissingExtraError as MissingExtraError,
        ModelNotFoundError as ModelNotFoundError,
        NotReadyError as NotReadyError,
        OutputNotRequestedError as OutputNotRequestedError,
        RequestRefusedError as RequestRefusedError,
        RetriesExhaustedError as RetriesExhaustedError,
        ServerFailedError as ServerFailedError,
        ServiceError as ServiceError,
        WorkerEndedError as WorkerEndedError,
    )
    from ._transport.base import (
        AsyncTransport as AsyncTransport,
        ConnectionOptions as ConnectionOptions,
        ModelMetadata as ModelMetadata,
        ModelState as ModelState,
        ModelStatistics as ModelStatistics,
        OutputRequest as OutputRequest,
        Outputs as Outputs,
        ServerMetadata as ServerMetadata,
        TensorMetadata as TensorMetadata,
        TlsFiles as TlsFiles,
        Transport as Transport,
    )
    from ._transport.fake import FakeModel as FakeModel, FakeTransport as FakeTransport
    from ._transport.grpc_transport import AsyncGrpcTransport as AsyncGrpcTransport, GrpcTransport as GrpcTransport
    from ._transport.http_transport import AsyncHttpTransport as AsyncHttpTransport, HttpTransport as HttpTransport
    from .results.intervals import Rate as Rate, rate as rate, wilson as wilson

_NAMES_BY_MODULE = {
    "_client.async_client": ("AsyncClient",),
    "_client.calls": ("ServerHealth",),
    "_client.client": ("Client",),
    "_client.replicas": ("Counters",),
    "_client.retries": ("RetryPolicy",),
    "_exceptions": (
        "Attempt",
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
        "RetriesExhaustedError",
        "ServerFailedError",
        "ServiceError",
        "WorkerEndedError",
    ),
    "_transport.fake": ("FakeModel", "FakeTransport"),
    "_transport.grpc_transport": ("AsyncGrpcTransport", "GrpcTransport"),
    "_transport.http_transport": ("AsyncHttpTransport", "HttpTransport"),
    "results.intervals": ("Rate", "rate", "wilson"),
    "_client.model_info": ("ModelInfo",),
    "_client.prediction": ("Prediction",),
    "_transport.base": (
        "AsyncTransport",
        "ConnectionOptions",
        "ModelMetadata",
        "ModelState",
        "ModelStatistics",
        "OutputRequest",
        "Outputs",
        "ServerMetadata",
        "TensorMetadata",
        "TlsFiles",
        "Transport",
    ),
}
_names, __getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)
__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    return __all__
