"""Resource usage of a process, from proc(5) and process clocks."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ALL_THREADS = 2  # CPUCLOCK_SCHED of the kernel: scheduled time, of all threads


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its private memory and its share of shared memory.

    Raises:
        OSError: The process does not exist, or belongs to another user.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no line `Pss:`")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, with nanosecond resolution; see clock_getcpuclockid(3).

    Raises:
        OSError: The process does not exist.
    """
    return time.clock_gettime((~pid << 3) | _ALL_THREADS)


def process_start_s(pid: int) -> float | None:
    """Return the start time of a process in seconds of CLOCK_BOOTTIME, with 10 ms resolution; None if it has ended."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19]) / _TICKS_PER_S


def descendants(*pids: int) -> list[int]:
    """Return processes and all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(pids)
    for parent in found:  # which grows
        found += [child for child in children.get(parent, []) if child not in found]
    return found


def children(pid: int) -> list[int]:
    """Return the living children that the first thread of a process has started, the only one that does so in guards and in nginx.

    Unlike `descendants`, this reads one file, and not those of all processes.

    Raises:
        OSError: The process does not exist.
    """
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5) stat after the command name, which may contain spaces. The first is the process state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
