"""Files that can be opened without waiting for ever."""

from __future__ import annotations

import stat


def irregular(mode: int) -> str | None:
    """Describe what is not a regular file, from its `st_mode`; None for a regular file. Opening anything else may wait for ever."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
