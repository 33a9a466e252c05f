"""Texts that errors quote."""

from __future__ import annotations

MAX_LINE_LENGTH = 3000


def shortened(text: str, longest: int = MAX_LINE_LENGTH) -> str:
    """Return a text whose lines have about `longest` characters at most: of longer ones the beginning, and the end, where the advice is."""
    return "\n".join(_shortened(line, longest) for line in text.split("\n"))


def _shortened(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    last = longest // 3
    return f"{line[: longest - last]} [... {len(line) - longest} characters ...] {line[-last:]}"
