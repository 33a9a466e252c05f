"""How JSON becomes a value of its type: one strict reader for the records and manifests of a repository."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is no JSON, such as NaN.
    """
    # Not msgspec's decoder: it refuses the surrogates by which a history keeps bytes that are not UTF-8.
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("maximum recursion depth exceeded: it is nested too deeply") from error


def checked_schema(values: Any, schema: str) -> dict[str, Any]:
    """Return the keys of a JSON object but for `schema`; ValueError where it is no object, or of another schema."""
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {str(values)[:80]!r}")
    if values.get("schema") != schema:
        raise ValueError(f"its schema is {values.get('schema')!r:.80}, expected {schema!r}: a newer defensemble may have written it")
    return {key: value for key, value in values.items() if key != "schema"}


def record_from_values(values: Any, kind: type[T]) -> T:
    """Return JSON values as a value of `kind`, a type that msgspec knows. Types are strict: a bool is no number.

    Raises:
        ValueError: they are not of that type; the message names the key, what was got and what was expected.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        got = values
        known, entry, _ = path.partition("[...]")  # of an entry, msgspec does not say the key: the whole mapping is shown
        for key, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", known):
            got = got[key] if key else got[int(index)]
        got_text = "" if isinstance(got, dict) and not entry else f": {str(got)[:80]!r}"
        raise ValueError(f"{path.replace('$.', '')}{': ' if path else ''}{text}{got_text}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
