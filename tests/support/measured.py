"""What every result of a benchmark states of its run: for pages of results that a test has made up."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

RUN: Mapping[str, Any] = MappingProxyType(
    {
        "duration_s": 1.0,
        "seed": 0,
        "measured_at": "2026-01-02T03:04:05+00:00",
        "hardware": {"cores": 2, "cpu": "a processor"},
        "versions": {"python": "3.11", "grpcio": "1.85"},
        "server": {"name": "triton", "version": "2.51.0"},
        "git_commit": "0123456789abcdef",
    }
)
