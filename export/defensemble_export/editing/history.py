"""The history of a repository's ensembles: every edit that was applied, with the state before and after it, in one file at the root."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import EnsembleError, RepositoryError
from defensemble_repository.filesystem.atomic_write import os_errors_about, remove_temporaries, shared_mode, sync, write_atomic
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import CONFIG_FILE, HISTORY_FILE, LABELS_FILE, check_name
from defensemble_repository.reader import ensemble_from_configs, parameter
from defensemble_repository.records import checked_schema, parse_json, record_from_values
from defensemble_repository.view import RepositoryView

from ..errors import HistoryError

SCHEMA = "defensemble.edit/1"
ACTIONS = ("create", "add", "remove", "weight", "average", "apply", "reload", "rollback", "delete")
_ID = re.compile("[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@dataclass(frozen=True)
class Snapshot:
    """An ensemble as it lay on disk.

    ``config`` and ``labels`` are the whole texts of its ``config.pbtxt`` and ``labels.txt`` (None where there is none). ``averaging`` maps
    its averaging models to the texts of their configurations, from which they can be generated again. ``digests`` maps "config.pbtxt" to
    the SHA-256 of its bytes, and "MODEL@VERSION" of each vote to what the member's configuration says of its file, where it says it.
    Bytes that are no UTF-8 are kept in the texts as surrogates: ``files`` gives them back.

    Raises:
        EnsembleError: an averaging model's name is none, such as a path.
    """

    config: str
    labels: str | None
    votes: Ensemble
    num_classes: int
    averaging: Mapping[str, str]
    digests: Mapping[str, str]

    def __post_init__(self) -> None:
        for model in self.averaging:
            check_name(model, generated=True)

    @property
    def files(self) -> dict[str, bytes]:
        """Its files as they were, byte for byte (path relative to the repository), the ensemble's configuration last."""
        texts = {f"{model}/{CONFIG_FILE}": text for model, text in self.averaging.items()}
        if self.labels is not None:
            texts[f"{self.votes.name}/{LABELS_FILE}"] = self.labels
        texts[f"{self.votes.name}/{CONFIG_FILE}"] = self.config
        return {path: text.encode(errors="surrogateescape") for path, text in texts.items()}


@dataclass(frozen=True)
class Edit:
    """An edit of one ensemble that was applied.

    ``id`` is 12 random hexadecimal digits, ``time`` ISO 8601 in UTC to the second (``now_text``), ``who`` USER@HOST, ``action`` one of
    ``ACTIONS``, ``changes`` what changed, in words, and ``undoes`` the ids of the edits that a rollback undid. ``before`` and ``after`` are
    None where the ensemble did not exist.

    Raises:
        HistoryError: one of them is not of that form.
        EnsembleError: ``ensemble`` is no name.
    """

    id: str
    time: str
    who: str
    ensemble: str
    action: str
    message: str | None
    changes: tuple[str, ...]
    undoes: tuple[str, ...]
    before: Snapshot | None
    after: Snapshot | None

    def __post_init__(self) -> None:
        check_name(self.ensemble)
        for name, value, pattern, expected in (
            ("id", self.id, _ID, "12 hexadecimal digits"),
            ("time", self.time, _TIME, "a time in UTC, such as 2026-01-31T12:00:00+00:00"),
            ("action", self.action, re.compile("|".join(ACTIONS)), f"one of {', '.join(ACTIONS)}"),
        ):
            if not pattern.fullmatch(value):
                raise HistoryError(f"{name} of an edit must be {expected}, got {value!r}")
        for snapshot in (self.before, self.after):
            if snapshot is not None and snapshot.votes.name != self.ensemble:
                raise HistoryError(f"an edit of '{self.ensemble}' cannot hold the state of '{snapshot.votes.name}'")


def now_text() -> str:
    """The time, as an edit carries it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def new_id() -> str:
    """An id for an edit."""
    return secrets.token_hex(6)


def this_user() -> str:
    """Who edits: USER@HOST; the user's number where the machine knows no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container that runs under a number without an entry; OSError from Python 3.13 on
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"


def read_snapshot(files: RepositoryView, name: str) -> Snapshot:
    """The ensemble ``name`` as ``files`` have it.

    Raises:
        ConfigError, EnsembleError: it cannot be read, or is not one that this package wrote.
        OSError: a file cannot be read.
    """
    config = files.config(name)
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    known = {model: files.config(model) for model in dict.fromkeys(steps) if files.has(model)}
    votes = ensemble_from_configs(name, {**known, name: config})
    dims = [list(tensor.dims) for tensor in config.output if tensor.name == "probabilities"]
    if [len(sizes) for sizes in dims] != [1] or dims[0][0] < 1:
        raise EnsembleError(
            f"{files.repository / name / CONFIG_FILE} gives probabilities with the dims {dims}, expected the number of classes "
            "alone, once: mend that output"
        )
    content = files.content(f"{name}/{CONFIG_FILE}") or b""
    averaging = {model: text for model in steps[len(votes.members) :] if (text := _text(files, f"{model}/{CONFIG_FILE}")) is not None}
    told = {
        f"{vote.model}@{vote.version}": digest
        for vote in votes.members
        if (digest := parameter(known.get(vote.model), f"sha256.{vote.version}")) is not None
    }
    return Snapshot(
        config=content.decode(errors="surrogateescape"),
        labels=_text(files, f"{name}/{LABELS_FILE}"),
        votes=votes,
        num_classes=dims[0][0],
        averaging=averaging,
        digests={CONFIG_FILE: hashlib.sha256(content).hexdigest(), **told},
    )


