"""The worker processes of a query attack: the same results as one image at a time, and clear ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError, MissingExtraError, WorkerEndedError
from defensemble.probes.attack_pool import AttackError, AttackPool, Questions
from defensemble.probes.base import QueryAttack
from defensemble.probes.foolbox_attacks import Boundary, HopSkipJump
from defensemble.probes.lanes import AttackSettings, Finished
from defensemble.probes.square import Square
from tests.client.probes.test_lanes import assert_same
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.query_attacks import Scripted, classes, respond, run_lanes, task


def run_pool(pool: AttackPool, numbers: range, replays: dict[int, Any] | None = None) -> dict[int, Finished]:
    """Answer from several threads at once."""
    found: dict[int, Finished] = {}

    def answer(questions: Questions) -> None:
        questions.answer(respond(pool.settings.attack, questions.images, questions.positions))

    with ThreadPoolExecutor(3) as executor:
        for event in pool.run(task(number, (replays or {}).get(number)) for number in numbers):
            if isinstance(event, Finished):
                assert event.position not in found
                found[event.position] = event
            else:
                assert 1 <= len(event.images) == len(event.positions) <= pool.settings.max_batch
                executor.submit(answer, event)
    return found


def test_results_depend_neither_on_workers_nor_on_lanes_nor_on_batches() -> None:
    attack = Scripted(sizes=(1, 3, 5, 1, 7, 2))
    expected = run_lanes(AttackSettings(attack, budget=17, max_batch=4), [task(number) for number in range(12)])
    with AttackPool(attack, budget=17, workers=2, lanes=3, max_batch=4) as pool:
        first = run_pool(pool, range(12))
        again = run_pool(pool, range(12), {number: np.array(expected[number].responses[:number]) for number in range(12)})
        with raises(ConnectionError, "the server is gone"):
            for event in pool.run([task(0)]):
                assert isinstance(event, Questions)
                event.fail(ConnectionError("the server is gone"))
        processes = [worker.process.pid for worker in pool._workers]
    for number, log in expected.items():
        assert_same(first[number], log.found)
        assert_same(again[number], log.found)
    assert len(processes) == 2
    assert not any(is_running(pid) for pid in processes)


def is_running(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("attack", [Boundary(steps=300), HopSkipJump(steps=3), Square(epsilon=0.05, queries=100)])
@pytest.mark.parametrize(("workers", "lanes", "max_batch", "input_type"), [(1, 1, 1, "float32"), (3, 2, 64, "8bit")])
def test_each_attack_equals_itself_without_processes(
    attack: QueryAttack, workers: int, lanes: int, max_batch: int, input_type: Any
) -> None:
    settings = AttackSettings(attack, 250, input_type, max_batch)
    expected = run_lanes(settings, [task(number) for number in range(12)])
    with AttackPool(attack, budget=250, input=input_type, workers=workers, lanes=lanes, max_batch=max_batch) as pool:
        found = run_pool(pool, range(12))
    for number, log in expected.items():
        assert_same(found[number], log.found)


def test_a_killed_worker_is_an_error() -> None:
    with AttackPool(Scripted(sizes=(1,) * 5), budget=9, workers=1, lanes=2) as pool:
        with raises(WorkerEndedError, "SIGKILL | memory"):
            for event in pool.run([task(0), task(1)]):
                os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
                assert isinstance(event, Questions)
                event.answer(classes(event.images))


def test_an_attack_that_raises_is_an_error_with_its_traceback() -> None:
    with AttackPool(Scripted(problem="raise"), budget=9, workers=1) as pool:
        with raises(AttackError, "a fault of this attack | query_attacks.py | KeyError"):
            list(pool.run([task(0)]))


@pytest.mark.slow
def test_a_missing_package_is_the_error_of_this_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "foolbox.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    with AttackPool(Boundary(), budget=9, workers=1) as pool:
        with raises(MissingExtraError, "not installed | pip install 'defensemble[probes]'"):
            list(pool.run([task(0)]))


@pytest.mark.parametrize("name", ["budget", "workers", "lanes", "max_batch", "in_flight"])
def test_numbers_are_at_least_1(name: str) -> None:
    with raises(InputError, f"{name} | 0"):
        AttackPool(Scripted(), **{"budget": 9, name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("answers", [np.zeros(2, int), np.zeros((1, 1), int), np.zeros(1)])
def test_responses_of_another_shape_or_kind_are_rejected(answers: Any) -> None:
    questions = Questions(np.zeros(1, np.int64), np.zeros((1, 1, 6, 6), np.float32), _Pool(), [])  # type: ignore[arg-type]
    with raises(ValueError, str(answers.shape)):
        questions.answer(answers)


class _Pool:
    settings = AttackSettings(Scripted(), 9)


SCRIPT = """
import sys, time
from defensemble.probes.attack_pool import AttackPool, Questions
from tests.support.query_attacks import Scripted, classes, task

if __name__ == "__main__":
    with AttackPool(Scripted(sizes=(1,) * 100_000), budget=10**6, workers=2, lanes=4) as pool:
        for number, event in enumerate(pool.run(task(number) for number in range(8))):
            if number == 10:
                print(*[worker.process.pid for worker in pool._workers], flush=True)
            event.answer(classes(event.images))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT goes to the whole group, as from Ctrl+C: the workers leave it to their parent."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        errors = process.stderr.read()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert errors.count("Traceback") == (number == signal.SIGINT), errors  # the parent's KeyboardInterrupt


HANGING = """
import sys, threading
from pathlib import Path
import numpy as np
from defensemble.probes import FunctionTarget, LabelledImages, RunOptions, Square, measure

def answer(batch):
    if len(threading.enumerate()) > 1 and threading.current_thread() is not threading.main_thread():
        print("asked", flush=True)
        threading.Event().wait()
    return np.tile(np.float32([0.75, 0.25]), (len(batch), 1))

if __name__ == "__main__":
    data = LabelledImages(np.zeros((3, 1, 4, 4), np.float32), np.zeros(3, np.int64))
    target = FunctionTarget("hangs", answer)
    target.in_parallel = 2  # else it is called in the main thread
    measure(Square(), [target], data, ledger=Path(sys.argv[1]), options=RunOptions(workers=1))
"""


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_a_target_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    command = [sys.executable, str(tmp_path / "hanging.py"), str(tmp_path / "l")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert stderr.rstrip().endswith("KeyboardInterrupt")
