"""The class names in a labels file."""

from __future__ import annotations

import unicodedata


def class_names_from_labels(content: bytes) -> tuple[str, ...]:
    """Return the class names in a labels file, one per line, normalised to Unicode NFC so that they can be compared."""
    return tuple(unicodedata.normalize("NFC", content.decode(errors="replace")).removesuffix("\n").split("\n"))
