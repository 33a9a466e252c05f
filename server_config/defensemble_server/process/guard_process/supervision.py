"""Keep a supervisor running next to the server, and pass its findings on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .link import Link
from .log_files import appended, write_line
from .notify import notify

# Seconds until a supervisor that has ended is started again.
AGAIN_S = 1.0
_LONGEST_WAIT_S = 60.0


class Supervision:
    """The supervisor of a server, if it has one.

    Args:
        settings: `command` and `request` of the supervisor; None if there is none.
        log: File to which its errors are appended.
        on_end: Called with its exit status when it has ended without being asked.
    """

    def __init__(self, settings: dict[str, Any] | None, log: str, on_end: Callable[[int], None]) -> None:
        self._settings = settings
        self._log = log
        self._references = None if settings is None else os.memfd_create("references")
        self._on_end = on_end
        self._link: Link | None = None
        self._state: dict[str, Any] = {"state": "down"}
        self._start_at = time.monotonic()
        self._wait_s = AGAIN_S
        self._notified_at = 0.0

    @property
    def checks(self) -> bool:
        """Whether there is a supervisor."""
        return self._settings is not None

    @property
    def descriptors(self) -> list[int]:
        """What to wait for."""
        return [] if self._link is None else [self._link.fileno()]

    @property
    def due(self) -> list[float]:
        """When `step` must be called next, by the monotonic clock."""
        return [self._start_at] if self.checks and self._link is None else []

    def report(self, state: str, **facts: Any) -> None:
        """Report the state of the server: `serving`, `down` or `ends`, with facts."""
        self._state = {"state": state, **facts}
        if self._link is not None:
            self._link.send(self._state)

    def step(self) -> list[dict[str, Any]]:
        """Start the supervisor if it is due; return its requests: `event` and `restart`."""
        if self._settings is None:
            return []
        if self._link is None:
            if time.monotonic() >= self._start_at:
                self._start()
            return []
        link = self._link
        requests = link.messages()
        if link.ended:
            requests += link.messages()
            self._link = None
            self._start_at = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
            link.stop()
            self._on_end(link.process.returncode)
        for request in requests:
            if request["do"] == "alive":
                self._wait_s = AGAIN_S
                self.notify(f"STATUS={request['status']}", *(["WATCHDOG=1"] if request["ok"] else []))
        return [request for request in requests if request["do"] != "alive"]

    def notify(self, *assignments: str) -> None:
        """Send assignments to the service manager; a failure is written to the log."""
        try:
            notify(*assignments)
        except OSError as error:
            write_line(2, f"{error}: could not notify the service manager of {assignments}")

    def notify_progress(self) -> None:
        """Report to the service manager, at most once a second, that the guard itself is at work: it restarts the server."""
        if time.monotonic() >= self._notified_at + 1.0:
            self._notified_at = time.monotonic()
            self.notify("WATCHDOG=1")

    def stop(self) -> None:
        """End the supervisor."""
        if self._link is not None:
            self._link.stop()
            self._link = None
        self._settings = None

    def _start(self) -> None:
        assert self._settings is not None
        assert self._references is not None
        try:
            with appended(self._log) as log:
                self._link = Link(self._settings["command"], self._settings["request"], log=log, references=self._references)
        except OSError as error:
            write_line(2, f"{error}: could not start the supervisor")
            self._start_at = time.monotonic() + self._wait_s
            return
        self._link.send(self._state)
