"""Class names as a file of labels holds them."""

from __future__ import annotations

import unicodedata


def class_names_from_labels(content: bytes) -> tuple[str, ...]:
    """Return the class names in the content of a file of labels, one a line, in Unicode NFC, in which they are compared."""
    return tuple(unicodedata.normalize("NFC", content.decode(errors="replace")).removesuffix("\n").split("\n"))
