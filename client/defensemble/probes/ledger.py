"""The ledger of a run: what was sent and what came back, in a folder that survives a kill at any moment.

- `plan.json`: the settings and digests of the run; it is only resumed with the same ones.
- `records.jsonl`: one line for each batch of responses and each attacked image, with its CRC-32, appended in one write. A last line that
  was cut is dropped.
- `counters.bin`: the images that were sent, by target, mapped into memory: they are counted before they leave.
- `answers-<target>.bin`: the answers of a query attack, which are replayed when the run is resumed.
- `examples-<target>.npy`: the adversarial examples, float32 (n, C, H, W).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.filesystem.locks import folder_lock

from .._exceptions import InputError
from .counting import SentCounts
from .outcome import plain_json
from .setting_text import different_keys, different_texts

SCHEMA = "defensemble.ledger/1"
_PLAN, _RECORDS, _COUNTERS = "plan.json", "records.jsonl", "counters.bin"
_DIGESTS = ("images_sha256", "rows_sha256")
_ANSWER = np.dtype([("position", "<u4"), ("value", "<f8"), ("crc", "<u4")])
_SYNC_S = 1.0  # a power failure loses at most this much; a killed process loses nothing


class Ledger:
    """An open ledger. Use it as a context manager; only one process can open it.

    A new one is removed if an error ends the run before anything was sent.

    Args:
        folder: The folder. It is created, unless the run is resumed.
        plan: What identifies the run, as JSON; `targets` are the names of the targets.
        is_resumed: Whether to continue the run in the folder.

    Raises:
        InputError: The folder has a run and `is_resumed` is False; or there is none, or another one, and it is True.
        OSError: A file cannot be written.

    Example:
        >>> with Ledger(Path("noise.ledger"), plan, is_resumed=False) as ledger:
        ...     ledger.append({"kind": "responses", ...})
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, is_resumed: bool) -> None:
        self.folder = folder
        self._is_new = not is_resumed
        self.records: list[dict[str, Any]] = []
        plan = plain_json({"schema": SCHEMA, **plan})
        if is_resumed:
            _check_plan(folder, plan)
        self._stack = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            if not is_resumed:
                check_unused(folder)
                write_atomic(folder / _PLAN, (json.dumps(plan, indent=2) + "\n").encode())
            self._file = self._open(_RECORDS)
            self.records = list(self._read_records())
            self.counters = self._map_counters(len(plan["targets"]))
            self._started = time.monotonic()
            self._synced: dict[int, float] = {}  # by file, when it was last written to the disk
            self._earlier_s = sum(float(entry.get("s", 0)) for entry in _last_of_each_session(self.records))
            self._answers: dict[int, int] = {}
            self._examples: dict[int, NDArray[np.float32]] = {}
            self._lock_answers = threading.Lock()
            self._is_closed = False
            self.append({"kind": "session"})
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._lock_answers:
            self._is_closed = True
            if isinstance(error, Exception) and self._is_new and not self.counters.any():  # nothing was sent: an option was wrong
                shutil.rmtree(self.folder, ignore_errors=True)
            self._stack.close()

    @property
    def duration_s(self) -> float:
        """Seconds of work, without interruptions."""
        return self._earlier_s + time.monotonic() - self._started

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record. It survives a kill of the process at once, and a power failure after a second.

        Args:
            record: JSON values.

        Raises:
            OSError: It cannot be written.
        """
        line = json.dumps({**record, "s": round(time.monotonic() - self._started, 3)}, separators=(",", ":"), allow_nan=False).encode()
        self._write(self._file, _RECORDS, b"%08x %b\n" % (zlib.crc32(line), line))

    def move_counts(self, target: int, counts: SentCounts) -> None:
        """Let a target count in the ledger from now on.

        Args:
            target: Number of the target.
            counts: Its counts, which are added to those of earlier sessions.
        """
        counts.move_to(self.counters[target])

    def append_answers(self, target: int, positions: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Append answers of a query attack. Those that come after an interrupt, when the ledger is closed, are dropped.

        Args:
            target: Number of the target.
            positions: (k,) positions of the images.
            values: (k,) the answers.
        """
        entries = np.empty(len(positions), _ANSWER)
        entries["position"], entries["value"] = positions, values
        entries["crc"] = _checksums(entries)
        name = f"answers-{target}.bin"
        with self._lock_answers:  # requests end in several threads, some after an interrupt has closed the files
            if self._is_closed:
                return
            if target not in self._answers:
                self._answers[target] = self._open(name)
            self._write(self._answers[target], name, entries.tobytes())

    def answers(self, target: int) -> dict[int, NDArray[np.float64]]:
        """Return the answers of earlier sessions by the position of the image, in the order of the queries.

        Raises:
            InputError: They are damaged.
        """
        path = self.folder / f"answers-{target}.bin"
        if not path.exists():
            return {}
        content = path.read_bytes()
        entries = np.frombuffer(content, _ANSWER, len(content) // _ANSWER.itemsize)
        is_good = entries["crc"] == _checksums(entries)
        entries = entries[: np.flatnonzero(is_good)[-1] + 1 if is_good.any() else 0]  # the end may be lost by a power failure
        if not is_good[: len(entries)].all():
            raise _damaged(path)
        os.truncate(path, entries.nbytes)
        if not len(entries):
            return {}
        entries = entries[np.argsort(entries["position"], kind="stable")]
        positions, starts = np.unique(entries["position"], return_index=True)
        return dict(zip(positions.tolist(), np.split(np.ascontiguousarray(entries["value"]), starts[1:]), strict=True))

    def examples(self, target: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the adversarial examples of a target, in a file that is mapped into memory.

        Args:
            target: Number of the target.
            shape: (n, C, H, W).
        """
        if target in self._examples:
            return self._examples[target]
        path = self.folder / f"examples-{target}.npy"
        if not any(record["kind"] == "image" and record["target"] == target for record in self.records):
            path.unlink(missing_ok=True)  # perhaps of a process that was killed while it wrote the header
            np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
            self._reserve(path, path.stat().st_size)
        try:
            size = path.stat().st_size
            mapped: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(path, "r+")
            is_whole = mapped.dtype == np.float32 and mapped.shape == shape and size >= mapped.offset + mapped.nbytes
        except (FileNotFoundError, ValueError):
            is_whole = False
        if not is_whole:
            raise _damaged(path)
        self._examples[target] = mapped
        return mapped

    def _lock(self) -> None:
        try:
            self._stack.enter_context(folder_lock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(f"another process is running the probe in {self.folder}: wait for it, or choose another --out") from error

    def _open(self, name: str) -> int:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _write(self, descriptor: int, name: str, content: bytes) -> None:
        """Write at the end of a file, all or nothing, and every second to the disk."""
        end = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            while content:  # a second write has the reason why the first was short
                content = content[os.write(descriptor, content) :]
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise OSError(error.errno, error.strerror, str(self.folder / name)) from error
        if (now := time.monotonic()) - self._synced.get(descriptor, self._started) > _SYNC_S:
            self._synced[descriptor] = now
            if descriptor == self._file:
                self.counters.flush()  # first: what is recorded was counted
            os.fdatasync(descriptor)

    def _read_records(self) -> Iterator[dict[str, Any]]:
        content = (self.folder / _RECORDS).read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            if line[:9] != b"%08x " % zlib.crc32(line[9:]):
                raise _damaged(f"line {number} of {self.folder / _RECORDS}")
            yield json.loads(line[9:])

    def _map_counters(self, targets: int) -> np.memmap[Any, np.dtype[np.int64]]:
        path, shape = self.folder / _COUNTERS, (targets, len(SentCounts.FIELDS))
        size = 8 * targets * len(SentCounts.FIELDS)
        if self.records and not (path.exists() and path.stat().st_size == size):  # the first record is written after it
            raise _damaged(path)
        self._reserve(path, size)
        counters: np.memmap[Any, np.dtype[np.int64]] = np.memmap(path, np.int64, "r+", shape=shape)
        if (counters < 0).any():
            raise _damaged(path)
        return counters

    def _reserve(self, path: Path, size: int) -> None:
        """Make sure that the file has its blocks: a full disk would kill the process when it writes to the mapped memory."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)


def _last_of_each_session(records: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the last record of each session, whose `s` is how long it took."""
    for record, following in zip(records, [*records[1:], {"kind": "session"}], strict=False):
        if following.get("kind") == "session":
            yield record


def is_ledger(folder: Path) -> bool:
    """Return whether a folder has a run."""
    return (folder / _PLAN).exists()


def check_unused(folder: Path) -> None:
    """Raise an `InputError` if a folder exists and is not empty. A run that was killed before it wrote its plan does not count."""
    if is_ledger(folder):
        raise InputError(f"{folder} has an unfinished run: continue it with --resume, remove that folder, or choose another --out")
    if folder.exists() and (other := [path.name for path in folder.iterdir() if not path.name.startswith(f".{_PLAN}.")]):
        raise InputError(f"{folder} has other files ({min(other)}), but a run keeps its ledger there: choose another --out")


def _check_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Check that the folder has a run with this plan."""
    path = folder / _PLAN
    if not is_ledger(folder):
        raise InputError(f"there is no unfinished run in {folder}: omit --resume, or pass the --out of the interrupted run")
    try:
        stored = json.loads(path.read_bytes())
        differences = [key for key in {**stored, **plan} if stored.get(key) != plan.get(key)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    if differences:
        texts = [_difference(key, stored.get(key), plan.get(key)) for key in differences if key not in _DIGESTS]
        texts += ["the images were others (--dataset, --limit, --seed)"] * (len(texts) < len(differences))
        raise InputError(f"{folder} has a run with other settings: {'; '.join(texts)}. Resume it with its own, or choose another --out.")


def _checksums(entries: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the checksum of each answer, without the field `crc`."""
    content, size = entries.tobytes(), _ANSWER.itemsize
    return np.array([zlib.crc32(content[at : at + size - 4]) for at in range(0, len(content), size)], np.uint32)


def _damaged(what: Path | str) -> InputError:
    return InputError(f"{what} is damaged or missing: start the probe again with another --out")


def _difference(key: str, stored: Any, current: Any) -> str:
    if isinstance(stored, Mapping) and isinstance(current, Mapping):
        return "; ".join(
            _difference(name if key == "settings" else f"{key}.{name}", stored.get(name), current.get(name))
            for name in different_keys(stored, current)
        )
    return "{}: {}, now {}".format(key, *different_texts(key, stored, current))
