"""The history of edits: written whole or not at all, read back exactly, damage told with its line; and what a rollback may undo."""

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
    new_id,
    now_text,
    read_history,
    read_snapshot,
    this_user,
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


def edit(number: int = 0, **other: Any) -> Edit:
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


def line_of(one: Edit, folder: Path) -> dict[str, Any]:
    """The values of an edit as a line holds them."""
    folder.mkdir(exist_ok=True)
    append_edit(folder, one)
    content = (folder / HISTORY_FILE).read_bytes()
    shutil.rmtree(folder)
    values: dict[str, Any] = json.loads(content)
    return values


_TEXTS = st.text(max_size=20)
_BY_NAME = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.\-]{0,9}", fullmatch=True), st.text(max_size=20), max_size=3)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    votes = draw(ensembles())
    # Bytes that are no UTF-8 among them.
    texts = st.one_of(_TEXTS, st.binary(max_size=9).map(lambda content: content.decode(errors="surrogateescape")))
    snapshots = st.none() | st.builds(
        Snapshot,
        config=texts,
        labels=st.none() | texts,
        votes=st.just(votes),
        num_classes=st.integers(1, 1000),
        averaging=_BY_NAME,
        digests=_BY_NAME,
    )
    return edit(
        draw(st.integers(0, 16**12 - 1)),
        who=draw(_TEXTS),
        ensemble=votes.name,
        action=draw(st.sampled_from(["create", "apply", "rollback"])),
        message=draw(st.none() | _TEXTS),
        changes=tuple(draw(st.lists(_TEXTS, max_size=3))),
        undoes=tuple(draw(st.lists(st.from_regex("[0-9a-f]{12}", fullmatch=True), max_size=3))),
        before=draw(snapshots),
        after=draw(snapshots),
    )


@given(st.lists(edits(), max_size=4, unique_by=lambda one: one.id))
def test_what_is_written_reads_back_the_same(tmp_path: Path, written: list[Edit]) -> None:
    (tmp_path / HISTORY_FILE).unlink(missing_ok=True)
    for number, one in enumerate(written, 1):
        append_edit(tmp_path, one)
        assert read_history(tmp_path) == written[:number]
    content = (tmp_path / HISTORY_FILE).read_bytes() if written else b""
    assert len(content.splitlines()) == len(written)
    for line in content.splitlines():
        assert json.loads(line)["schema"] == "defensemble.edit/1"


def test_where_there_is_no_history_there_are_no_edits(tmp_path: Path) -> None:
    assert read_history(tmp_path) == read_history(tmp_path / "none") == []
    (tmp_path / HISTORY_FILE).write_bytes(b"")
    assert read_history(tmp_path) == []
    (tmp_path / HISTORY_FILE).write_bytes(b"\n \n")
    assert read_history(tmp_path) == []


def test_an_edit_is_not_written_twice_and_what_is_there_stays_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / HISTORY_FILE
    append_edit(tmp_path, edit(1))
    values = json.loads(path.read_bytes())
    # A later version's key, other spacing, a line end of another system, no end at all.
    old = (
        b"\xef\xbb\xbf"
        + json.dumps({"later": [1], **values}, separators=(",", ":")).encode()
        + b"\r\n"
        + json.dumps({**values, "id": "f" * 12}).encode()
    )
    path.write_bytes(old)
    append_edit(tmp_path, edit(1))
    assert path.read_bytes() == old
    # Its id in another's line is not it.
    append_edit(tmp_path, edit(2, undoes=("0" * 11 + "3",), action="rollback"))
    append_edit(tmp_path, edit(3))
    append_edit(tmp_path, edit(3))
    content = path.read_bytes()
    assert content.startswith(old + b"\n")
    assert content.endswith(b"\n")
    assert [one.id for one in read_history(tmp_path)] == [f"{1:012x}", "f" * 12, f"{2:012x}", f"{3:012x}"]


