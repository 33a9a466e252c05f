"""Provenance of a measurement: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .._transport.base import ServerMetadata
from .._version import __version__

_PACKAGES = ("numpy", "tritonclient", "grpcio")


def provenance(server: ServerMetadata | None = None) -> dict[str, Any]:
    """Return hardware, versions, server, git commit and time as JSON. Unknown values are None."""
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": {
            "defensemble": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: package_version(name) for name in _PACKAGES},
        },
        "server": None if server is None else {"name": server.name, "version": server.version},
        "git_commit": git_commit(Path(__file__).resolve().parents[3]),
    }


def git_commit(checkout: Path) -> str | None:
    """Return the commit of the project's checkout, with `-dirty` if tracked files differ from it.

    Returns None outside a checkout, before the first commit, or without git.
    """
    if not ((checkout / ".git").exists() and (checkout / "pyproject.toml").exists()):
        return None  # installed, perhaps within another project's checkout
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
