"""Compare class names in Unicode NFC, and match those of a dataset and a model by name, never by position."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ClassNamesError

_MAX_SHOWN = 10


def normalised(name: str) -> str:
    """Return a class name in Unicode NFC, so that names that look the same compare equal."""
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """Describe why a text cannot be a class name (label files hold one per line, in UTF-8), or return None if it can."""
    if not name:
        return "is empty"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if name.splitlines() != [name]:
        return "holds a line break"
    return "holds a control character" if any(unicodedata.category(character) == "Cc" for character in name) else None


def distinct_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return class names in NFC.

    Args:
        names: The class names.
        where: What they belong to, for the error.

    Raises:
        ClassNamesError: Two names are equal in NFC.
    """
    normalised_names = tuple(normalised(name) for name in names)
    repeated = [name for name, count in Counter(normalised_names).items() if count > 1]
    if repeated:
        raise ClassNamesError(
            f"{where} has duplicate class names (in Unicode NFC): {format_names(repeated)}; expected {len(normalised_names)} different "
            "names. Rename all but one of each."
        )
    return normalised_names


def match_classes(names: Sequence[str], model_names: Sequence[str], where: str, model: str) -> NDArray[np.int64]:
    """Return the model's index for each class of a dataset, int64 (len(names),).

    A model without class names has the numbers 0 to K-1 as text. Its classes are matched as numbers, and the dataset must then have
    exactly the classes 0 to K-1: a shorter list might count from 1 or belong to another dataset.

    Args:
        names: Class names of the dataset, in its order.
        model_names: Class names of the model, in the order of its outputs.
        where: Name of the dataset, for errors.
        model: Name of the model, for errors.

    Raises:
        ClassNamesError: A class of the dataset is unknown to the model, or a name is repeated. The message shows both lists.

    Example:
        >>> match_classes(["blue", "green", "red"], ["red", "green", "blue"], "test/", "colours").tolist()
        [2, 1, 0]
    """
    own, theirs = distinct_names(names, where), distinct_names(model_names, f"model {model!r}")
    if theirs == tuple(str(index) for index in range(len(theirs))):
        # `int` raises an error for more than 4300 digits.
        numbers = [int(name) if name.isascii() and name.isdigit() and len(name) <= 4300 else -1 for name in own]
        if sorted(numbers) == list(range(len(theirs))):
            return np.array(numbers, np.int64)
        raise ClassNamesError(
            f"model {model!r} has no class names, only the numbers 0 to {len(theirs) - 1}; {where} has {len(own)} classes: "
            f"{format_names(own)}; expected exactly the numbers 0 to {len(theirs) - 1}. Rename the classes of the dataset, or export the "
            "model with class names (--labels FILE)."
        )
    index = {name: position for position, name in enumerate(theirs)}
    unknown = [name for name in own if name not in index]
    if unknown:
        raise ClassNamesError(
            f"model {model!r} does not know {len(unknown)} of the {len(own)} classes of {where}: {format_names(unknown)}. Classes of the "
            f"dataset: {format_names(own)}. Classes of the model: {format_names(theirs)}. Rename the classes, or use the dataset that the "
            "model was trained on."
        )
    return np.array([index[name] for name in own], np.int64)


def format_names(names: Sequence[str]) -> str:
    """Format names for a message: the first ten, each cut at 60 characters."""
    shown = ", ".join(f"{name[:60]}..." if len(name) > 60 else name for name in names[:_MAX_SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > _MAX_SHOWN else "")
