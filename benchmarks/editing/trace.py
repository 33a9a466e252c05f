"""Trace the edits: every flush to disk and every request to the server, with its duration."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defensemble_repository.names import AVERAGING_NAME, HISTORY_FILE, PENDING_FILE

REQUESTS = ("infer", "load_model", "unload_model", "model_config", "statistics", "repository_index", "server_metadata")
_STAGING = re.compile(r"\..+\.staging-[a-z0-9_]{8}")
_TEMPORARY = re.compile(r"\.(.+)\.\d+")


@dataclass(frozen=True)
class Event:
    """A flush or a request, from `begin` to `end` in seconds of `time.monotonic`."""

    kind: str
    name: str
    begin: float
    end: float


def flush_name(path: Path, repository: Path) -> str:
    """Return what a flushed file or folder is, such as `average/config.pbtxt`: the place that it gets, without generated names."""
    if path == repository:
        return "the repository's folder"
    parts = path.relative_to(repository.parent).parts
    parts = parts[1:] if parts[0] == repository.name or _STAGING.fullmatch(parts[0]) else parts
    names = ["average" if AVERAGING_NAME.fullmatch(part) else _TEMPORARY.sub(r"\1", part) for part in parts]
    return {PENDING_FILE: "the journal", HISTORY_FILE: "the history"}.get("/".join(names), "/".join(names))


def request_name(method: str, model: str, ensemble: str) -> str:
    """Return what a request does, such as `infer: a member`."""
    if not model:
        return method
    return f"{method}: {'the ensemble' if model == ensemble else 'an averaging model' if AVERAGING_NAME.fullmatch(model) else 'a member'}"


class TracedTransport:
    """A transport that records its requests."""

    def __init__(self, inner: Any, ensemble: str, record: Callable[[Event], None]) -> None:
        self._inner = inner
        self._ensemble = ensemble
        self._record = record

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._inner, name)
        if name not in REQUESTS:
            return function

        def traced(*arguments: Any, **named: Any) -> Any:
            model = arguments[0] if arguments and isinstance(arguments[0], str) else ""
            begin = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                self._record(Event("request", request_name(name, model, self._ensemble), begin, time.monotonic()))

        return traced


@contextmanager
def traced_flushes(repository: Path, record: Callable[[Event], None]) -> Iterator[None]:
    """Record the flushes of this process: edits flush by `os.fsync`."""
    root, flush = repository.resolve(), os.fsync

    def traced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        begin = time.monotonic()
        try:
            flush(descriptor)
        finally:
            if root.parent in path.parents:
                record(Event("flush", flush_name(path, root), begin, time.monotonic()))

    os.fsync = traced  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = flush


def trace_json(events: Sequence[Event], edits: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return a row for each kind of flush and request within `edits` (begin, end): number per edit, and median duration in ms."""
    durations: dict[tuple[str, str], list[float]] = {}
    for event in sorted(events, key=lambda event: event.begin):
        if any(begin <= event.begin and event.end <= end for begin, end in edits):
            durations.setdefault((event.kind, event.name), []).append(1000 * (event.end - event.begin))
    return [
        {"kind": kind, "name": name, "per_edit": round(len(times) / len(edits), 2), "median_ms": round(statistics.median(times), 3)}
        for (kind, name), times in sorted(durations.items(), key=lambda item: (item[0][0], -sum(item[1])))
    ]
