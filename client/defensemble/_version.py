"""The version. It is stated here so that importing it reads no installed metadata; a test compares it with pyproject.toml."""

from __future__ import annotations

__version__ = "0.1.0"
