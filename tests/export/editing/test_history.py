"""The history of edits: written completely or not at all, read back exactly, and damage reported with its line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from defensemble_export import EnsembleError, ExportError, HistoryError
from defensemble_export.editing import (
    Edit,
    Snapshot,
    append_edit,
    current_user,
    new_edit_id,
    read_history,
    read_snapshot,
    utc_now,
    withdraw_edit,
)
from defensemble_export.editing.history import edit_from_line, line_from_edit
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError
from defensemble_repository.names import HISTORY_FILE
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.ensembles import ensembles
from tests.support.facts import assert_facts, raises
from tests.support.killing import killed_at_each_rename

TIME = "2026-01-31T12:00:00+00:00"
VOTES = Ensemble("ensemble", (Member("alpha"), Member("beta", 2, 0.5)))
SNAPSHOT = Snapshot("name: 'x'\r\n", "a\nb\n", VOTES, 2, {"average_0": "text"}, {"config.pbtxt": "0" * 64})


def make_edit(number: int = 0, **other: Any) -> Edit:
    values = {
        "id": f"{number:012x}",
        "time": TIME,
        "who": "user@host",
        "ensemble": "ensemble",
        "action": "weight",
        "message": None,
        "changes": ("weight of alpha@1: 1 -> 2",),
        "undoes": (),
        "before": SNAPSHOT,
        "after": SNAPSHOT,
    }
    return Edit(**{**values, **other})


def line_of(edit: Edit, folder: Path) -> dict[str, Any]:
    """Return the values of an edit as stored in a line."""
    folder.mkdir(exist_ok=True)
    append_edit(folder, edit)
    content = (folder / HISTORY_FILE).read_bytes()
    shutil.rmtree(folder)
    values: dict[str, Any] = json.loads(content)
    return values


_TEXTS = st.text(max_size=20)
_BY_NAME = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.\-]{0,9}", fullmatch=True), st.text(max_size=20), max_size=3)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    ensemble = draw(ensembles())
    # Includes bytes that are not UTF-8.
    texts = st.one_of(_TEXTS, st.binary(max_size=9).map(lambda content: content.decode(errors="surrogateescape")))
    snapshots = st.none() | st.builds(
        Snapshot,
        config=texts,
        labels=st.none() | texts,
        ensemble=st.just(ensemble),
        num_classes=st.integers(1, 1000),
        averaging=_BY_NAME,
        digests=_BY_NAME,
    )
    return make_edit(
        draw(st.integers(0, 16**12 - 1)),
        who=draw(_TEXTS),
        ensemble=ensemble.name,
        action=draw(st.sampled_from(["create", "apply", "rollback"])),
        message=draw(st.none() | _TEXTS),
        changes=tuple(draw(st.lists(_TEXTS, max_size=3))),
        undoes=tuple(draw(st.lists(st.from_regex("[0-9a-f]{12}", fullmatch=True), max_size=3))),
        before=draw(snapshots),
        after=draw(snapshots),
    )


@given(st.lists(edits(), max_size=4, unique_by=lambda edit: edit.id))
def test_round_trip(tmp_path: Path, written: list[Edit]) -> None:
    (tmp_path / HISTORY_FILE).unlink(missing_ok=True)
    for number, edit in enumerate(written, 1):
        append_edit(tmp_path, edit)
        assert read_history(tmp_path) == written[:number]
    content = (tmp_path / HISTORY_FILE).read_bytes() if written else b""
    assert len(content.splitlines()) == len(written)
    for line in content.splitlines():
        assert json.loads(line)["schema"] == "defensemble.edit/1"


def test_a_missing_history_has_no_edits(tmp_path: Path) -> None:
    assert read_history(tmp_path) == read_history(tmp_path / "none") == []
    (tmp_path / HISTORY_FILE).write_bytes(b"")
    assert read_history(tmp_path) == []
    (tmp_path / HISTORY_FILE).write_bytes(b"\n \n")
    assert read_history(tmp_path) == []


def test_an_edit_is_appended_only_once(tmp_path: Path) -> None:
    path = tmp_path / HISTORY_FILE
    append_edit(tmp_path, make_edit(1))
    values = json.loads(path.read_bytes())
    # A later version's key, other spacing, a line end of another system, no end at all.
    old = (
        b"\xef\xbb\xbf"
        + json.dumps({"later": [1], **values}, separators=(",", ":")).encode()
        + b"\r\n"
        + json.dumps({**values, "id": "f" * 12}).encode()
    )
    path.write_bytes(old)
    append_edit(tmp_path, make_edit(1))
    assert path.read_bytes() == old
    # Its id in another's line is not it.
    append_edit(tmp_path, make_edit(2, undoes=("0" * 11 + "3",), action="rollback"))
    append_edit(tmp_path, make_edit(3))
    append_edit(tmp_path, make_edit(3))
    content = path.read_bytes()
    assert content.startswith(old + b"\n")
    assert content.endswith(b"\n")
    assert [edit.id for edit in read_history(tmp_path)] == [f"{1:012x}", "f" * 12, f"{2:012x}", f"{3:012x}"]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "can't decode byte"),
        (b"null", "JSON object"),
        (b"[" * 100_000, "nested"),
        (b'{"schema": ' + b"9" * 5000 + b"}", ":3:"),
        (b"{}", "schema | None | 'defensemble.edit/1'"),
        (b'{"schema": "defensemble.edit/2"}', "schema | 'defensemble.edit/2'"),
        (b'{"schema": "defensemble.edit/1"}', "ensemble"),
    ],
)
def test_reports_the_number_of_a_damaged_line(tmp_path: Path, line: bytes, facts: str) -> None:
    append_edit(tmp_path, make_edit(1))
    path = tmp_path / HISTORY_FILE
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n" + path.read_bytes())
    with raises(HistoryError, facts) as caught:
        read_history(tmp_path)
    assert_facts(str(caught.value), f"{path}:3:")
    assert "new history" in str(caught.value)
    assert isinstance(caught.value, ExportError)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("id",), "short"),
        (("id",), "g" * 12),
        (("id",), None),
        (("time",), "yesterday"),
        (("time",), "2026-01-31T12:00:00"),
        (("who",), 1),
        (("ensemble",), "../x"),
        (("ensemble",), "alpha"),
        (("action",), "explode"),
        (("message",), 1),
        (("changes",), "text"),
        (("changes",), [1]),
        (("undoes",), {}),
        (("undoes",), [None]),
        (("before",), []),
        (("before", "config"), None),
        (("before", "labels"), 1),
        (("before", "average"), "mean"),
        (("before", "members"), {}),
        (("before", "members"), []),
        (("before", "members"), ["alpha"]),
        (("before", "members"), [{"model": "a/b", "version": 1, "weight": 1}]),
        (("before", "members"), [{"model": "a", "version": True, "weight": 1}]),
        (("before", "members"), [{"model": "a", "version": 1, "weight": "1"}]),
        (("before", "members"), [{"model": "a", "version": 1, "weight": float("nan")}]),
        (("before", "members"), [{"model": "a", "version": 1}]),
        (("after", "num_classes"), 2.5),
        (("after", "averaging"), {"../../x": "text"}),
        (("after", "averaging"), {"average_0": 1}),
        (("after", "digests"), []),
        (("after", "digests"), {"config.pbtxt": None}),
    ],
)  # fmt: skip
def test_reports_an_invalid_value(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    values = line_of(make_edit(7), tmp_path / "one")
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values) + "\n")
    with raises(HistoryError, f"{HISTORY_FILE}:1:"):
        read_history(tmp_path)


@pytest.mark.parametrize("place", [("time",), ("before",), ("undoes",), ("after", "labels"), ("after", "digests"), ("after", "members")])
def test_reports_a_missing_key(tmp_path: Path, place: tuple[str, ...]) -> None:
    values = line_of(make_edit(7), tmp_path / "one")
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values) + "\n")
    with pytest.raises(HistoryError, match=f"`{place[-1]}`"):
        read_history(tmp_path)


def test_a_line_round_trips_byte_for_byte() -> None:
    ensemble = Ensemble("ensemble", (Member("a", 2, 3), Member("b", 1, 0.5)), "logits")
    state = Snapshot("\udcff", None, ensemble, 10, {"average_0": "x"}, {"a@2": "y"})
    line = line_from_edit(make_edit(7, before=state, after=None))
    assert line == (
        b'{"schema": "defensemble.edit/1", "id": "000000000007", "time": "2026-01-31T12:00:00+00:00", "who": "user@host", '
        b'"ensemble": "ensemble", "action": "weight", "message": null, "changes": ["weight of alpha@1: 1 -> 2"], "undoes": [], '
        b'"before": {"average": "logits", "members": [{"model": "a", "version": 2, "weight": 3}, {"model": "b", "version": 1, '
        b'"weight": 0.5}], "num_classes": 10, "config": "\\udcff", "labels": null, "averaging": {"average_0": "x"}, '
        b'"digests": {"a@2": "y"}}, "after": null}'
    )
    assert line_from_edit(edit_from_line(line, "here")) == line


def test_the_message_is_optional(tmp_path: Path) -> None:
    values = line_of(make_edit(7), tmp_path / "one")
    del values["message"]
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values))
    assert read_history(tmp_path) == [make_edit(7)]


@pytest.mark.parametrize("other", [{"id": "A" * 12}, {"time": "2026"}, {"action": "addition"}, {"ensemble": "other"}])
def test_invalid_edits_cannot_be_created(other: dict[str, str]) -> None:
    with pytest.raises(HistoryError, match=next(iter(other)) if "ensemble" not in other else "'ensemble'"):
        make_edit(1, **other)


def test_edits_validate_their_values() -> None:
    assert re.fullmatch("[0-9a-f]{12}", new_edit_id())
    assert len({new_edit_id() for _ in range(100)}) == 100
    made = make_edit(1, id=new_edit_id(), time=utc_now(), who=current_user())
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(made.time)).total_seconds()) < 60
    assert re.fullmatch(r".+@.+", made.who)


def test_a_user_without_a_name_is_given_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert current_user().startswith(f"{os.geteuid()}@")


# --- killed, refused


def test_a_kill_during_an_append_leaves_the_old_or_the_new_history(tmp_path: Path) -> None:
    old = tmp_path / "old" / "repository"
    old.mkdir(parents=True)
    append_edit(old, make_edit(1))
    (tmp_path / "edit").write_bytes(pickle.dumps(make_edit(2)))
    pickled = str(tmp_path / "edit")
    prepare = f"import pickle; from defensemble_export.editing import append_edit; one = pickle.loads(Path({pickled!r}).read_bytes())"
    statuses = killed_at_each_rename(old, tmp_path, prepare=prepare, act="append_edit(repository, one)")
    assert statuses == [-signal.SIGKILL, 0]
    killed, whole = tmp_path / "1" / "repository", tmp_path / "2" / "repository"
    assert read_history(killed) == [make_edit(1)]
    assert read_history(whole) == [make_edit(1), make_edit(2)]
    # The next append continues, and removes the temporary file of the killed one.
    assert len(os.listdir(killed)) == 2
    (killed / ".history.jsonl.mine").write_bytes(b"")
    append_edit(killed, make_edit(2))
    assert sorted(os.listdir(killed)) == [".history.jsonl.mine", HISTORY_FILE]
    assert (killed / HISTORY_FILE).read_bytes() == (whole / HISTORY_FILE).read_bytes()


def test_a_failed_append_leaves_the_history_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_edit(tmp_path, make_edit(1))
    before = tiny.content(tmp_path)

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device", "aside")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / HISTORY_FILE}'"):
        append_edit(tmp_path, make_edit(2))
    assert tiny.content(tmp_path) == before


def test_a_failed_folder_flush_names_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_edit(tmp_path, make_edit(1))

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    for change, edit in ((append_edit, make_edit(2)), (withdraw_edit, make_edit(2)), (withdraw_edit, make_edit(1))):
        with pytest.raises(OSError, match="Input/output error") as caught:
            change(tmp_path, edit)
        assert caught.value.filename == str(tmp_path / HISTORY_FILE)


def test_an_unreadable_history_is_an_error(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        read_history(tmp_path)
    with pytest.raises(IsADirectoryError):
        append_edit(tmp_path, make_edit(1))
    if os.geteuid() == 0:
        return
    (tmp_path / HISTORY_FILE).rmdir()
    append_edit(tmp_path, make_edit(1))
    (tmp_path / HISTORY_FILE).chmod(0)
    with pytest.raises(PermissionError):
        read_history(tmp_path)
    with pytest.raises(PermissionError):
        append_edit(tmp_path, make_edit(2))


def test_a_linked_history_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / HISTORY_FILE).symlink_to(tmp_path / "elsewhere.jsonl")
    append_edit(tmp_path / "repository", make_edit(1))
    assert (tmp_path / "repository" / HISTORY_FILE).is_symlink()
    assert read_history(tmp_path / "repository") == [make_edit(1)]
    assert os.listdir(tmp_path / "repository") == [HISTORY_FILE]


# --- snapshots


def test_a_snapshot_has_the_ensemble_on_disk(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository", weight={"beta": 3.0})
    path = repository / "ensemble/config.pbtxt"
    by_hand = b"# \xe9dited by hand\r\n" + path.read_bytes()
    path.write_bytes(by_hand)
    snapshot = read_snapshot(RepositoryView(repository), "ensemble")
    assert snapshot.ensemble == Ensemble("ensemble", (Member("alpha"), Member("beta", 1, 3.0)))
    assert snapshot.num_classes == 3
    assert snapshot.labels == "circle\nsquare\ntriangle\n"
    assert [name.partition("_")[0] for name in snapshot.averaging] == ["average"]
    on_disk = {f"{name}@1": hashlib.sha256((repository / name / "1/model.onnx").read_bytes()).hexdigest() for name in ("alpha", "beta")}
    assert snapshot.digests == {"config.pbtxt": hashlib.sha256(by_hand).hexdigest(), **on_disk}
    assert snapshot.files == {name: (repository / name).read_bytes() for name in snapshot.files}
    assert list(snapshot.files)[-1] == "ensemble/config.pbtxt"
    assert len(snapshot.files) == 3
    append_edit(repository, make_edit(1, after=snapshot))
    assert read_history(repository)[0].after == snapshot


def test_a_snapshot_has_only_what_is_on_disk(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    (repository / "ensemble/labels.txt").unlink()
    shutil.rmtree(repository / "beta")
    planned = {"ensemble/config.pbtxt": b"# planned\n" + (repository / "ensemble/config.pbtxt").read_bytes()}
    snapshot = read_snapshot(RepositoryView(repository, planned), "ensemble")
    assert snapshot.labels is None
    assert snapshot.config.startswith("# planned\n")
    assert set(snapshot.digests) == {"config.pbtxt", "alpha@1"}


def test_foreign_ensembles_have_no_snapshot(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    files = RepositoryView(repository)
    for name in ("none", "alpha"):
        with pytest.raises((ConfigError, EnsembleError)):
            read_snapshot(files, name)
    path = repository / "ensemble/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "ensemble")
    config.output[0].dims[:] = [3, 1]
    path.write_bytes(pbtxt_from_config(config))
    with raises(EnsembleError, "ensemble/config.pbtxt | probabilities | [[3, 1]]"):
        read_snapshot(files, "ensemble")
    path.write_text("nonsense {")
    with pytest.raises(ConfigError, match="configuration"):
        read_snapshot(files, "ensemble")


# --- what a rollback may undo
