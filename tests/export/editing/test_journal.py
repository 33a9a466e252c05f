"""The journal of an edit in progress: round trips, and damage is rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from defensemble_export import HistoryError
from defensemble_export.editing.journal import EditJournal, read_journal
from defensemble_repository.names import PENDING_FILE
from tests.export.editing.test_history import make_edit

CONFIG = "ensemble/config.pbtxt"


def written(folder: Path) -> dict[str, Any]:
    note = EditJournal(
        folder, make_edit(1), ("here",), (), {CONFIG: b"\xff", "x": None}, {CONFIG: "0", "x": None}, ("average_0",), (), (), b"hand"
    )
    note.write()
    assert read_journal(folder) == note
    values: dict[str, Any] = json.loads((folder / PENDING_FILE).read_bytes())
    return values


def test_round_trip(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None
    values = written(tmp_path)
    keys = "schema", "edit", "group", "urls", "before", "after", "new_models", "loads", "released", "rejected", "new_versions"
    assert tuple(values) == keys
    assert values["before"] == {CONFIG: "/w==", "x": None}
    assert values["rejected"] == "aGFuZA=="


@pytest.mark.parametrize("key", ["schema", "edit", "group", "urls", "before", "after", "new_models", "loads", "released", "rejected"])
def test_every_key_is_required(tmp_path: Path, key: str) -> None:
    values = written(tmp_path)
    del values[key]
    (tmp_path / PENDING_FILE).write_text(json.dumps(values))
    with pytest.raises(HistoryError, match=rf"{PENDING_FILE} is damaged.*{key}"):
        read_journal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "defensemble.edit/1"),
        ("edit", 1),
        ("group", "here"),
        ("urls", [1]),
        ("before", []),
        ("before", {CONFIG: 1}),
        ("before", {"../x": None}),
        ("after", {CONFIG: 1}),
        ("after", {"/x": None}),
        ("new_models", ["../x"]),
        ("loads", ["/x"]),
        ("released", ["a/../../x"]),
        ("rejected", 1),
        ("new_versions", ["../x"]),
    ],
)
def test_rejects_values_of_other_types(tmp_path: Path, key: str, value: object) -> None:
    values = written(tmp_path)
    (tmp_path / PENDING_FILE).write_text(json.dumps({**values, key: value}))
    with pytest.raises(HistoryError, match=rf"{PENDING_FILE} is damaged"):
        read_journal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff"], ids=["empty", "list", "nested", "bytes"])
def test_rejects_anything_but_a_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PENDING_FILE).write_bytes(content)
    with pytest.raises(HistoryError, match=rf"{PENDING_FILE} is damaged"):
        read_journal(tmp_path)


def test_names_another_schema_version(tmp_path: Path) -> None:
    values = written(tmp_path)
    (tmp_path / PENDING_FILE).write_text(json.dumps({**values, "schema": "defensemble.pending-edit/2"}))
    with pytest.raises(HistoryError, match=r"defensemble\.pending-edit/2"):
        read_journal(tmp_path)
