"""A server of tiny members for tests to edit, and the answers of any ensemble, computed with numpy."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from defensemble import Client, DefensembleError, GrpcTransport, OutputRequest, RetryPolicy, Transport
from defensemble._transport.base import ConnectionOptions
from defensemble.ensembles import Ensembles
from tests.support import tiny

KEY = "the-key-of-the-tests-0123456789"
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
# The seed of each network: `a`, `b` and `c` are members at first, `d` is not; a test exports `a@2`.
SEEDS = {"a@1": 1, "a@2": 11, "b@1": 2, "b@2": 22, "c@1": 3, "d@1": 4}
ABC = {"a@1": 1.0, "b@1": 1.0, "c@1": 1.0}
Array = tiny.Array
Weights = Mapping[str, float]


def write_world(folder: Path) -> Path:
    """Write `a`, `b` at two versions, `c` and `d`, and the ensemble `ensemble` of `a`, `b@1` and `c`, each with weight 1."""
    from defensemble_export import planned_files, write_files

    tiny.write_repository(folder, {"a": 1, "b": 2, "c": 3})
    write_files(folder, planned_files(folder, [tiny.member("d", 4)], ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "b", 22)
    return folder


def answers(images: Array, members: Weights, average: str = "probabilities") -> dict[str, Array]:
    """Return all outputs of an ensemble (MODEL@VERSION to weight, in order) by their definitions, in float64."""
    scores = np.stack([tiny.logits(SEEDS[member], images) for member in members], axis=1)
    shares = np.array(list(members.values())) / sum(members.values())
    each = tiny.softmax(scores)
    mixture = np.einsum("m,nmk->nk", shares, each)
    mean = mixture if average == "probabilities" else tiny.softmax(np.einsum("m,nmk->nk", shares, scores))
    return {
        "probabilities": mean,
        "member_probabilities": each,
        "entropy": -(mean * np.log(mean)).sum(axis=-1, keepdims=True),
        "mutual_information": -(mixture * np.log(mixture)).sum(axis=-1, keepdims=True)
        + np.einsum("m,nmk->n", shares, each * np.log(each))[:, None],
    }


class ServerUrls(Protocol):
    """The URLs of a server."""

    @property
    def grpc_url(self) -> str: ...

    @property
    def http_url(self) -> str: ...


@dataclass
class World:
    """A repository and the server that reads it."""

    folder: Path
    server: ServerUrls
    before: dict[str, bytes | None] = field(default_factory=dict)

    def url(self, kind: str = "grpc") -> str:
        return self.server.grpc_url if kind == "grpc" else self.server.http_url

    def client(self, kind: str = "grpc", **options: Any) -> Client:
        """Return a client with the admin key, unless `options` has another one."""
        return Client(self.url(kind), **{"admin_key": KEY, **options})

    def loaded(self) -> dict[str, list[int]]:
        """Return the loaded versions of each model, including models whose folder was deleted, which Triton's index omits."""
        loaded: dict[str, list[int]] = {}
        with self.client() as client:
            for statistics in client.transport.statistics(20):
                loaded.setdefault(statistics.name, []).append(statistics.version)
        return {model: sorted(versions) for model, versions in loaded.items()}

    def check(self, members: Weights, average: str = "probabilities", name: str = "ensemble") -> None:
        """Check that the server answers as numpy does over both protocols and serves what is on disk, without leftovers of the edit."""
        batch = tiny.images(5, seed=7)
        expected = answers(batch, members, average)
        for kind in ("grpc", "http"):
            with Client(self.url(kind)) as client:
                got = client.transport.infer(name, {"images": batch}, _requests(), 20)
            for output in OUTPUTS:
                np.testing.assert_allclose(got[output], expected[output], atol=1e-5, err_msg=f"{output} over {kind}")
        with self.client() as client:
            (state,) = Ensembles(self.folder, client).show(name)
        assert state.ensemble is not None
        assert [f"{member.model}@{member.version}" for member in state.ensemble.members] == list(members)
        assert [member.weight for member in state.ensemble.members] == list(members.values())
        assert state.ensemble.average == average
        assert set(state.served.values()) == {"yes"}
        assert {text for member in state.members for text in member.served.values()} == {"yes"}
        self.check_tidy()

    def check_tidy(self) -> None:
        """Check that there are no files of an edit in progress."""
        assert not (self.folder / "pending-edit.json").exists()
        assert [entry.name for entry in self.folder.parent.iterdir() if entry.name.startswith(".")] == []
        files = [path.name for path in self.folder.iterdir() if path.is_file()]
        assert set(files) <= {"history.jsonl"}

    def averaging(self) -> list[str]:
        """Return the loaded averaging models, sorted."""
        return sorted(name for name in self.loaded() if name.startswith(("average_", "uncertainty_")))

    def restore(self) -> None:
        """Restore the repository byte for byte, and the server."""
        restore_folder(self.folder, self.before)
        with self.client() as client:
            kept = {path.partition("/")[0] for path in self.before if "/" in path}
            for name in sorted(kept, key=lambda name: name == "ensemble"):
                client.transport.load_model(name, 20)
            for name in self.loaded():
                if name not in kept:
                    client.transport.unload_model(name, 20)
        assert set(self.loaded()) == kept


