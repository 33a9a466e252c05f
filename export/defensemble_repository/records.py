"""Convert JSON to typed records, strictly: the reader of the history, journals and manifests of a repository."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: The text is not valid JSON. NaN and Infinity are not.
    """
    # Not msgspec's decoder, which rejects the surrogates that represent bytes that are not UTF-8 in a history.
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def checked_schema(values: Any, schema: str) -> dict[str, Any]:
    """Return a JSON object without its key `schema`.

    Args:
        values: The parsed JSON.
        schema: The expected value of the key, such as `defensemble.plan/1`.

    Raises:
        ValueError: It is not an object, or has another schema.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {str(values)[:80]!r}")
    if values.get("schema") != schema:
        raise ValueError(
            f"schema is {values.get('schema')!r:.80}; expected {schema!r}. A newer version of defensemble may have written the file."
        )
    return {key: value for key, value in values.items() if key != "schema"}


def record_from_values(values: Any, kind: type[T]) -> T:
    """Convert parsed JSON to a type. Types are strict: a bool is not a number.

    Args:
        values: The parsed JSON.
        kind: A type that msgspec supports, such as a dataclass.

    Raises:
        ValueError: The values do not have that type. The message has the key, the value and the expected type.

    Example:
        record_from_values(parse_json('["a@1"]'), list[str])
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        got = values
        prefix, entry, _ = path.partition("[...]")  # msgspec does not name the key of an entry, so the whole mapping is shown.
        for key, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", prefix):
            got = got[key] if key else got[int(index)]
        got_text = "" if isinstance(got, dict) and not entry else f": {str(got)[:80]!r}"
        raise ValueError(f"{path.replace('$.', '')}{': ' if path else ''}{text}{got_text}") from error


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")
