"""Check how much memory data needs before it is decoded, from the sizes that headers state."""

from __future__ import annotations

import resource
from pathlib import Path

from .errors import MemoryLimitError

_DEFAULT_FRACTION = 0.5


def check_memory(what: str, needed: int, limit: int | None = None, *, option: str | None = "--max-memory SIZE") -> None:
    """Raise if data needs too much memory.

    Args:
        what: Name of the data, for the error.
        needed: Peak memory in bytes.
        limit: Allowed memory in bytes. None: half of the memory that is free now.
        option: Command-line option that raises the limit, if there is one.

    Raises:
        MemoryLimitError: `needed` is above the limit.
    """
    allowed = default_limit() if limit is None else limit
    if needed > allowed:
        source = "the limit of --max-memory" if limit is not None else "half of the free memory"
        raise MemoryLimitError(
            f"{what} would take {_format_bytes(needed)} of memory; expected at most {_format_bytes(allowed)}, {source}. Use less data"
            + ("." if option is None else f", or raise the limit ({option}).")
        )


def default_limit() -> int:
    """Return half of the memory that this process can still allocate, in bytes."""
    return int(_DEFAULT_FRACTION * free_memory())


def free_memory() -> int:
    """Return the memory in bytes that this process can still allocate, within the machine, its control group and its own limits."""
    own = proc_sizes("/proc/self/status")
    limits = [proc_sizes("/proc/meminfo")["MemAvailable"]]
    for kind, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        allowed = resource.getrlimit(kind)[0]
        if allowed != resource.RLIM_INFINITY:
            limits.append(allowed - own[used])
    group = Path("/sys/fs/cgroup")  # in a container, the container's own group
    try:
        limit = (group / "memory.max").read_text().strip()
        used_bytes = int((group / "memory.current").read_text())
        cached = next(
            int(line.split()[1]) for line in (group / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        )
    except OSError:  # no control group with a limit
        limit, used_bytes, cached = "max", 0, 0
    if limit != "max":
        limits.append(int(limit) - used_bytes + cached)  # the kernel drops cached files
    return max(0, min(limits))


def proc_sizes(path: str) -> dict[str, int]:
    """Return the entries of a /proc file that are in kB, as bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _format_bytes(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
