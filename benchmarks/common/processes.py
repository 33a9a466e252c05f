"""What a process takes of the machine, as the kernel counts it: proc(5) and process clocks."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ALL_THREADS = 2  # CPUCLOCK_SCHED of the kernel: scheduled time, of all threads


def pss_bytes(pid: int) -> int:
    """The proportional set size of a process: its own memory, and its part of what it shares.

    Raises:
        OSError: There is no such process, or it is someone else's.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no line `Pss:`")


def processor_seconds(pid: int) -> float:
    """The processor time that a process has taken, all threads together, in nanosecond steps; see clock_getcpuclockid(3).

    Raises:
        OSError: There is no such process.
    """
    return time.clock_gettime((~pid << 3) | _ALL_THREADS)


def start_s(pid: int) -> float | None:
    """When a process began, in seconds of CLOCK_BOOTTIME, to 10 ms; None where it has ended."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19]) / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """The fields after the command's name, which may hold spaces: the process's state comes first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
