"""The ledger: what survives a kill, a torn line, damage, a full disk and a second process."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import InputError
from defensemble.probes import FunctionTarget, Noise, Shuffle, measure
from defensemble.probes.counting import SentCounts
from defensemble.probes.ledger import Ledger
from tests.support.broken import fill, small_disk
from tests.support.facts import raises
from tests.support.probing import FEW, FEWER_EXAMPLES, InterruptedByTestError, Interrupting, linear, result

PROBE = Noise((8, 64), seed=3)
PLAN = {"probe": "noise", "targets": ["a", "b"]}
RECORDS = [{"kind": "responses", "target": 0, "classes": [number] * 3} for number in range(3)]


def written(folder: Path) -> bytes:
    """Write a ledger of some records, and return their file."""
    with Ledger(folder, PLAN, is_resumed=False) as ledger:
        for record in RECORDS:
            ledger.append(record)
    return (folder / "records.jsonl").read_bytes()


def read(folder: Path) -> list[dict[str, Any]]:
    """Resume a ledger, and return its records without times and sessions."""
    with Ledger(folder, PLAN, is_resumed=True) as ledger:
        records = [{key: value for key, value in record.items() if key != "s"} for record in ledger.records]
    return [record for record in records if record != {"kind": "session"}]


def test_a_line_that_was_cut_anywhere_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    content = written(tmp_path / "l")
    lines = content.splitlines(keepends=True)
    for cut in range(len(b"".join(lines[:-1])), len(content) + 1):
        (tmp_path / "l/records.jsonl").write_bytes(content[:cut])
        with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger:
            ledger.append({"kind": "more"})
        assert read(tmp_path / "l") == [*RECORDS[: 3 if cut == len(content) else 2], {"kind": "more"}]


@FEWER_EXAMPLES
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_each_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, where: float, change: int) -> None:
    folder = tmp_path_factory.mktemp("ledger") / "l"
    content = bytearray(written(folder))
    at = int(where * len(content))
    content[at] ^= change
    (folder / "records.jsonl").write_bytes(content)
    if at == len(content) - 1:  # the end of the last line: it was cut
        assert read(folder) == RECORDS[:-1]
        return
    with raises(InputError, f"{folder / 'records.jsonl'} | damaged"):
        read(folder)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    lines = written(tmp_path / "l").splitlines(keepends=True)
    (tmp_path / "l/records.jsonl").write_bytes(b"".join([*lines[:2], b'{"kind":"responses"}\n', *lines[2:]]))
    with raises(InputError, f"line 3 | {tmp_path / 'l/records.jsonl'} | --out"):
        read(tmp_path / "l")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_a_damaged_plan_is_an_error(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "l")
    (tmp_path / "l/plan.json").write_bytes(content)
    with raises(InputError, f"{tmp_path / 'l/plan.json'} | damaged | --out"):
        read(tmp_path / "l")


def test_a_run_that_was_killed_before_its_plan_was_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l/.plan.json.12345").write_bytes(b'{"sch')
    with raises(InputError, f"no unfinished run | {tmp_path / 'l'} | --resume"):
        Ledger(tmp_path / "l", PLAN, is_resumed=True)
    written(tmp_path / "l")
    assert read(tmp_path / "l") == RECORDS


def test_a_folder_of_other_files_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l/mine.txt").write_text("mine")
    with raises(InputError, f"{tmp_path / 'l'} | mine.txt | --out"):
        Ledger(tmp_path / "l", PLAN, is_resumed=False)
    assert [path.name for path in (tmp_path / "l").iterdir()] == ["mine.txt"]


def test_one_process_at_a_time_has_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", PLAN, is_resumed=False) as ledger:
        with raises(InputError, f"{tmp_path / 'l'} | another process"):
            Ledger(tmp_path / "l", PLAN, is_resumed=True)
        with raises(InputError, f"{tmp_path / 'l'}"):
            Ledger(tmp_path / "l", PLAN, is_resumed=False)
        ledger.append(RECORDS[0])
    assert read(tmp_path / "l") == RECORDS[:1]


def test_counts_go_on_where_the_last_session_ended(tmp_path: Path) -> None:
    for number in (1, 2):
        counts = SentCounts()
        counts.add(1, "sent", "asked", "sanity")  # before the ledger is open
        with Ledger(tmp_path / "l", PLAN, is_resumed=number == 2) as ledger:
            ledger.move_counts(1, counts)
            counts.add(10, "sent", "asked")
            assert counts.values.tolist() == [11 * number, 11 * number, number, 0]
            assert ledger.counters[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("content", [None, b"", b"\0" * 63, b"\0" * 65, b"\xff" * 64])
def test_counters_of_another_size_or_below_zero_are_damaged(tmp_path: Path, content: bytes | None) -> None:
    written(tmp_path / "l")
    path = tmp_path / "l/counters.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with raises(InputError, f"{path} | --out"):
        read(tmp_path / "l")


@pytest.mark.parametrize("content", [None, np.zeros((2, 1, 3, 3), np.float32), np.zeros((2, 1, 2, 2)), b"", b"\xff" * 400])
def test_examples_of_another_kind_are_damaged(tmp_path: Path, content: Any) -> None:
    path, shape = tmp_path / "l/examples-1.npy", (2, 1, 2, 2)
    with Ledger(tmp_path / "l", PLAN, is_resumed=False) as ledger:
        path.write_bytes(b"\x93NUM")  # of a process that was killed while it wrote the header
        ledger.examples(1, shape)[1] = 0.5
        ledger.append({"kind": "image", "target": 1, "position": 1})
    with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger:
        assert ledger.examples(1, shape).tolist() == np.repeat([0, 0.5], 4).reshape(shape).tolist()
        ledger.examples(1, shape)[0] = 0.25
        assert ledger.examples(1, shape)[0, 0, 0, 0] == 0.25
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger, raises(InputError, f"{path} | --out"):
        ledger.examples(1, shape)


def test_a_run_that_sent_nothing_leaves_no_ledger(tmp_path: Path) -> None:
    for probe, error in ((Shuffle((999,)), InputError), (Shuffle((2,)), InterruptedByTestError)):
        with pytest.raises(error):
            measure(probe, [linear("a", 1)], FEW, ledger=tmp_path / "l", progress=Interrupting(at=0))
        assert (tmp_path / "l").exists() == (error is InterruptedByTestError)


def test_answers_that_were_cut_are_dropped(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", PLAN, is_resumed=False) as ledger:
        ledger.append_answers(0, np.array([3, 5, 3]), np.array([0.5, 1.5, 2.5]))
    path = tmp_path / "l/answers-0.bin"
    content = path.read_bytes()
    for cut in range(2 * len(content) // 3, len(content)):
        path.write_bytes(content[:cut])
        with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger:
            assert {key: values.tolist() for key, values in ledger.answers(0).items()} == {3: [0.5], 5: [1.5]}
            ledger.append_answers(0, np.array([3]), np.array([4.5]))
            assert {key: values.tolist() for key, values in ledger.answers(0).items()} == {3: [0.5, 4.5], 5: [1.5]}
            assert ledger.answers(1) == {}


def test_damaged_answers_are_refused_unless_they_are_the_last(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", PLAN, is_resumed=False) as ledger:
        ledger.append_answers(0, np.array([3, 5, 3]), np.array([0.5, 1.5, 2.5]))
    path = tmp_path / "l/answers-0.bin"
    content = path.read_bytes()
    size = len(content) // 3
    for damaged in (size, 2 * size - 1):
        path.write_bytes(content[:damaged] + bytes([content[damaged] ^ 1]) + content[damaged + 1 :])
        with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger, raises(InputError, str(path)):
            ledger.answers(0)
    path.write_bytes(content[: 2 * size] + bytes(size))  # as after a power failure
    with Ledger(tmp_path / "l", PLAN, is_resumed=True) as ledger:
        assert {key: values.tolist() for key, values in ledger.answers(0).items()} == {3: [0.5], 5: [1.5]}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to make a file of this process larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_whose_ledger_cannot_grow_ends_with_its_name_and_is_resumed(tmp_path: Path) -> None:
    expected = result(measure(PROBE, [linear("a", 1, max_batch=5)], FEW))
    whole = tmp_path / "whole"
    with pytest.raises(InterruptedByTestError):
        measure(PROBE, [linear("a", 1, max_batch=5)], FEW, ledger=whole, progress=Interrupting(9))
    size = (whole / "records.jsonl").stat().st_size
    for limit in range(300, size, 97):  # cuts lines at several places
        folder = tmp_path / str(limit)
        with largest_file(limit), pytest.raises(OSError, match="too large") as caught:
            measure(PROBE, [linear("a", 1, max_batch=5)], FEW, ledger=folder)
        assert caught.value.filename in (str(folder / "plan.json"), str(folder / "records.jsonl"))
        is_begun = (folder / "plan.json").exists()
        assert result(measure(PROBE, [linear("a", 1, max_batch=5)], FEW, ledger=folder, resume=is_begun)) == expected


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288])
def test_a_full_disk_ends_a_run_which_is_resumed_when_there_is_room(tmp_path: Path, leave: int) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, leave)
        folder, failed = disk / "l", full_disk(disk / "l")
        assert failed.is_relative_to(folder)
        (disk / "filler").unlink()
        outcome = measure(PROBE, three_targets(), FEW, ledger=folder, resume=(folder / "plan.json").exists())
        assert [target.queries.counted for target in outcome.targets] == [36, 36, 36]
        gc.collect()  # the mapped counters, which keep the disk busy


def three_targets() -> list[FunctionTarget]:
    """Return targets whose batches of one image fill a page with records."""
    return [linear(f"target-{number}", 1, max_batch=1) for number in range(3)]


def full_disk(folder: Path) -> Path:
    """Run a probe until the disk of its ledger is full, and return the file that could not be written."""
    with pytest.raises(OSError, match="No space left") as caught:
        measure(PROBE, three_targets(), FEW, ledger=folder)
    return Path(str(caught.value.filename))


# Each fork is killed at its n-th write, before it, in the middle of it or after it, or in the n-th call of a target.
_KILLED = """
import json, os, signal, sys
from pathlib import Path
from defensemble.probes import FunctionTarget, Noise, Shuffle, measure
from tests.support.probing import FEW, Linear, linear, result, assert_balanced

