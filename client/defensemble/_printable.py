"""Text for terminals and reports, without control characters."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text whose control characters, which could steer the terminal, are escapes; line ends stay."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else ascii(found[0])[1:-1], text)
