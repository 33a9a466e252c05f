"""The format of an admin key, shared by the server that is started with a key and the client that sends it."""

from __future__ import annotations

import re

from .errors import RepositoryError


def check_admin_key(key: object) -> str:
    """Return a key that is valid in Triton's command line and in a header.

    Raises:
        RepositoryError: The key is not valid. The message does not contain the key.
    """
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_\-]{16,256}", key):
        got = f"{len(key)} characters" if isinstance(key, str) else type(key).__name__
        raise RepositoryError(f"an admin key must be 16 to 256 letters, digits, '_' or '-', got {got}")
    return key
