"""Print the TensorRT version that the dynamic loader finds. Run as a separate process, here or in a container, without other packages.

One line of JSON: `{"version": "10.13.3.9", "library": "libnvinfer.so.10"}`, or `{"version": null, "why": "..."}`.
"""

from __future__ import annotations

import ctypes
import json

# Newest first: a server is linked to one of them, and of two installed ones it is the newer.
_MAJORS = range(14, 7, -1)


def main() -> None:
    """Print the version as JSON."""
    unusable = ""
    for major in _MAJORS:
        name = f"libnvinfer.so.{major}"
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            if name not in str(error) or "No such file" not in str(error):
                unusable = unusable or f"{name} cannot be loaded: {error}"
            continue
        if not hasattr(library, "getInferLibVersion"):
            unusable = unusable or f"{name} exports no getInferLibVersion: it is not TensorRT"
            continue
        print(json.dumps({"version": _version(library), "library": name}))  # noqa: T201
        return
    print(json.dumps({"version": None, "why": unusable}))  # noqa: T201


def _version(library: ctypes.CDLL) -> str:
    number = int(library.getInferLibVersion())
    # NvInferVersion.h: major * 1000 + minor * 100 + patch before TensorRT 10, (major * 100 + minor) * 100 + patch since.
    parts = [number // 1000, number // 100 % 10, number % 100] if number < 10_000 else [number // 10_000, number // 100 % 100, number % 100]
    if hasattr(library, "getInferLibBuildVersion"):
        parts.append(int(library.getInferLibBuildVersion()))
    return ".".join(map(str, parts))


if __name__ == "__main__":
    main()
