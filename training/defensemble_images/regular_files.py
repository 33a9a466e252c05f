"""Detect files that are not regular files, because opening them may block forever."""

from __future__ import annotations

import stat


def irregular_file_kind(mode: int) -> str | None:
    """Return the kind of a file that is not regular, such as "a FIFO", from its `st_mode`; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
