"""Shorten texts that error messages quote."""

from __future__ import annotations

MAX_LINE_LENGTH = 3000


def shortened(text: str, longest: int = MAX_LINE_LENGTH) -> str:
    """Return a text whose lines have about `longest` characters at most.

    A longer line keeps its start and its end, which usually holds the advice.
    """
    return "\n".join(_shortened(line, longest) for line in text.split("\n"))


def _shortened(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    tail = longest // 3
    return f"{line[: longest - tail]} [... {len(line) - longest} characters ...] {line[-tail:]}"
