"""Text in tables: file names, and the names that a server reports."""

from __future__ import annotations

from rich.markup import escape

from .._printable import printable


def cell(text: str) -> str:
    """Return text for a cell or a title: markup stays text, and control characters, which could steer the terminal, become escapes."""
    return escape(printable(text).replace("\n", "\\n"))
