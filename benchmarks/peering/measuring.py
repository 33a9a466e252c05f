"""Time every server in rounds, one at a time, and keep a record of each, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.command_line import OnProgress
from benchmarks.common.figures import percentiles
from benchmarks.common.forms import Form, check_answers
from benchmarks.common.in_process import forms_in_process
from benchmarks.common.server_processes import ServerProcessesError
from benchmarks.common.timing import time_form, time_open_loop
from benchmarks.peering.catalogue import CONTENDERS, Contender
from benchmarks.peering.figures import IN_PROCESS, OPEN_FRACTION, OPEN_LOOP, OPEN_SETTING, SETTINGS, Setting
from benchmarks.peering.running import ContenderError, Served, running
from defensemble.load import arrival_times
from defensemble.results import write_result

Pythons = Mapping[str, Path]
"""The Python of each server, by its key."""


@dataclass(frozen=True)
class Effort:
    """Number of rounds, and seconds per form and setting in each (after `warm_s`)."""

    rounds: int
    seconds: float
    warm_s: float


class ResumeError(Exception):
    """An interrupted run cannot be continued."""


class Records:
    """The records of a run. Each is written to a file when it is complete, if there is a file."""

    def __init__(self, path: Path | None, run: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self._state: dict[str, Any] = {"run": dict(run), "open_loop_per_s": None, "largest_difference": 0.0, "records": []}
        if resume and path is not None and path.exists():
            kept = json.loads(path.read_text())
            if kept["run"] != json.loads(json.dumps(run)):
                raise ResumeError(f"{path} is of a run with {kept['run']}, not with {dict(run)}: give the same options, or delete it")
            self._state = kept

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records."""
        records: list[dict[str, Any]] = self._state["records"]
        return records

    @property
    def open_loop_per_s(self) -> float | None:
        """The rate of the open loop; None before it is known."""
        rate: float | None = self._state["open_loop_per_s"]
        return rate

    @property
    def largest_difference(self) -> float:
        """The largest difference of a probability from numpy's average."""
        return float(self._state["largest_difference"])

    def set_rate(self, per_s: float) -> None:
        """Set the rate of the open loop."""
        self._state["open_loop_per_s"] = per_s

    def has(self, number: int, key: str) -> bool:
        """Whether there is a record of a server in a round."""
        return any(record["round"] == number and record["key"] == key for record in self.records)

    def add(self, record: dict[str, Any], difference: float) -> None:
        """Add a record, with the largest difference of its answers."""
        self.records.append(record)
        self._state["largest_difference"] = max(self.largest_difference, difference)
        if self._path is not None:
            write_result(self._path, self._state)

    def delete(self) -> None:
        """Delete the file: the run is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def measure_rounds(served: Served, pythons: Pythons, effort: Effort, seed: int, records: Records, on_progress: OnProgress) -> None:
    """Time every server in every round, in a new random order, and the forms in process as if they were one of them.

    Args:
        served: What is served.
        pythons: The servers to compare.
        effort: Rounds and durations.
        seed: Seed of the order and of the arrivals.
        records: The records, to which this adds those that it lacks.
        on_progress: Called after each server.

    Raises:
        WrongAnswerError: The outputs of a form are wrong.
    """
    contenders = {contender.key: contender for contender in CONTENDERS if contender.key in pythons}
    keys = [IN_PROCESS, *contenders]
    with forms_in_process(served.members) as all_in_process:
        in_process = [form for form in all_in_process if not form.spins]  # a thread that spins takes a core from the callers
        if records.open_loop_per_s is None:
            best_per_s = max(
                time_form(form.predict, _batches(served.images, OPEN_SETTING), warm_s=effort.warm_s, seconds=effort.seconds).images_per_s
                for form in in_process
            )
            records.set_rate(round(OPEN_FRACTION * best_per_s, 2))
            on_progress(f"fixed rate: {OPEN_FRACTION:.0%} of {best_per_s:.0f} calls per second")
        assert records.open_loop_per_s is not None, "it was set above"
        for number in range(effort.rounds):
            generator = np.random.default_rng((seed, number))
            arrivals = arrival_times("poisson", records.open_loop_per_s, effort.warm_s + effort.seconds, 0.0, generator)
            for key in generator.permutation(keys):
                if records.has(number, key):
                    continue
                if key == IN_PROCESS:
                    record = _empty_record(number, IN_PROCESS, ours=False)
                    difference = _time_forms(record, in_process, served, effort, arrivals)
                else:
                    record = _empty_record(number, key, ours=contenders[key].ours)
                    difference = _time_server(record, contenders[key], pythons[key], served, effort, arrivals)
                records.add(record, difference)
                on_progress(f"round {number + 1} of {effort.rounds}, {_summary(record)}")


def run_description(effort: Effort, seed: int, keys: Sequence[str], commit: str | None) -> dict[str, Any]:
    """Return what must be the same when a run continues."""
    return {**asdict(effort), "seed": seed, "servers": list(keys), "git_commit": commit}


def _empty_record(number: int, key: str, *, ours: bool) -> dict[str, Any]:
    memory = dict.fromkeys(("start_s", "idle_bytes", "loaded_bytes", "processes"))
    return {"round": number, "key": key, "ours": ours, **memory, "forms": {}, "failures": {}}


def _time_server(
    record: dict[str, Any], contender: Contender, python: Path, served: Served, effort: Effort, arrivals: NDArray[np.float64]
) -> float:
    try:
        with running(contender, python, served) as server:
            record.update(start_s=server.start_s, idle_bytes=server.processes.memory_bytes(), processes=len(server.processes.find()))
            difference = _time_forms(record, server.forms, served, effort, arrivals)
            record["loaded_bytes"] = server.processes.memory_bytes()
            return difference
    except (ContenderError, ServerProcessesError) as error:
        record["failures"] |= {name: str(error) for name in contender.form_names}
        return 0.0


def _time_forms(record: dict[str, Any], forms: Sequence[Form], served: Served, effort: Effort, arrivals: NDArray[np.float64]) -> float:
    """Check and time forms, and add their timings to a record. Returns the largest difference of their answers."""
    difference = 0.0
    for form in forms:
        timings: dict[str, Any] = {}
        try:
            for size in sorted({setting.batch for setting in SETTINGS}):
                for start in (0, 16):
                    images, expected = served.images[start : start + size], served.expected[start : start + size]
                    difference = max(difference, check_answers(form, images, expected))
            for setting in SETTINGS:
                batches = _batches(served.images, setting)
                timing = time_form(form.predict, batches, warm_s=effort.warm_s, seconds=effort.seconds)
                timings[setting.key] = _values(timing.images_per_s, timing.calls_ms)
            batches = _batches(served.images, OPEN_SETTING)
            open_loop = time_open_loop(form.predict, batches, arrivals, warm_s=effort.warm_s)
            values = _values(open_loop.calls_per_s * OPEN_SETTING.batch, open_loop.calls_ms)
            timings[OPEN_LOOP] = {**values, "late_share": round(open_loop.late_share, 4)}
        except (OSError, grpc.RpcError) as error:
            record["failures"][form.name] = str(error)
        record["forms"][form.name] = timings
    return difference


def _values(images_per_s: float, calls_ms: Sequence[float]) -> dict[str, Any]:
    return {"images_per_s": round(images_per_s, 3), **percentiles(call / 1000 for call in calls_ms)}


def _batches(images: NDArray[np.float32], setting: Setting) -> NDArray[np.float32]:
    return images[: setting.callers * setting.batch].reshape(setting.callers, setting.batch, *images.shape[1:])


def _summary(record: Mapping[str, Any]) -> str:
    parts = []
    for name, settings in record["forms"].items():
        rates = ", ".join(f"{setting.title} {settings[setting.key]['images_per_s']:.0f}" for setting in SETTINGS if setting.key in settings)
        parts.append(f"{name}: {rates}")
    failed = "".join(f"; {name} failed: {text}" for name, text in record["failures"].items())
    return f"{'; '.join(parts)} images/s{failed}" if parts else failed.lstrip("; ")
