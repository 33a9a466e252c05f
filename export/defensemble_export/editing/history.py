"""The history of a repository's ensembles: all edits with the states before and after them, in one file at the repository's root."""

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
ACTIONS = ("create", "add", "remove", "weight", "average", "apply", "reload", "refresh", "rollback", "delete")
_ID = re.compile("[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@dataclass(frozen=True)
class Snapshot:
    """The state of an ensemble on disk at one time.

    Attributes:
        config: The text of `config.pbtxt`. Bytes that are not UTF-8 are kept as surrogates in all texts; `files` restores them.
        labels: The text of `labels.txt`; None if there is no such file.
        ensemble: The members and the average.
        num_classes: The number of classes.
        averaging: The averaging models and the texts of their configurations, from which they can be generated again.
        digests: SHA-256 digests: of `"config.pbtxt"`, and of each `"MODEL@VERSION"` whose configuration states one.

    Raises:
        EnsembleError: The name of an averaging model is not valid, such as a path.

    Example:
        >>> read_snapshot(RepositoryView(Path("model_repository")), "ensemble").ensemble.members
    """

    config: str
    labels: str | None
    ensemble: Ensemble
    num_classes: int
    averaging: Mapping[str, str]
    digests: Mapping[str, str]

    def __post_init__(self) -> None:
        for model in self.averaging:
            check_name(model, generated=True)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of that time, byte for byte, by path relative to the repository; the ensemble's configuration is last."""
        texts = {f"{model}/{CONFIG_FILE}": text for model, text in self.averaging.items()}
        if self.labels is not None:
            texts[f"{self.ensemble.name}/{LABELS_FILE}"] = self.labels
        texts[f"{self.ensemble.name}/{CONFIG_FILE}"] = self.config
        return {path: text.encode(errors="surrogateescape") for path, text in texts.items()}


@dataclass(frozen=True)
class Edit:
    """An edit of one ensemble that was applied.

    Attributes:
        id: 12 random hexadecimal digits.
        time: ISO 8601 in UTC, to the second (`utc_now`).
        who: `USER@HOST`.
        ensemble: The ensemble's name.
        action: One of `ACTIONS`.
        message: The user's message, if any.
        changes: The changes in words.
        undoes: The ids of the edits that a rollback undid.
        before: The state before the edit; None if the ensemble did not exist, or its state was not known.
        after: The state after the edit; None if the ensemble was deleted.

    Raises:
        HistoryError: A value does not have the form stated above.
        EnsembleError: `ensemble` is not a valid name.

    Example:
        >>> [(edit.time, edit.action, edit.changes) for edit in read_history(Path("model_repository"))]
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
            if snapshot is not None and snapshot.ensemble.name != self.ensemble:
                raise HistoryError(f"an edit of '{self.ensemble}' cannot contain the state of '{snapshot.ensemble.name}'")


def utc_now() -> str:
    """Return the time in the form that edits use."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def new_edit_id() -> str:
    """Return a new id for an edit."""
    return secrets.token_hex(6)


def current_user() -> str:
    """Return USER@HOST, with the number of a user who has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no entry; OSError from Python 3.13 on
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"


def read_snapshot(files: RepositoryView, name: str) -> Snapshot:
    """Read the state of an ensemble.

    Args:
        files: The repository.
        name: The ensemble.

    Raises:
        ConfigError, EnsembleError: The ensemble cannot be read, or was not written by this package.
        OSError: A file cannot be read.
    """
    config = files.config(name)
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    known = {model: files.config(model) for model in dict.fromkeys(steps) if files.has(model)}
    ensemble = ensemble_from_configs(name, {**known, name: config})
    dims = [list(tensor.dims) for tensor in config.output if tensor.name == "probabilities"]
    if [len(sizes) for sizes in dims] != [1] or dims[0][0] < 1:
        raise EnsembleError(
            f"{files.repository / name / CONFIG_FILE}: the output probabilities has dims {dims}, expected one output with the number of "
            "classes only; correct that output"
        )
    content = files.content(f"{name}/{CONFIG_FILE}") or b""
    averaging = {model: text for model in steps[len(ensemble.members) :] if (text := _text(files, f"{model}/{CONFIG_FILE}")) is not None}
    member_digests = {
        f"{member.model}@{member.version}": digest
        for member in ensemble.members
        if (digest := parameter(known.get(member.model), f"sha256.{member.version}")) is not None
    }
    return Snapshot(
        config=content.decode(errors="surrogateescape"),
        labels=_text(files, f"{name}/{LABELS_FILE}"),
        ensemble=ensemble,
        num_classes=dims[0][0],
        averaging=averaging,
        digests={CONFIG_FILE: hashlib.sha256(content).hexdigest(), **member_digests},
    )


def read_history(repository: Path) -> list[Edit]:
    """Read all edits of all ensembles of `repository`, oldest first; return an empty list if there is no history.

    Raises:
        HistoryError: The history is damaged or has another schema. The message has the line number.
        OSError: The history cannot be read.

    Example:
        >>> for edit in read_history(Path("model_repository")):
        ...     print(edit.time, edit.action, edit.ensemble)
    """
    path = repository / HISTORY_FILE
    lines = _content(path).split(b"\n")
    return [edit_from_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def check_history(repository: Path) -> None:
    """Check before an edit that it can be recorded.

    Raises:
        HistoryError: The history is not a file.
        OSError: The history cannot be read.
    """
    path = repository / HISTORY_FILE
    if path.is_symlink() and not path.exists():
        raise HistoryError(f"{path} is a broken symbolic link; repair it, or remove it to start a new history")
    if path.exists():
        if not path.is_file():
            raise HistoryError(f"{path} is not a file, but the history of edits is stored there; move it away")
        with path.open("rb"):
            pass


def append_edit(repository: Path, edit: Edit) -> None:
    """Append an edit to the history, durably, unless the history contains it already. Hold `locked` meanwhile.

    Existing lines stay byte for byte and are only searched for the edit's id; `read_history` detects damage before an edit.

    Args:
        repository: The repository.
        edit: The edit.

    Raises:
        HistoryError: A line with the edit's id is damaged.
        OSError: The history cannot be read or written; it may or may not contain the edit.
    """
    path = repository / HISTORY_FILE
    content = _content(path)
    lines = enumerate(content.split(b"\n"), 1) if edit.id.encode() in content else ()
    if any(edit_from_line(line, f"{path}:{number}").id == edit.id for number, line in lines if edit.id.encode() in line):
        return
    newline = b"" if not content or content.endswith(b"\n") else b"\n"
    # A symbolic link stays one.
    target = path.resolve() if path.is_symlink() else path
    write_atomic(target, content + newline + line_from_edit(edit) + b"\n", mode=shared_mode(target))
    remove_temporaries(target)


def withdraw_edit(repository: Path, edit: Edit) -> None:
    """Remove an edit from the history if it is the last one. Hold `locked` meanwhile.

    Args:
        repository: The repository.
        edit: The edit.

    Raises:
        HistoryError: The last line is damaged.
        OSError: The history cannot be read or written; it may or may not contain the edit.
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
    """Return an edit as a line of the history: JSON, without the newline."""
    states = {"before": edit.before and _State.from_snapshot(edit.before), "after": edit.after and _State.from_snapshot(edit.after)}
    values = {field.name: getattr(edit, field.name) for field in fields(edit)}  # always in the same order
    return json.dumps({"schema": SCHEMA, **values, **msgspec.to_builtins(states)}).encode()


def edit_from_line(line: bytes, where: str) -> Edit:
    """Read an edit from a line that `line_from_edit` wrote.

    Args:
        line: The line.
        where: What error messages call it, such as its file and number.

    Raises:
        HistoryError: The line is damaged or has another schema.
    """
    try:
        values = checked_schema(parse_json(line.decode("utf-8-sig")), SCHEMA)
        states = record_from_values(values, _States)
        before, after = (state and state.snapshot(states.ensemble) for state in (states.before, states.after))
        return record_from_values({"message": None, **values, "before": before, "after": after}, Edit)
    except (RepositoryError, ValueError) as error:
        raise HistoryError(
            f"{where}: the history is damaged: {error}. Remove that line, or move the file away to start a new history. Servers do not use "
            "the history, but earlier edits can then no longer be rolled back"
        ) from error


def undoable_edits(history: Sequence[Edit], ensemble: str) -> list[Edit]:
    """Return the edits of an ensemble that a rollback can undo, oldest first; the last one is undone first.

    They form a stack. A rollback removes the edits that it undid and is not added itself, so two rollbacks in a row go back two edits.
    Edits after a rollback are added on top of what the rollback left.

    Args:
        history: All edits of the repository, oldest first.
        ensemble: The ensemble.
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
    """A snapshot as stored in a line of the history."""

    average: str
    members: list[_Member]
    num_classes: int
    config: str
    labels: str | None
    averaging: dict[str, str]
    digests: dict[str, str]

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> _State:
        ensemble = snapshot.ensemble
        members = [_Member(member.model, member.version, member.weight) for member in ensemble.members]
        texts = dict(snapshot.averaging), dict(snapshot.digests)
        return cls(ensemble.average, members, snapshot.num_classes, snapshot.config, snapshot.labels, *texts)

    def snapshot(self, name: str) -> Snapshot:
        members = tuple(Member(member.model, member.version, member.weight) for member in self.members)
        ensemble = Ensemble(name, members, self.average)
        return Snapshot(self.config, self.labels, ensemble, self.num_classes, self.averaging, self.digests)


class _States(msgspec.Struct):
    ensemble: str
    before: _State | None
    after: _State | None
