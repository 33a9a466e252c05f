"""How much memory data may take: asked before it is decoded, from the sizes that headers state."""

from __future__ import annotations

import resource
from pathlib import Path

from .errors import MemoryLimitError

_SHARE = 0.5


def check_memory(what: str, needed: int, limit: int | None = None, *, option: str | None = "--max-memory SIZE") -> None:
    """Raise where data would take too much memory: `needed` bytes at the peak, of `limit` (None: half of the memory that is free now).

    `what` is the data, for the error; `option` allows a user more, where there is one.

    Raises:
        MemoryLimitError: `needed` is above the limit.
    """
    allowed = default_limit() if limit is None else limit
    if needed > allowed:
        how = "the limit of --max-memory" if limit is not None else "half of the memory that is free"
        raise MemoryLimitError(
            f"{what} would take {_readable(needed)} of memory, expected at most {_readable(allowed)}, {how}: take less data"
            + ("" if option is None else f", or allow more ({option})")
        )


def default_limit() -> int:
    """Return half of the memory that this process can still take, in bytes."""
    return int(_SHARE * free_memory())


def free_memory() -> int:
    """Return how many bytes this process can still take: of the machine, of its control group, and of its own limits."""
    own = proc_sizes("/proc/self/status")
    found = [proc_sizes("/proc/meminfo")["MemAvailable"]]
    for kind, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        allowed = resource.getrlimit(kind)[0]
        if allowed != resource.RLIM_INFINITY:
            found.append(allowed - own[used])
    group = Path("/sys/fs/cgroup")  # within a container, this is its own
    try:
        limit = (group / "memory.max").read_text().strip()
        used_bytes = int((group / "memory.current").read_text())
        cached = next(
            int(line.split()[1]) for line in (group / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        )
    except OSError:  # there is no control group with a limit
        limit, used_bytes, cached = "max", 0, 0
    if limit != "max":
        found.append(int(limit) - used_bytes + cached)  # cached files give way
    return max(0, min(found))


def proc_sizes(path: str) -> dict[str, int]:
    """Return the entries of a file of /proc that are given in kB, in bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _readable(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
