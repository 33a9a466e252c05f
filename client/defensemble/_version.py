"""The version, without reading the installed metadata (a test holds it equal to pyproject.toml)."""

from __future__ import annotations

__version__ = "0.1.0"