def read_history(repository: Path) -> list[Edit]:
    """All edits of all ensembles of ``repository``, oldest first; none where there is no history.

    Raises:
        HistoryError: with the line, where it is damaged or of another schema.
        OSError: it cannot be read.
    """
    path = repository / HISTORY_FILE
    lines = _content(path).split(b"\n")
    return [edit_from_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def check_history(repository: Path) -> None:
    """Find out before an edit whether it can be recorded.

    Raises:
        HistoryError: the history is no file.
        OSError: it cannot be read.
    """
    path = repository / HISTORY_FILE
    if path.is_symlink() and not path.exists():
        raise HistoryError(f"{path} is a link that leads nowhere: mend it, or take it away, which begins a new history")
    if path.exists():
        if not path.is_file():
            raise HistoryError(f"{path} is no file, and the history of edits is kept there: move it away")
        with path.open("rb"):
            pass


def append_edit(repository: Path, edit: Edit) -> None:
    """Add an edit to the end of the history, durably; one that is there already is not written twice.

    What is there stays byte for byte, and is not read but for the edit's id: ``read_history`` tells of damage, before an edit. Hold
    ``locked`` meanwhile.

    Raises:
        HistoryError: a line that holds the edit's id is damaged.
        OSError: the history cannot be read or written; it may hold the edit, or not.
    """
    path = repository / HISTORY_FILE
    known = _content(path)
    lines = enumerate(known.split(b"\n"), 1) if edit.id.encode() in known else ()
    if any(edit_from_line(line, f"{path}:{number}").id == edit.id for number, line in lines if edit.id.encode() in line):
        return
    end = b"" if not known or known.endswith(b"\n") else b"\n"
    # One that is a link stays one.
    target = path.resolve() if path.is_symlink() else path
    write_atomic(target, known + end + line_from_edit(edit) + b"\n", mode=shared_mode(target))
    remove_temporaries(target)


def withdraw_edit(repository: Path, edit: Edit) -> None:
    """Take an edit that was just added out of the history again, where it is its last; hold ``locked`` meanwhile.

    Raises:
        HistoryError: the last line is damaged.
        OSError: the history cannot be read or written; it may hold the edit, or not.
    """
    path = repository / HISTORY_FILE
    lines = _content(path).splitlines(keepends=True)
    if not lines or edit.id.encode() not in lines[-1] or edit_from_line(lines[-1], f"{path}:{len(lines)}").id != edit.id:
        return
    target = path.resolve() if path.is_symlink() else path
    if len(lines) > 1:
        write_atomic(target, b"".join(lines[:-1]), mode=shared_mode(target))
    else:
        with os_errors_about(target):
            target.unlink()
            sync([target.parent])


def line_from_edit(edit: Edit) -> bytes:
    """An edit as the history holds it: JSON on one line, without the line's end."""
    states = {"before": edit.before and _State.of(edit.before), "after": edit.after and _State.of(edit.after)}
    values = {one.name: getattr(edit, one.name) for one in fields(edit)}  # in this order, whatever the order that it was read in
    return json.dumps({"schema": SCHEMA, **values, **msgspec.to_builtins(states)}).encode()


def edit_from_line(line: bytes, where: str) -> Edit:
    """Read back what ``line_from_edit`` wrote; ``where`` names it in the HistoryError of a damaged line or another schema."""
    try:
        values = checked_schema(parse_json(line.decode("utf-8-sig")), SCHEMA)
        states = record_from_values(values, _States)
        before, after = (state and state.snapshot(states.ensemble) for state in (states.before, states.after))
        return record_from_values({"message": None, **values, "before": before, "after": after}, Edit)
    except (RepositoryError, ValueError) as error:
        raise HistoryError(
            f"{where}: the history is damaged: {error}. Take that line out, or move the file away, which begins a new history: nothing "
            "that serves depends on it, but edits before can then not be rolled back"
        ) from error


def undoable_edits(history: Sequence[Edit], ensemble: str) -> list[Edit]:
    """The edits of ``ensemble`` that a rollback may undo, oldest first, the one that is undone first last.

    They are a stack: a rollback takes those off that it undid, and is itself none of them, so that two rollbacks in a row go back two
    edits; an edit after a rollback is put on top of what the rollback left.
    """
    stack: dict[str, Edit] = {}
    for edit in history:
        if edit.ensemble != ensemble:
            continue
        if edit.action == "rollback":
            for undone in edit.undoes:
                stack.pop(undone, None)
        else:
            stack[edit.id] = edit
    return list(stack.values())


def _text(files: RepositoryView, path: str) -> str | None:
    content = files.content(path)
    return None if content is None else content.decode(errors="surrogateescape")


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return b""


class _Member(msgspec.Struct):
    model: str
    version: int
    weight: int | float


class _State(msgspec.Struct):
    """A snapshot as a line holds it."""

    average: str
    members: list[_Member]
    num_classes: int
    config: str
    labels: str | None
    averaging: dict[str, str]
    digests: dict[str, str]

    @classmethod
    def of(cls, snapshot: Snapshot) -> _State:
        votes = snapshot.votes
        members = [_Member(vote.model, vote.version, vote.weight) for vote in votes.members]
        texts = dict(snapshot.averaging), dict(snapshot.digests)
        return cls(votes.average, members, snapshot.num_classes, snapshot.config, snapshot.labels, *texts)

    def snapshot(self, ensemble: str) -> Snapshot:
        members = tuple(Member(member.model, member.version, member.weight) for member in self.members)
        votes = Ensemble(ensemble, members, self.average)
        return Snapshot(self.config, self.labels, votes, self.num_classes, self.averaging, self.digests)


class _States(msgspec.Struct):
    ensemble: str
    before: _State | None
    after: _State | None
