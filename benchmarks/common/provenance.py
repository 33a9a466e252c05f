"""What a result says of the machine, the versions and the cores that it was measured with."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from defensemble import ServerMetadata
from defensemble.results import provenance


def surroundings(server: ServerMetadata | None = None, packages: tuple[str, ...] = ("onnx", "onnxruntime")) -> dict[str, Any]:
    """The client's `provenance`, with the versions of more packages, and the cores that this process uses."""
    found = provenance(server)
    found["versions"] |= {name: metadata.version(name) for name in packages}
    found["hardware"]["cores_used"] = sorted(os.sched_getaffinity(0))
    return found
