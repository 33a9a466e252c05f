"""JSON records: strict types, and errors with the key, the value and the expected type."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from defensemble_repository.records import checked_schema, parse_json, record_from_values


@dataclass(frozen=True)
class Part:
    name: str
    count: int

    def __post_init__(self) -> None:
        if self.count > 9:
            raise ValueError(f"count must be at most 9, got {self.count}")


@dataclass(frozen=True)
class Record:
    parts: tuple[Part, ...]
    share: float
    texts: dict[str, str | None]
    lists: dict[str, list[int]] = field(default_factory=dict)
    nested: dict[str, dict[str, Part]] = field(default_factory=dict)


VALUES: dict[str, Any] = {"parts": [{"name": "a", "count": 1}], "share": 1, "texts": {"x": None, "\udcff": "\udc80"}}


def test_json_is_converted_to_a_record() -> None:
    assert record_from_values(parse_json(json.dumps(VALUES)), Record) == Record((Part("a", 1),), 1.0, VALUES["texts"])


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"share": True}, ["`share`", "float", "bool", "True"]),
        ({"share": "1"}, ["`share`", "float", "str", "'1'"]),
        ({"parts": {}}, ["`parts`", "array", "object"]),
        ({"parts": [{"name": "a", "count": 1}, {"name": 7, "count": 1}]}, ["`parts[1].name`", "str", "int", "7"]),
        ({"parts": [{"name": "a", "count": 1.0}]}, ["`parts[0].count`", "int", "float", "1.0"]),
        ({"parts": [{"name": "a"}]}, ["`parts[0]`", "`count`"]),
        ({"parts": [{"name": "a", "count": 10}]}, ["`parts[0]`", "at most 9, got 10"]),
        ({"texts": {"x": 1}}, ["`texts[...]`", "str", "int", "{'x': 1}"]),
        ({"lists": {"x": [1], "y": [1, "2"]}}, ["`lists[...][1]`", "int", "str", "{'x': [1], 'y': [1, '2']}"]),
        ({"nested": {"x": {"y": {"name": 7, "count": 1}}}}, ["`nested[...][...].name`", "str", "int", "'name': 7"]),
        ({"nested": {"x": {"y": {"name": "a"}}}}, ["`nested[...][...]`", "`count`", "{'name': 'a'}"]),
    ],
)
def test_an_error_names_the_key_and_the_value(changes: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(ValueError, match="`") as caught:
        record_from_values(VALUES | changes, Record)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ValueError, match="share") as caught:
        record_from_values(VALUES | {"share": "x" * 10_000}, Record)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "[" * 100_000, b"\xff", "9" * 5000],
    ids=["empty", "open", "nan", "infinity", "nested", "bytes", "digits"],
)
def test_parse_json_rejects_invalid_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|JSON|nested|decode|digits"):
        parse_json(text)


@pytest.mark.parametrize("values", [None, [], {}, {"schema": "other/1"}, {"schema": ["x"]}])
def test_another_schema_is_rejected(values: Any) -> None:
    with pytest.raises(ValueError, match=r"mine/1|JSON object"):
        checked_schema(values, "mine/1")
    assert checked_schema({"schema": "mine/1", "a": 1}, "mine/1") == {"a": 1}
