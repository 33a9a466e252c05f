"""Class names: compared after Unicode NFC, and matched between data and model by name, never by position."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ClassNamesError

_SHOWN = 10


def normalised(name: str) -> str:
    """Return a class name in Unicode normal form C, in which equal-looking names are equal."""
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """Say what keeps a text from being the name of a class, which files of labels hold as one line of UTF-8; None where nothing does."""
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
    """Return class names in NFC; `where` is what they belong to, for the error.

    Raises:
        ClassNamesError: some are equal after NFC.
    """
    composed = tuple(normalised(name) for name in names)
    repeated = [name for name, count in Counter(composed).items() if count > 1]
    if repeated:
        raise ClassNamesError(
            f"{where} has class names that are equal (after Unicode NFC): {listed(repeated)}; expected {len(composed)} different names: "
            "rename all but one of each"
        )
    return composed


def match_classes(names: Sequence[str], model_names: Sequence[str], where: str, model: str) -> NDArray[np.int64]:
    """Return, for each class of a data set, the index of the model's class of that name, int64 (len(names),).

    A model without names of its own has the numbers 0 to K-1 as text. Its classes are matched as numbers, and the data must then have
    exactly the classes 0 to K-1: fewer numbers may count from 1, or belong to another data set.

    Args:
        names: of the classes of the data set, in its order.
        model_names: of the classes of the model, in the order of its outputs.
        where: the data set, for errors.
        model: the model, for errors.

    Raises:
        ClassNamesError: a class of the data has no counterpart in the model, or names are repeated; shows both lists.

    Example:
        >>> matched_classes(["blue", "green", "red"], ["red", "green", "blue"], "test/", "colours").tolist()
        [2, 1, 0]
    """
    own, theirs = distinct_names(names, where), distinct_names(model_names, f"model {model!r}")
    if theirs == tuple(str(index) for index in range(len(theirs))):
        numbers = [int(name) if name.isascii() and name.isdigit() else -1 for name in own]
        if sorted(numbers) == list(range(len(theirs))):
            return np.array(numbers, np.int64)
        raise ClassNamesError(
            f"model {model!r} has no class names, only the numbers 0 to {len(theirs) - 1}; {where} has {len(own)} classes: "
            f"{listed(own)}; expected exactly the numbers 0 to {len(theirs) - 1}: rename the classes of the data, or export the model with "
            "class names (--labels FILE)"
        )
    index = {name: position for position, name in enumerate(theirs)}
    unknown = [name for name in own if name not in index]
    if unknown:
        raise ClassNamesError(
            f"{where} has {len(unknown)} of {len(own)} classes that model {model!r} does not know: {listed(unknown)}; all of the "
            f"data: {listed(own)}; all of the model: {listed(theirs)}: rename them, or take the data that the model was trained on"
        )
    return np.array([index[name] for name in own], np.int64)


def listed(names: Sequence[str]) -> str:
    """Return names for an error, the first ten of them, each cut at 60 characters."""
    shown = ", ".join(f"{name[:60]}..." if len(name) > 60 else name for name in names[:_SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