place = Path(sys.argv[1])
expected = result(measure(Noise((8, 64), seed=3), [linear("a", 1, max_batch=5), linear("b", 2, max_batch=5)], FEW))

def run(ledger, is_resumed, on_call):
    class Watched(Linear):
        def __call__(self, images):
            on_call(len(images))
            return super().__call__(images)
    Watched.__name__ = "Linear"  # which identifies the target
    targets = [FunctionTarget(name, Watched(seed), max_batch=5) for name, seed in (("a", 1), ("b", 2))]
    return measure(Noise((8, 64), seed=3), targets, FEW, ledger=ledger, resume=is_resumed)

def forked(act):
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def killing(kind, at, ledger, received):
    left = [at]
    def is_due():
        left[0] -= 1
        return left[0] < 0
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def on_call(count):
        if kind == "call" and is_due():
            die()
        os.write(received, bytes(count))
    write = os.write
    def writing(descriptor, content):
        if descriptor != received and kind != "call" and is_due():
            if kind == "in":
                write(descriptor, content[: len(content) // 2])
            elif kind == "after":
                write(descriptor, content)
            die()
        return write(descriptor, content)
    os.write = writing
    run(ledger, (ledger / "plan.json").exists(), on_call)

for kind in ("call", "before", "in", "after"):
    for at in range(0, 60, int(sys.argv[2])):
        ledger = place / f"{kind}-{at}"
        received = os.open(place / f"{kind}-{at}.count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        statuses = [forked(lambda: killing(kind, at, ledger, received)) for _ in range(2)]
        count = os.fstat(received).st_size
        outcome = run(ledger, (ledger / "plan.json").exists(), lambda images: os.write(received, bytes(images)))
        assert result(outcome) == expected, (kind, at)
        assert_balanced(outcome)
        total = os.fstat(received).st_size
        sent = sum(target.queries.sent for target in outcome.targets)
        # Images are counted before they leave: those of the killed calls were counted, and did not arrive.
        killed = sum(status == -signal.SIGKILL for status in statuses)
        assert total <= sent <= total + 5 * killed * (kind == "call"), (kind, at, total, sent)
        if -signal.SIGKILL not in statuses:
            break
    print(kind, at)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_write_and_any_call_is_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    ends = dict(line.split() for line in done.stdout.splitlines())
    assert ends.keys() == {"call", "before", "in", "after"}
    assert min(int(end) for end in ends.values()) >= 15
