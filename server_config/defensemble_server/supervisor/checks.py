"""The checks of the models: requests, answers, and what counts as a failure or a hang."""

from __future__ import annotations

import time
from collections.abc import Callable

from .connection import FAILURES, Connection, InferAnswer, Progress, WaitingCheck
from .records import TargetRecord
from .targets import Problem, Target, Targets

# A check that takes longer waits on a connection of its own, so that the round continues; the next round begins once all are answered.
WAIT_S = 0.5
# How often the counters of a model are read whose check waits.
_PROGRESS_EVERY_S = 0.5
# HTTP statuses of a queue that is full or whose timeout has passed, and of a server that drains.
_REFUSED = (429, 503)
_CONFIRM_WITHIN_S = 2.0


class Checks:
    """The checks of a server's models.

    Args:
        targets: The models and their correct answers.
        connect: Opens a connection to the server.
        hang_after_s: A check that was not answered for so long, while its model executed nothing, is a hang.
    """

    def __init__(self, targets: Targets, connect: Callable[[], Connection], hang_after_s: float) -> None:
        self._targets, self._connect, self._hang_after_s = targets, connect, hang_after_s
        self._kept: Connection | None = None
        self._waiting: dict[str, WaitingCheck] = {}
        self._progress_at = 0.0
        self.records: dict[str, TargetRecord] = {}

    @property
    def descriptors(self) -> list[Connection]:
        """The connections on which answers are awaited."""
        return [check.connection for check in self._waiting.values()]

    def forget(self) -> None:
        """Drop all connections and failures: the server has ended."""
        for check in self._waiting.values():
            check.connection.close()
        self._waiting.clear()
        self._drop()
        self._targets.forget()
        for record in self.records.values():
            record.failure = record.correct_at = record.correct_since = None

    def run(self) -> None:
        """Ask every model, one after the other; do nothing while a check waits.

        Then only users' requests make Triton's counters grow, so that these distinguish a hang from a busy server. A model that waits
        delays the checks of all others, by up to three times `hang_after_s` if it hangs.

        Raises:
            One of `connection.FAILURES`: The server does not answer.
            NotServableError, RepositoryError, OSError: The repository cannot be read.
        """
        if self._waiting:
            return
        try:
            ready = self._connection().ready_versions()
        except FAILURES:
            self._drop()
            raise
        is_edited = self._targets.is_edited
        targets = {target.label: target for target in self._targets.current(ready)}
        for label in [label for label in self.records if label not in targets]:
            del self.records[label]
        for label, target in targets.items():
            record = self.records.setdefault(label, TargetRecord(target))
            record.target = target
            # An edit unloads models that no ensemble uses any more once they have had no requests for a second.
            if not (is_edited and self._targets.is_unused(target)):
                self._ask(record)

    def receive(self) -> None:
        """Handle the answers that have arrived since."""
        for label, check in list(self._waiting.items()):
            if check.connection.answered(0):
                del self._waiting[label]
                record = self.records[label]
                try:
                    self._judge(record, check.connection.receive(), time.monotonic() - check.sent)
                except FAILURES:
                    pass  # the connection was lost; the next round asks again
                finally:
                    check.connection.close()

    def hanging(self) -> list[TargetRecord]:
        """Return the models that hang: their checks wait, and they have executed nothing for `hang_after_s`.

        A server under load is no hang: the check waits in the queue, while the counters of the model grow. Users of another model can keep
        a model waiting for longer; while the counters of any model grow, a hang takes three times as long. An ensemble does not hang while
        the check of a member waits: it waits in the same queue, behind that check.
        """
        now, found = time.monotonic(), list[TargetRecord]()
        if not self._waiting or now < self._progress_at:
            return found
        self._progress_at = now + _PROGRESS_EVERY_S
        try:
            counts = self._connection().progress()
        except FAILURES:
            self._drop()
            return found
        for label, check in self._waiting.items():
            record = self.records[label]
            if any(member in self._waiting for member in record.target.member_labels):
                check.own = Progress()
                continue
            own_s, any_s = check.own.idle_s(counts.get(record.target.name, 0)), check.any.idle_s(sum(counts.values()))
            if own_s >= self._hang_after_s and (any_s >= self._hang_after_s or own_s >= 3 * self._hang_after_s):
                found.append(record)
        return found

    def _ask(self, record: TargetRecord) -> None:
        connection = self._connection()
        sent = time.monotonic()
        try:
            connection.send(record.target.request)
            if not connection.answered(WAIT_S):
                self._kept = None
                self._waiting[record.target.label] = WaitingCheck(connection, sent)
                return
            answer = connection.receive()
        except FAILURES:
            self._drop()
            raise
        self._judge(record, answer, time.monotonic() - sent)

    def _judge(self, record: TargetRecord, answer: InferAnswer, latency_s: float) -> None:
        detected_at = time.time()
        if answer.status in _REFUSED:
            record.note("refused", latency_s)
            return
        problem = self._problem(record.target, answer)
        if problem is None:
            record.note("correct", latency_s)
        elif record.failure is not None:
            record.note(problem.fault, latency_s)
        elif (confirmed := self._confirmed(record)) is not None:
            record.note(confirmed.fault, latency_s)
            record.fail(confirmed, detected_at)
        else:
            record.correct_since = None  # an edit is in progress, or the second answer was correct

    def _problem(self, target: Target, answer: InferAnswer) -> Problem | None:
        if answer.values is None:
            return Problem("error", f"status {answer.status}: {answer.error}")
        return self._targets.problem(target, answer.values)

    def _confirmed(self, record: TargetRecord) -> Problem | None:
        """Ask again, with the repository and the loaded models as they are now; return what is still wrong."""
        if self._targets.is_edited:
            return None
        connection = self._connection()
        try:
            ready = connection.ready_versions()
            target = next((target for target in self._targets.current(ready) if target.label == record.target.label), None)
            if target is None:
                return None  # it was unloaded meanwhile
            record.target = target
            connection.send(target.request)
            if not connection.answered(_CONFIRM_WITHIN_S):
                self._drop()
                return None
            answer = connection.receive()
        except FAILURES:
            self._drop()
            return None
        return None if answer.status in _REFUSED else self._problem(target, answer)

    def _connection(self) -> Connection:
        if self._kept is None:
            self._kept = self._connect()
        return self._kept

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
