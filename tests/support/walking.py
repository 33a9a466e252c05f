"""Shared parts of the tests of interrupted edits: real servers, numpy's answers, and the invariants to check afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import Client, ServiceError
from defensemble._transport.base import OutputRequest
from defensemble.ensembles import Ensembles, Replica
from defensemble_export import ExistsError, check_ensemble
from defensemble_export.editing import read_history
from defensemble_repository.view import RepositoryView
from defensemble_server import ServeOptions, Server, serve
from tests.support import tiny

SEEDS = {"alpha@1": 1, "alpha@2": 77, "beta@1": 2, "beta@2": 2, "gamma@1": 3}
IMAGES = tiny.images(2, seed=5)
ENSEMBLES = ("ensemble", "canary")
ROOT_FILES = ("history.jsonl", "pending-edit.json")
Content = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Members:
    """The members of an ensemble (MODEL@VERSION to weight) and its average."""

    weights: Mapping[str, float]
    average: str = "probabilities"

    def answers(self) -> dict[str, tiny.Array]:
        """Return the expected outputs for `IMAGES`, computed with numpy."""
        logits = np.stack([tiny.logits(SEEDS[name], IMAGES) for name in self.weights], axis=1)
        shares = np.array(list(self.weights.values()))[np.newaxis, :, np.newaxis] / sum(self.weights.values())
        members = tiny.softmax(logits)
        mixture = (shares * members).sum(axis=1)
        return {
            "probabilities": mixture if self.average == "probabilities" else tiny.softmax((shares * logits).sum(axis=1)),
            "member_probabilities": members,
        }


def answers_match(client: Client, ensemble: str, members: Members | None) -> bool:
    """Return whether a server answers as `members` would; for None, whether it has no such model."""
    try:
        outputs = [OutputRequest("probabilities"), OutputRequest("member_probabilities")]
        got = client.transport.infer(ensemble, {"images": IMAGES}, outputs, 10.0)
    except ServiceError:
        return members is None
    if members is None:
        return False
    return all(
        got[name].shape == wanted.shape and bool(np.abs(got[name] - wanted).max() < 1e-5) for name, wanted in members.answers().items()
    )


@dataclass(frozen=True)
class Edit:
    """An edit of `ensemble`: the method of `Ensembles` with its arguments, and the members before and after it."""

    verb: str
    arguments: Sequence[Any]
    before: Members | None
    after: Members | None
    named: Mapping[str, Any] = field(default_factory=dict)
    ensemble: str = "ensemble"
    by_hand: bool = False  # a hand edit: before the edit, the servers do not serve what is on disk


@dataclass(frozen=True)
class EditResult:
    """The result of an edit with an injected fault: the exit status of its process, its steps, and its messages."""

    status: int
    steps: Sequence[str]
    progress: Sequence[str]
    warnings: Sequence[str]
    error: str | None
    text: str = ""
    step: str = ""
    why: str = ""
    put_back: Sequence[str] = ()
    remarks: Sequence[str] = ()
    left_loaded: Mapping[str, str] = field(default_factory=dict)


class EditProcess:
    """The process that runs edits and injects faults (`cutting.py`)."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.cutting"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, stage: Stage, edit: Edit, at: int, **options: Any) -> EditResult:
        """Run an edit and inject a fault at its step `at`; `options` are those of a case."""
        case = {
            "verb": edit.verb,
            "arguments": list(edit.arguments),
            "named": dict(edit.named),
            "targets": [[str(folder), [[url, key]]] for folder, (url, key) in zip(stage.folders, stage.addresses, strict=True)],
            "at": at,
            "kinds": ["files", "network"],
            "fault": "kill",
            **options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that runs edits has ended"
        return EditResult(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


class Stage:
    """Repositories with a server each; `restore` resets them to their first state."""

    def __init__(self, folders: Sequence[Path], servers: Sequence[Server]) -> None:
        self.folders = list(folders)
        self.servers = list(servers)
        self.addresses = [(server.http_url, server.state.admin_key) for server in servers]
        self.clients = [Client(url, admin_key=key) for url, key in self.addresses]
        self.warnings: list[str] = []
        self.note()

    def note(self) -> None:
        """Make the current state the first state."""
        self.first: list[Content] = [models_of(folder) for folder in self.folders]
        self.root = [{name: (folder / name).read_bytes() for name in ROOT_FILES if (folder / name).exists()} for folder in self.folders]
        self.known = [history(folder) for folder in self.folders]
        self.loaded = [self.ready(index) for index in range(len(self.folders))]

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def ready(self, index: int) -> set[str]:
        """Return the models that a server has loaded, whether they are on disk or not."""
        return set(self.clients[index].transport.models(10.0))

    def wait_restarted(self, index: int, known: int) -> None:
        """Wait until the guard of a server has checked a new Triton, whose process id is no longer `known`."""
        deadline = time.monotonic() + 60
        while self.servers[index].triton_pid == known:
            assert time.monotonic() < deadline, self.servers[index].events()
            time.sleep(0.02)

    def ensembles(self) -> Ensembles:
        """Return a new editor of all repositories, whose warnings are recorded."""
        self.warnings = []
        replicas = [Replica(folder, (client,)) for folder, client in zip(self.folders, self.clients, strict=True)]
        return Ensembles.over(replicas, on_warning=self.warnings.append, idle_timeout_s=5.0)

    def tidy(self) -> None:
        """Start an edit that is refused; before that, it recovers interrupted edits and removes their leftovers."""
        with pytest.raises(ExistsError):
            self.ensembles().create("ensemble", ["alpha"])

    def restore(self) -> None:
        """Restore the first state: the files and the loaded models."""
        for folder, first, root, loaded, client in zip(self.folders, self.first, self.root, self.loaded, self.clients, strict=True):
            for name in ROOT_FILES:
                (folder / name).unlink(missing_ok=True)
            for name, content in root.items():
                (folder / name).write_bytes(content)
            now = models_of(folder)
            changed = {path for path, _ in set(now.items()) ^ set(first.items())}
            for path in sorted(changed - set(first), reverse=True):
                (folder / path).rmdir() if now[path] is None else (folder / path).unlink()
            for path in sorted(changed & set(first)):
                wanted = first[path]
                (folder / path).mkdir() if wanted is None else (folder / path).write_bytes(wanted)
            transport = client.transport
            ready = set(transport.models(10.0))
            touched = {path.partition("/")[0] for path in changed}
            for name in sorted(loaded, key=lambda name: name in ENSEMBLES):
                if name not in ready or name in touched:
                    transport.load_model(name, 30.0)
            for name in sorted(ready - loaded, key=lambda name: name not in ENSEMBLES):
                transport.unload_model(name, 30.0)


def models_of(folder: Path) -> dict[str, bytes | None]:
    """Return the content of a repository, without the files at its root."""
    return {path: content for path, content in tiny.content(folder).items() if "/" in path or content is None}


def disk_state(folder: Path, edit: Edit, old: Content, new: Content) -> str:
    """Return whether a repository has the old or the new state, compared byte for byte; all checks must pass.

    A refresh describes the copy in the member's configuration before the ensemble uses it.
    """
    path = f"{edit.ensemble}/config.pbtxt"
    now = models_of(folder)
    state = next((name for name, content in (("old", old), ("new", new)) if content.get(path) == now.get(path)), None)
    assert state is not None, f"{folder / path} is neither the old nor the new one"
    wanted = dict(old if state == "old" else new)
    if edit.verb == "refresh" and state == "old":
        member = f"{edit.arguments[0][0]}/config.pbtxt"
        wanted[member] = new[member] if now[member] == new[member] else old[member]
    assert {name: now.get(name) for name in wanted} == wanted, f"{folder} misses files of the {state} state"
    for name in RepositoryView(folder).models() if not (edit.by_hand and state == "old") else ():
        if RepositoryView(folder).config(name).platform == "ensemble":
            assert [str(finding) for finding in check_ensemble(RepositoryView(folder), name) if finding.is_error] == []
    return state


def leftovers(folder: Path) -> list[str]:
    """Return staging folders, temporary files and the journal of an edit."""
    siblings = [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}.")]
    inside = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
    return [*siblings, *inside, *(["pending-edit.json"] if (folder / "pending-edit.json").exists() else [])]


def history(folder: Path) -> list[str]:
    """Return the actions in a history, whose lines must all be complete."""
    return [edit.action for edit in read_history(folder)]


class FreshStarts:
    """Starts a new Triton on every different state that was left on disk."""

    def __init__(self) -> None:
        self._left: dict[tuple[tuple[str, bytes | None], ...], tuple[str, Members | None]] = {}

    def add(self, folder: Path, ensemble: str, members: Members | None) -> None:
        """Record the current state on disk, and the members that it must serve."""
        self._left.setdefault(tuple(models_of(folder).items()), (ensemble, members))

    def check(self, place: Path) -> int:
        """Start a Triton on each state; return the number of states."""
        for number, (content, (ensemble, members)) in enumerate(self._left.items()):
            folder = place / str(number) / "repository"
            for path, bytes_ in content:
                if bytes_ is None:
                    (folder / path).mkdir(parents=True, exist_ok=True)
                else:
                    (folder / path).write_bytes(bytes_)
            with serve(folder, QUIET) as server, Client(server.http_url) as client:
                assert dict(server.problems) == {}
                assert answers_match(client, ensemble, members)
        return len(self._left)


QUIET = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=0, restart=False)


@contextmanager
def stage_of(
    place: Path,
    prepare: Callable[[Path], None],
    *,
    replicas: int = 1,
    unload: Sequence[str] = (),
    late: Callable[[Path], None] | None = None,
    restart: bool = False,
) -> Iterator[Stage]:
    """Serve equal repositories that `prepare` writes; models of `unload` are unloaded, and `late` runs when the servers run."""
    with ExitStack() as stack:
        folders = [place / str(index) / "repository" for index in range(replicas)]
        servers = []
        for folder in folders:
            prepare(folder)
            servers.append(stack.enter_context(serve(folder, replace(QUIET, restart=restart))))
        stage = Stage(folders, servers)
        stack.callback(stage.close)
        for client, folder in zip(stage.clients, folders, strict=True):
            for model in unload:
                client.transport.unload_model(model, 10.0)
            if late is not None:
                late(folder)
        stage.note()
        yield stage


def run_completely(stage: Stage, edit_process: EditProcess, edit: Edit, **options: Any) -> tuple[EditResult, list[Content], list[set[str]]]:
    """Run an edit without a fault and reset the stage; return its result, and the new content and loaded models."""
    complete = edit_process.run(stage, edit, 0, **{"fault": "count", **options})
    assert (complete.status, complete.error) == (0, None), complete.text
    new: list[Content] = [models_of(folder) for folder in stage.folders]
    loaded = [stage.ready(index) for index in range(len(stage.folders))]
    assert all(answers_match(client, edit.ensemble, edit.after) for client in stage.clients)
    stage.restore()
    assert all(answers_match(client, edit.ensemble, edit.before) for client in stage.clients)
    return complete, new, loaded
