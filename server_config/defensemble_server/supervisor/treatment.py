"""What is done about a failure: a repair by an edit, or a restart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .records import Failure, TargetRecord
from .repair import RepairProcess
from .targets import Targets

# For the same model, two repairs are at least so many seconds apart, and so are two restarts because of wrong answers: a model whose
# answers always differ would fill the disk with versions.
TREATED_AGAIN_S = 600.0
# The same for restarts because of a hang, which nothing else ends.
HUNG_AGAIN_S = 60.0
# Correct answers must follow a repair within so many seconds.
_CORRECT_WITHIN_S = 5.0


class Treatment:
    """Repairs models by edits, one at a time, and asks the guard for restarts.

    The rule: models whose files on disk are correct are loaded again from these, under new versions, by edits. If an edit fails, or an
    ensemble is wrong although its members are correct, the server is restarted. A model whose file is wrong, or that was treated in the
    last `TREATED_AGAIN_S`, is only reported.

    Args:
        repository: The repository.
        targets: The models.
        restarts: Whether the guard restarts the server.
        send_event: Records an event: kind and facts.
        send_restart: Asks for a restart: kind of the event and facts.
    """

    def __init__(
        self,
        repository: Path,
        targets: Targets,
        restarts: bool,
        send_event: Callable[[str, dict[str, Any]], None],
        send_restart: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._repository, self._targets, self._restarts = repository, targets, restarts
        self._send_event, self._send_restart = send_event, send_restart
        self._process: RepairProcess | None = None
        self._left: list[RepairProcess] = []
        self._repairing: list[tuple[TargetRecord, Failure]] = []
        self._edited_at: float | None = None  # the time when the edits of the repair in progress had ended
        self._treated_at: dict[tuple[str, str], float] = {}  # by treatment and model
        self._hangs: dict[str, float] = {}  # when a hang was reported, by label; only without restarts
        self._unrepaired: dict[str, dict[str, Any]] = {}  # the facts of models that were only reported, by label
        self.repairs: Counter[str] = Counter()

    def is_urgent(self, records: Mapping[str, TargetRecord]) -> bool:
        """Whether the next checks decide on a failure or on a repair."""
        return self.is_repairing or any(record.failure is not None and not record.failure.is_handled for record in records.values())

    @property
    def is_repairing(self) -> bool:
        """Whether a repair is in progress."""
        return bool(self._repairing)

    def prepare(self) -> None:
        """Start the process of the next repair, so that it has imported everything when it is needed."""
        if self._process is not None and self._process.was_killed and not self._repairing:
            self._end_repair()
        if self._process is None:
            self._process = RepairProcess(self._repository)

    def forget(self) -> None:
        """Drop the repair in progress: the server has ended. The process of its edit waits for the new server."""
        self._unrepaired.clear()
        self._hangs.clear()
        if self._repairing and self._process is not None:
            self._left.append(self._process)
            self._process = None
            self._end_repair()

    def stop(self) -> None:
        """End all processes; an edit in progress is undone."""
        for process in (*self._left, *([] if self._process is None else [self._process])):
            process.stop()
        self._left.clear()
        self._process = None

    def hang(self, records: Sequence[TargetRecord]) -> None:
        """Ask for a restart because of models that hang; without restarts, report each hang once."""
        if not self._restarts:
            records = [record for record in records if (record.correct_at or 0.0) >= self._hangs.get(record.target.label, 0.0)]
            if not records:
                return
            self._hangs.update({record.target.label: time.time() for record in records})
        record, names = records[0], ", ".join(record.target.label for record in records)
        facts = {"models": names.split(", "), "cause": f"no execution of {names} ends", "detected_at": round(time.time(), 3)}
        if not self._restarts:
            self._send_event("hanging", facts)
        elif self._may_treat("hang", record.target.name, HUNG_AGAIN_S):
            self._send_restart("hung", facts)

    def step(self, records: Mapping[str, TargetRecord]) -> None:
        """Continue a repair, or begin the next one."""
        for process in [process for process in self._left if process.error() is not None]:
            self._left.remove(process)
            process.stop()
        if self._repairing:
            self._continue(records)
            return
        self._report_ends(records)
        new = [record for record in records.values() if record.failure is not None and not record.failure.is_handled]
        repairable: list[tuple[TargetRecord, Failure]] = []
        for record in sorted(new, key=lambda record: record.target.is_ensemble):
            failure = record.failure
            assert failure is not None
            if record.target.is_ensemble and not self._has_correct_members(records, record, failure):
                continue  # a consequence of the failure of a member, or it is not known yet
            failure.is_handled = True
            self._send_event("wrong", self._facts(record, failure) | {"text": failure.problem.text, "correct_at": record.correct_at})
            if record.target.is_ensemble:
                self._give_up(record, failure, "its members answer correctly, so that its average is wrong")
            elif (problem := self._targets.file_problem(record.target)) is not None:
                self._not_repaired(record, failure, problem, restarts=False)
            elif not self._may_treat("repair", record.target.name, TREATED_AGAIN_S):
                self._give_up(record, failure, f"it was repaired less than {TREATED_AGAIN_S:g} s ago")
            else:
                repairable.append((record, failure))
        if repairable:  # all at once: an edit that leaves a failing member in its ensemble is refused
            self.prepare()
            assert self._process is not None
            texts = dict.fromkeys(failure.problem.text for _, failure in repairable)
            self._process.start([record.target.label for record, _ in repairable], f"supervisor: {'; '.join(texts)}")
            self._repairing = repairable

    def _continue(self, records: Mapping[str, TargetRecord]) -> None:
        assert self._process is not None
        if self._edited_at is None:
            error = self._process.error()
            if error is None:
                return
            if error:
                for record, failure in self._end_repair():
                    self._give_up(record, failure, error)
                return
            self._edited_at = time.time()
        ended, names = self._edited_at, {record.target.name for record, _ in self._repairing}
        affected = [other for other in records.values() if other.target.name in names or self._depends_on(records, other, names)]
        if all(other.failure is None and (other.correct_at or 0.0) > ended for other in affected):
            for record, failure in self._end_repair():
                self._report_repair(record, failure, affected)
        elif time.time() > ended + _CORRECT_WITHIN_S and any(other.failure and (other.checked_at or 0.0) > ended for other in affected):
            for record, failure in self._end_repair():
                self._give_up(record, failure, "its answers are wrong after the repair, too")

    def _report_repair(self, record: TargetRecord, failure: Failure, affected: Sequence[TargetRecord]) -> None:
        versions = [other.target.version or 0 for other in affected if other.target.name == record.target.name]
        if not versions:  # it was unloaded meanwhile, which the next step reports
            self._unrepaired[record.target.label] = self._facts(record, failure)
            return
        recovered_at = max(other.correct_since or 0.0 for other in affected)
        seconds = round(recovered_at - failure.detected_at, 3)
        facts = {"new_version": max(versions), "recovered_at": round(recovered_at, 3), "seconds": seconds}
        self.repairs["done"] += 1
        self._send_event("repaired", self._facts(record, failure) | facts)

    def _end_repair(self) -> list[tuple[TargetRecord, Failure]]:
        """End the process, and the repair in progress; return what it repaired."""
        if self._process is not None:
            self._process.stop()
        ended, self._process, self._repairing, self._edited_at = self._repairing, None, [], None
        return ended

    def _give_up(self, record: TargetRecord, failure: Failure, error: str) -> None:
        restarts = self._restarts and self._may_treat("restart", record.target.name, TREATED_AGAIN_S)
        self._not_repaired(record, failure, error, restarts=restarts)

    def _not_repaired(self, record: TargetRecord, failure: Failure, error: str, *, restarts: bool) -> None:
        self.repairs["failed"] += 1
        facts = self._facts(record, failure)
        self._send_event("not_repaired", facts | {"error": error, "restarts": restarts})
        if restarts:
            self._send_restart("faulty", facts | {"cause": f"{record.target.label} answers wrongly"})
        else:
            self._unrepaired[record.target.label] = facts

    def _report_ends(self, records: Mapping[str, TargetRecord]) -> None:
        """Report the models that were only reported, and now answer correctly, or are no longer served."""
        for label, facts in list(self._unrepaired.items()):
            record = records.get(label)
            if record is None or (record.failure is None and record.correct_since is not None):
                recovered_at = time.time() if record is None or record.correct_since is None else record.correct_since
                times = {"recovered_at": round(recovered_at, 3), "seconds": round(recovered_at - facts["detected_at"], 3)}
                del self._unrepaired[label]
                self._send_event("repaired", facts | times)

    def _may_treat(self, treatment: str, name: str, again_s: float) -> bool:
        """Return whether a model may be treated now, and remember that it is."""
        now = time.monotonic()
        if now < self._treated_at.get((treatment, name), -again_s) + again_s:
            return False
        self._treated_at[treatment, name] = now
        return True

    @staticmethod
    def _depends_on(records: Mapping[str, TargetRecord], ensemble: TargetRecord, names: Collection[str]) -> bool:
        """Return whether an ensemble has one of these members, and no other one that fails, which is the next to be repaired."""
        members = ensemble.target.members
        others = [records.get(f"{member}@{version}") for member, version in members if member not in names]
        is_failing = any(other is not None and other.failure is not None for other in others)
        return len(others) < len(members) and not is_failing

    @staticmethod
    def _has_correct_members(records: Mapping[str, TargetRecord], ensemble: TargetRecord, failure: Failure) -> bool:
        """Return whether all members have answered correctly since a failure of their ensemble."""
        members = [records.get(label) for label in ensemble.target.member_labels]
        return all(member is None or (member.failure is None and (member.correct_at or 0.0) > failure.detected_at) for member in members)

    @staticmethod
    def _facts(record: TargetRecord, failure: Failure) -> dict[str, Any]:
        name, version = record.target.name, record.target.version
        return {"model": name, "version": version, "fault": failure.problem.fault, "detected_at": round(failure.detected_at, 3)}
