"""Machine, versions and cores of a measurement."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from defensemble import ServerMetadata
from defensemble.results import provenance


def machine_info(server: ServerMetadata | None = None, packages: tuple[str, ...] = ("onnx", "onnxruntime")) -> dict[str, Any]:
    """Return the client's `provenance`, with the versions of more packages and the cores that this process uses."""
    info = provenance(server)
    info["versions"] |= {name: metadata.version(name) for name in packages}
    info["hardware"]["cores_used"] = sorted(os.sched_getaffinity(0))
    return info
