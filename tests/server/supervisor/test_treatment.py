"""What is done about a failure or a hang, and which events are recorded."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from defensemble_server.supervisor.records import TargetRecord
from defensemble_server.supervisor.targets import Problem, Targets
from defensemble_server.supervisor.treatment import Treatment
from tests.support import memory_faults as faults
from tests.support.calls import FREE

LOADED = {("alpha", 1), ("beta", 1)}


class Repair:
    """A repair whose edit has succeeded at once."""

    was_killed = False

    def __init__(self, repository: Path) -> None:
        self.started = ""

    def start(self, members: Sequence[str], reason: str) -> None:
        self.started = " ".join(members)

    def error(self) -> str | None:
        return "" if self.started else None

    def stop(self) -> None:
        self.started = ""


class Events:
    """A treatment, and what it sends."""

    def __init__(self, folder: Path, *, restarts: bool) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.restarts: list[str] = []
        targets = Targets(folder, FREE, io.BytesIO())
        self.records = {target.label: TargetRecord(target) for target in targets.current(LOADED)}
        self.treatment = Treatment(
            folder, targets, restarts, lambda *event: self.sent.append(event), lambda kind, _: self.restarts.append(kind)
        )

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.sent]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return faults.write_repository(tmp_path / "repository", ensemble=None)


def test_a_model_that_is_unloaded_while_it_is_repaired_ends_the_repair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_server.supervisor.treatment.RepairProcess", Repair)
    events = Events(folder, restarts=True)
    events.records["alpha@1"].fail(Problem("nan", "not finite"), time.time())
    events.treatment.step(events.records)
    assert events.kinds == ["wrong"]
    assert events.treatment.is_repairing
    del events.records["alpha@1"]
    events.treatment.step(events.records)
    events.treatment.step(events.records)
    assert events.kinds == ["wrong", "repaired"]
    assert events.sent[-1][1]["model"] == "alpha"
    assert not events.treatment.is_urgent(events.records)
    assert (events.restarts, dict(events.treatment.repairs)) == ([], {})


def test_a_hang_is_reported_once_if_nothing_is_restarted(folder: Path) -> None:
    events = Events(folder, restarts=False)
    alpha, beta = events.records["alpha@1"], events.records["beta@1"]
    for record in (alpha, beta):
        record.note("correct", 0.1)
    for hanging in ([alpha], [alpha], [alpha, beta], [alpha, beta]):
        events.treatment.hang(hanging)
    assert [facts["models"] for _, facts in events.sent] == [["alpha@1"], ["beta@1"]]
    alpha.note("correct", 5.0)
    events.treatment.hang([alpha])
    assert (events.kinds, events.restarts) == (["hanging"] * 3, [])


def test_a_hang_is_a_reason_for_a_restart(folder: Path) -> None:
    events = Events(folder, restarts=True)
    for _ in range(2):
        events.treatment.hang(list(events.records.values()))
    assert (events.kinds, events.restarts) == ([], ["hung"]), "a second one comes later"