@pytest.mark.parametrize(
    ("line", "told"),
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
def test_a_line_that_is_no_edit_is_told_with_its_number(tmp_path: Path, line: bytes, told: str) -> None:
    append_edit(tmp_path, edit(1))
    path = tmp_path / HISTORY_FILE
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n" + path.read_bytes())
    with raises(HistoryError, told) as caught:
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
def test_a_value_that_no_edit_has_is_told(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    values = line_of(edit(7), tmp_path / "one")
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values) + "\n")
    with raises(HistoryError, f"{HISTORY_FILE}:1:"):
        read_history(tmp_path)


@pytest.mark.parametrize("place", [("time",), ("before",), ("undoes",), ("after", "labels"), ("after", "digests"), ("after", "members")])
def test_a_key_that_is_missing_is_told(tmp_path: Path, place: tuple[str, ...]) -> None:
    values = line_of(edit(7), tmp_path / "one")
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values) + "\n")
    with pytest.raises(HistoryError, match=f"`{place[-1]}`"):
        read_history(tmp_path)


def test_a_line_keeps_its_bytes_when_it_is_read_and_written_again() -> None:
    votes = Ensemble("ensemble", (Member("a", 2, 3), Member("b", 1, 0.5)), "logits")
    state = Snapshot("\udcff", None, votes, 10, {"average_0": "x"}, {"a@2": "y"})
    line = line_from_edit(edit(7, before=state, after=None))
    assert line == (
        b'{"schema": "defensemble.edit/1", "id": "000000000007", "time": "2026-01-31T12:00:00+00:00", "who": "user@host", '
        b'"ensemble": "ensemble", "action": "weight", "message": null, "changes": ["weight of alpha@1: 1 -> 2"], "undoes": [], '
        b'"before": {"average": "logits", "members": [{"model": "a", "version": 2, "weight": 3}, {"model": "b", "version": 1, '
        b'"weight": 0.5}], "num_classes": 10, "config": "\\udcff", "labels": null, "averaging": {"average_0": "x"}, '
        b'"digests": {"a@2": "y"}}, "after": null}'
    )
    assert line_from_edit(edit_from_line(line, "here")) == line


def test_a_message_may_be_left_out_by_hand(tmp_path: Path) -> None:
    values = line_of(edit(7), tmp_path / "one")
    del values["message"]
    (tmp_path / HISTORY_FILE).write_text(json.dumps(values))
    assert read_history(tmp_path) == [edit(7)]


@pytest.mark.parametrize("other", [{"id": "A" * 12}, {"time": "2026"}, {"action": "addition"}, {"ensemble": "other"}])
def test_an_edit_that_could_not_be_read_again_is_not_made(other: dict[str, str]) -> None:
    with pytest.raises(HistoryError, match=next(iter(other)) if "ensemble" not in other else "'ensemble'"):
        edit(1, **other)


def test_what_the_caller_gives_to_an_edit_has_its_form() -> None:
    assert re.fullmatch("[0-9a-f]{12}", new_id())
    assert len({new_id() for _ in range(100)}) == 100
    made = edit(1, id=new_id(), time=now_text(), who=this_user())
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(made.time)).total_seconds()) < 60
    assert re.fullmatch(r".+@.+", made.who)


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert this_user().startswith(f"{os.geteuid()}@")


# --- killed, refused


def test_a_kill_during_an_append_leaves_the_old_history_or_the_new(tmp_path: Path) -> None:
    old = tmp_path / "old" / "repository"
    old.mkdir(parents=True)
    append_edit(old, edit(1))
    (tmp_path / "edit").write_bytes(pickle.dumps(edit(2)))
    pickled = str(tmp_path / "edit")
    prepare = f"import pickle; from defensemble_export.editing import append_edit; one = pickle.loads(Path({pickled!r}).read_bytes())"
    statuses = killed_at_each_rename(old, tmp_path, prepare=prepare, act="append_edit(repository, one)")
    assert statuses == [-signal.SIGKILL, 0]
    killed, whole = tmp_path / "1" / "repository", tmp_path / "2" / "repository"
    assert read_history(killed) == [edit(1)]
    assert read_history(whole) == [edit(1), edit(2)]
    # The next one goes on from there, and takes away what the killed one had written aside.
    assert len(os.listdir(killed)) == 2
    (killed / ".history.jsonl.mine").write_bytes(b"")
    append_edit(killed, edit(2))
    assert sorted(os.listdir(killed)) == [".history.jsonl.mine", HISTORY_FILE]
    assert (killed / HISTORY_FILE).read_bytes() == (whole / HISTORY_FILE).read_bytes()


