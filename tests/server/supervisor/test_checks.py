"""Which models count as hanging, on a scripted connection."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from defensemble_repository.view import RepositoryView
from defensemble_server.supervisor import checks
from defensemble_server.supervisor.checks import Checks
from defensemble_server.supervisor.connection import Connection, InferAnswer, InferRequest
from defensemble_server.supervisor.targets import Targets
from tests.support import memory_faults as faults
from tests.support.calls import FREE

HANG_AFTER_S = 0.05


class Script:
    """The models whose checks wait, those that execute something before each look at the counters, and what is loaded."""

    def __init__(self, folder: Path) -> None:
        self.waiting: set[str] = set()
        self.busy: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.ready = {(name, 1) for name in RepositoryView(folder).models()}


class ScriptedConnection:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._model = ""

    def ready_versions(self) -> set[tuple[str, int]]:
        return self._script.ready

    def send(self, request: InferRequest) -> None:
        self._model = request.path.split("/")[3]

    def answered(self, within_s: float) -> bool:
        return self._model not in self._script.waiting

    def receive(self) -> InferAnswer:
        return InferAnswer(503)

    def progress(self) -> dict[str, int]:
        self._script.counts.update(self._script.busy)
        return dict(self._script.counts)

    def close(self) -> None:
        pass


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(faults.write_repository(tmp_path / "repository"))


@pytest.fixture
def checked(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Checks:
    monkeypatch.setattr(checks, "_PROGRESS_EVERY_S", 0.0)
    targets = Targets(tmp_path / "repository", FREE, io.BytesIO())
    return Checks(targets, lambda: cast(Connection, ScriptedConnection(script)), HANG_AFTER_S)


def hanging_within(checked: Checks, seconds: float) -> tuple[set[str], float]:
    """Return which models hang first and after how many seconds; none if none does for so long."""
    begin = time.monotonic()
    found = set[str]()
    while not found and time.monotonic() - begin < seconds:
        found = {record.target.label for record in checked.hanging()}
        time.sleep(0.002)
    return found, time.monotonic() - begin


def test_an_ensemble_does_not_hang_while_the_check_of_a_member_waits_in_a_queue(script: Script, checked: Checks) -> None:
    script.waiting, script.busy = {"beta", "ensemble"}, {"beta"}
    checked.run()
    assert hanging_within(checked, 6 * HANG_AFTER_S)[0] == set()
    script.waiting = {"ensemble"}
    checked.receive()
    found, waited = hanging_within(checked, 10.0)
    assert found == {"ensemble"}
    assert waited >= 3 * HANG_AFTER_S, "its own time begins when the member has answered"


@pytest.mark.parametrize(("busy", "times"), [(set[str](), 1), ({"alpha"}, 3)])
def test_a_member_that_executes_nothing_hangs(script: Script, checked: Checks, busy: set[str], times: int) -> None:
    script.waiting, script.busy = {"beta", "ensemble"}, busy
    checked.run()
    found, waited = hanging_within(checked, 10.0)
    assert found == {"beta@1"}
    assert waited >= times * HANG_AFTER_S