def restore_folder(folder: Path, before: Mapping[str, bytes | None]) -> None:
    """Restore the content of a folder; files that did not change are not written."""
    for name in sorted(tiny.content(folder).keys() - before.keys(), reverse=True):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name, written in before.items():
        path = folder / name
        if written is None:
            path.mkdir(exist_ok=True)
        elif not path.is_file() or path.read_bytes() != written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(written)


def times_of_change(folder: Path) -> dict[str, int]:
    """Return the modification time of each file of a folder, in nanoseconds."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class _Recording:
    """A transport that records the loads and unloads that are made through it."""

    def __init__(self, inner: Transport, calls: list[str]) -> None:
        self._inner = inner
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def load_model(self, model: str, timeout_s: float) -> None:
        self._calls.append(f"load {model}")
        self._inner.load_model(model, timeout_s)

    def unload_model(self, model: str, timeout_s: float) -> None:
        self._calls.append(f"unload {model}")
        self._inner.unload_model(model, timeout_s)


@contextmanager
def recording_client(world: World) -> Iterator[tuple[Client, list[str]]]:
    """Return a client with the admin key, and the list of its loads and unloads."""
    calls: list[str] = []
    inner = GrpcTransport(world.server.grpc_url, ConnectionOptions(admin_key=KEY))
    with Client(inner.url, transport=cast("Transport", _Recording(inner, calls))) as client:
        yield client, calls


def _requests() -> list[OutputRequest]:
    return [OutputRequest(name) for name in OUTPUTS]


class BackgroundCalls:
    """Clients that send requests in background threads; all answers and errors are recorded."""

    def __init__(self, url: str, name: str, count: int) -> None:
        self.batch = tiny.images(3, seed=11)
        self.answers: list[list[Array]] = [[] for _ in range(count)]
        self.errors: list[str] = []
        self._over = threading.Event()
        self._url, self._name = url, name
        self._threads = [threading.Thread(target=self._call, args=(mine,)) for mine in self.answers]

    def _call(self, mine: list[Array]) -> None:
        with Client(self._url, retry=RetryPolicy(max_retries=0)) as client:
            while not self._over.is_set():
                try:
                    mine.append(client.predict(self.batch, model=self._name).probabilities)
                except DefensembleError as error:
                    self.errors.append(str(error))

    def check(self, states: Sequence[tuple[Weights, str]]) -> None:
        """Check that there are no errors, and that all answers are those of `states`, in order."""
        assert self.errors == []
        expected = [answers(self.batch, members, average)["probabilities"] for members, average in states]
        for mine in self.answers:
            at = 0
            for answer in mine:
                matches = [index for index, state in enumerate(expected) if np.abs(state - answer).max() < 1e-5]
                assert matches, "an answer of none of the states"
                assert max(matches) >= at, "an old state after a new one"
                at = max(at, min(index for index in matches if index >= at))
            assert at == len(expected) - 1, "the last state was never seen"


@contextmanager
def calling(url: str, name: str = "ensemble", count: int = 2) -> Iterator[BackgroundCalls]:
    """Send requests during the block, and once more after it."""
    made = BackgroundCalls(url, name, count)
    for thread in made._threads:
        thread.start()
    try:
        wait_for_more(made)
        yield made
        if not made.errors:
            wait_for_more(made)
    finally:
        made._over.set()
        for thread in made._threads:
            thread.join(30)


def wait_for_more(made: BackgroundCalls, deadline_s: float = 20.0) -> None:
    """Wait until each client has two more answers; the second one was requested after this call."""
    pause = threading.Event()
    wanted = [len(mine) + 2 for mine in made.answers]
    for _ in range(int(deadline_s / 0.01)):
        if made.errors or all(len(mine) >= count for mine, count in zip(made.answers, wanted, strict=True)):
            return
        pause.wait(0.01)
    raise AssertionError(f"no answer within {deadline_s} s")