def test_a_history_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_edit(tmp_path, edit(1))
    before = tiny.content(tmp_path)

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device", "aside")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / HISTORY_FILE}'"):
        append_edit(tmp_path, edit(2))
    assert tiny.content(tmp_path) == before


def test_an_error_of_the_folder_s_flush_names_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_edit(tmp_path, edit(1))

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    for change, one in ((append_edit, edit(2)), (withdraw_edit, edit(2)), (withdraw_edit, edit(1))):
        with pytest.raises(OSError, match="Input/output error") as caught:
            change(tmp_path, one)
        assert caught.value.filename == str(tmp_path / HISTORY_FILE)


def test_a_history_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        read_history(tmp_path)
    with pytest.raises(IsADirectoryError):
        append_edit(tmp_path, edit(1))
    if os.geteuid() == 0:
        return
    (tmp_path / HISTORY_FILE).rmdir()
    append_edit(tmp_path, edit(1))
    (tmp_path / HISTORY_FILE).chmod(0)
    with pytest.raises(PermissionError):
        read_history(tmp_path)
    with pytest.raises(PermissionError):
        append_edit(tmp_path, edit(2))


def test_a_history_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / HISTORY_FILE).symlink_to(tmp_path / "elsewhere.jsonl")
    append_edit(tmp_path / "repository", edit(1))
    assert (tmp_path / "repository" / HISTORY_FILE).is_symlink()
    assert read_history(tmp_path / "repository") == [edit(1)]
    assert os.listdir(tmp_path / "repository") == [HISTORY_FILE]


# --- snapshots


def test_a_snapshot_holds_the_ensemble_as_it_lies_on_disk(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository", weight={"beta": 3.0})
    path = repository / "ensemble/config.pbtxt"
    by_hand = b"# \xe9dited by hand\r\n" + path.read_bytes()
    path.write_bytes(by_hand)
    found = read_snapshot(RepositoryView(repository), "ensemble")
    assert found.votes == Ensemble("ensemble", (Member("alpha"), Member("beta", 1, 3.0)))
    assert found.num_classes == 3
    assert found.labels == "circle\nsquare\ntriangle\n"
    assert [name.partition("_")[0] for name in found.averaging] == ["average"]
    on_disk = {f"{name}@1": hashlib.sha256((repository / name / "1/model.onnx").read_bytes()).hexdigest() for name in ("alpha", "beta")}
    assert found.digests == {"config.pbtxt": hashlib.sha256(by_hand).hexdigest(), **on_disk}
    assert found.files == {name: (repository / name).read_bytes() for name in found.files}
    assert list(found.files)[-1] == "ensemble/config.pbtxt"
    assert len(found.files) == 3
    append_edit(repository, edit(1, after=found))
    assert read_history(repository)[0].after == found


def test_a_snapshot_knows_no_more_than_the_disk(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    (repository / "ensemble/labels.txt").unlink()
    shutil.rmtree(repository / "beta")
    planned = {"ensemble/config.pbtxt": b"# planned\n" + (repository / "ensemble/config.pbtxt").read_bytes()}
    found = read_snapshot(RepositoryView(repository, planned), "ensemble")
    assert found.labels is None
    assert found.config.startswith("# planned\n")
    assert set(found.digests) == {"config.pbtxt", "alpha@1"}


def test_what_is_no_ensemble_of_ours_has_no_snapshot(tmp_path: Path) -> None:
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
