"""Load tests of served models: closed and open loops, latency histograms, and the highest rate that holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .result import (
        Capacity as Capacity,
        ClientCounters as ClientCounters,
        Latency as Latency,
        LoadResult as LoadResult,
        ModelCounters as ModelCounters,
        RunSettings as RunSettings,
        Schedule as Schedule,
        ServerCounters as ServerCounters,
        ServerInfo as ServerInfo,
        Slo as Slo,
        Step as Step,
        TargetResult as TargetResult,
        TimelineSecond as TimelineSecond,
        Trial as Trial,
        read_load_result as read_load_result,
    )
    from .run import find_capacity as find_capacity, run_load as run_load
    from .schedule import arrival_times as arrival_times
    from .session import Progress as Progress
    from .settings import LoadSettings as LoadSettings

_NAMES_BY_MODULE = {
    "result": (
        *("Capacity", "ClientCounters", "Latency", "LoadResult", "ModelCounters", "RunSettings", "Schedule", "ServerCounters"),
        *("ServerInfo", "Slo", "Step", "TargetResult", "TimelineSecond", "Trial", "read_load_result"),
    ),
    "run": ("find_capacity", "run_load"),
    "schedule": ("arrival_times",),
    "session": ("Progress",),
    "settings": ("LoadSettings",),
}
__all__, __getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)
