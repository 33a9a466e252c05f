"""Check arguments: numbers and choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import SpecError

INTEGRAL = (int, np.integer)
REAL = (int, float, np.integer, np.floating)


def checked_integer(what: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return an integer in [minimum, maximum], or raise a `SpecError`. `what` names the value in the error."""
    if isinstance(value, bool) or not isinstance(value, INTEGRAL) or int(value) < minimum:
        raise SpecError(f"{what} must be an integer of at least {minimum}, got {value!r}")
    if maximum is not None and int(value) > maximum:
        raise SpecError(f"{what} must be an integer of at most {maximum}, got {value!r}")
    return int(value)


def checked_number(what: str, value: object, expected: str, is_valid: Callable[[Any], Any]) -> float:
    """Return a number as a float, or raise a `SpecError` unless `is_valid(value)`. `expected` describes valid numbers."""
    if isinstance(value, bool) or not isinstance(value, REAL) or not is_valid(value):
        raise SpecError(f"{what} must be {expected}, got {value!r:.120}")
    return float(value)


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Raise a `SpecError` unless a value is one of the choices."""
    if value not in choices:
        raise SpecError(f"{what} must be one of {', '.join(choices)}; got {value!r}")
