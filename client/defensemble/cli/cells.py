"""Text in tables: file names, and the names that a server reports."""

from __future__ import annotations

import re

from rich.markup import escape

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def cell(text: str) -> str:
    """Return text for a cell or a title: markup stays text, and control characters, which could steer the terminal, become escapes."""
    return escape(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text))
