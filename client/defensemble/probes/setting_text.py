"""Two settings that differ, as text for messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .outcome import same_json

_MOST_LETTERS = 200


def different_texts(key: str, value: Any, other: Any) -> tuple[str, str]:
    """Return two different values of a setting as text: objects by their names, and of two objects what differs.

    Args:
        key: The setting; a shard becomes K/N.
        value: The first value, as JSON.
        other: The second value.
    """
    texts = _text(key, value), _text(key, other)
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        keys = different_keys(value, other)
        texts = tuple(", ".join(f"{name}: {_text(name, one.get(name))}" for name in keys) for one in (value, other))  # type: ignore[assignment]
    if texts[0] == texts[1]:  # what differs is not in the names
        texts = _shortened(json.dumps(value)), _shortened(json.dumps(other))
    return texts


def different_keys(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ as JSON, in order."""
    return [key for key in {**values, **others} if not same_json(values.get(key), others.get(key))]


def _text(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key == "shard":
        return "/".join(map(str, value))
    if isinstance(value, (list, tuple)):
        return _shortened(", ".join(_text("", one) for one in value) or "none")
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])
    return _shortened(value if isinstance(value, str) else json.dumps(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."
