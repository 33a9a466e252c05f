"""A server of tiny members that tests may edit as they like, and numpy's own answer of any votes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from defensemble import Client, DefensembleError, GrpcTransport, OutputRequest, Transport
from defensemble.ensembles import Ensembles
from tests.support import tiny

KEY = "the-key-of-the-tests-0123456789"
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
# The network of each member: `a`, `b` and `c` vote at first, `d` does not; `a@2` is exported by a test.
SEEDS = {"a@1": 1, "a@2": 11, "b@1": 2, "b@2": 22, "c@1": 3, "d@1": 4}
ABC = {"a@1": 1.0, "b@1": 1.0, "c@1": 1.0}
Array = tiny.Array
Votes = Mapping[str, float]


def write_world(folder: Path) -> Path:
    """A repository of `a`, `b` at two versions, `c` and `d`; the ensemble `ensemble` is of `a`, `b@1` and `c`, each with weight 1."""
    from defensemble_export import repository_plan, write_files

    tiny.write_repository(folder, {"a": 1, "b": 2, "c": 3})
    write_files(folder, repository_plan(folder, [tiny.member("d", 4)], ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "b", 22)
    return folder


def answers(images: Array, votes: Votes, average: str = "probabilities") -> dict[str, Array]:
    """All outputs of an ensemble of `votes` (MODEL@VERSION to weight, in the order of the members), by their definitions, in float64."""
    scores = np.stack([tiny.logits(SEEDS[vote], images) for vote in votes], axis=1)
    shares = np.array(list(votes.values())) / sum(votes.values())
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


class Reached(Protocol):
    """Where a server is."""

    @property
    def grpc_url(self) -> str: ...

    @property
    def http_url(self) -> str: ...


@dataclass
class World:
    """A repository and the server that reads it."""

    folder: Path
    server: Reached
    before: dict[str, bytes | None] = field(default_factory=dict)

    def url(self, kind: str = "grpc") -> str:
        return self.server.grpc_url if kind == "grpc" else self.server.http_url

    def client(self, kind: str = "grpc", **options: Any) -> Client:
        """With the admin key, unless `admin_key` says otherwise."""
        return Client(self.url(kind), **{"admin_key": KEY, **options})

    def loaded(self) -> dict[str, list[int]]:
        """The versions of each model that answer; those too whose folder is gone, which Triton's index leaves out."""
        found: dict[str, list[int]] = {}
        with self.client() as client:
            for told in client.transport.statistics(20):
                found.setdefault(told.name, []).append(told.version)
        return {model: sorted(versions) for model, versions in found.items()}

    def check(self, votes: Votes, average: str = "probabilities", name: str = "ensemble") -> None:
        """The server answers as numpy does over both protocols, serves what lies on disk, and nothing of the edit is left over."""
        batch = tiny.images(5, seed=7)
        expected = answers(batch, votes, average)
        for kind in ("grpc", "http"):
            with Client(self.url(kind)) as client:
                got = client.transport.infer(name, {"images": batch}, _requests(), 20)
            for output in OUTPUTS:
                np.testing.assert_allclose(got[output], expected[output], atol=1e-5, err_msg=f"{output} over {kind}")
        with self.client() as client:
            (state,) = Ensembles(self.folder, client).show(name)
        assert state.votes is not None
        assert [f"{vote.model}@{vote.version}" for vote in state.votes.members] == list(votes)
        assert [vote.weight for vote in state.votes.members] == list(votes.values())
        assert state.votes.average == average
        assert set(state.served.values()) == {"yes"}
        assert {told for member in state.members for told in member.served.values()} == {"yes"}
        self.check_tidy()

    def check_tidy(self) -> None:
        """No file that an edit needs only while it is under way."""
        assert not (self.folder / "pending-edit.json").exists()
        assert [entry.name for entry in self.folder.parent.iterdir() if entry.name.startswith(".")] == []
        files = [path.name for path in self.folder.iterdir() if path.is_file()]
        assert set(files) <= {"history.jsonl"}

    def averaging(self) -> list[str]:
        """The averaging models that are loaded, sorted."""
        return sorted(name for name in self.loaded() if name.startswith(("average_", "uncertainty_")))

    def restore(self) -> None:
        """The repository as it was, byte for byte, and the server with it."""
        put_back(self.folder, self.before)
        with self.client() as client:
            kept = {path.partition("/")[0] for path in self.before if "/" in path}
            for name in sorted(kept, key=lambda name: name == "ensemble"):
                client.transport.load_model(name, 20)
            for name in self.loaded():
                if name not in kept:
                    client.transport.unload_model(name, 20)
        assert set(self.loaded()) == kept


def put_back(folder: Path, before: Mapping[str, bytes | None]) -> None:
    """Make a folder hold what it held, without a touch to what did not change."""
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
    """When each file of a folder was changed last, in nanoseconds."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class _Recording:
    """A transport that writes down which models were loaded and unloaded through it."""

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
def recorded(world: World) -> Iterator[tuple[Client, list[str]]]:
    """A client with the admin key, and the loads and unloads that it was used for."""
    calls: list[str] = []
    inner = GrpcTransport(world.server.grpc_url, admin_key=KEY)
    with Client(inner.url, transport=cast("Transport", _Recording(inner, calls))) as client:
        yield client, calls


def _requests() -> list[OutputRequest]:
    return [OutputRequest(name) for name in OUTPUTS]


class Calling:
    """Callers in threads of their own: every answer of each is kept, and every error."""

    def __init__(self, url: str, name: str, count: int) -> None:
        self.batch = tiny.images(3, seed=11)
        self.answers: list[list[Array]] = [[] for _ in range(count)]
        self.errors: list[str] = []
        self._over = threading.Event()
        self._url, self._name = url, name
        self._threads = [threading.Thread(target=self._call, args=(mine,)) for mine in self.answers]

    def _call(self, mine: list[Array]) -> None:
        with Client(self._url) as client:
            while not self._over.is_set():
                try:
                    mine.append(client.predict(self.batch, model=self._name).probabilities)
                except DefensembleError as error:
                    self.errors.append(str(error))

    def check(self, states: Sequence[tuple[Votes, str]]) -> None:
        """No error; each answer is that of one of `states` as a whole, and none of an earlier one comes after a later one's."""
        assert self.errors == []
        expected = [answers(self.batch, votes, average)["probabilities"] for votes, average in states]
        for mine in self.answers:
            at = 0
            for answer in mine:
                found = [index for index, state in enumerate(expected) if np.abs(state - answer).max() < 1e-5]
                assert found, "an answer of no state"
                assert max(found) >= at, "an old state after a new one"
                at = max(at, min(index for index in found if index >= at))
            assert at == len(expected) - 1, "the last state was never seen"


@contextmanager
def calling(url: str, name: str = "ensemble", count: int = 2) -> Iterator[Calling]:
    """Calls all the while that the block takes, and once more after it."""
    made = Calling(url, name, count)
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


def wait_for_more(made: Calling, deadline_s: float = 20.0) -> None:
    """Until each caller has got two answers more, of which the second was asked for after now."""
    pause = threading.Event()
    wanted = [len(mine) + 2 for mine in made.answers]
    for _ in range(int(deadline_s / 0.01)):
        if made.errors or all(len(mine) >= count for mine, count in zip(made.answers, wanted, strict=True)):
            return
        pause.wait(0.01)
    raise AssertionError(f"no answer within {deadline_s} s")
