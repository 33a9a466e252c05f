"""The form of an admin key, the same where a server is started with one and where a client sends it."""

from __future__ import annotations

import re

from .errors import RepositoryError


def check_admin_key(key: object) -> str:
    """Return a key that Triton's command line and a header take; the error for another does not show it."""
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_\-]{16,256}", key):
        got = f"{len(key)} characters" if isinstance(key, str) else type(key).__name__
        raise RepositoryError(f"an admin key is a text of 16 to 256 letters, digits, '_' or '-' and no others, got {got}")
    return key
