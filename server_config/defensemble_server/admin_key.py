"""Create and read the admin key that protects a server's administrative APIs."""

from __future__ import annotations

import secrets
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from defensemble_repository import admin_key
from defensemble_repository.errors import RepositoryError
from defensemble_repository.filesystem.regular_files import read_user_file

from .errors import ServerError

# Loading models, registering shared memory or choosing log files gives full control of a server. Model configurations stay readable.
RESTRICTED_APIS = ("model-repository", "shared-memory", "logging", "trace")
ADMIN_HEADER = "x-admin-key"
_LARGEST_KEY_FILE = 1 << 16


def check_admin_key(key: str) -> str:
    """Return `key` if Triton's command line and an HTTP header accept it.

    Raises:
        ServerError: They do not. The text does not contain the key.
    """
    try:
        return admin_key.check_admin_key(key)
    except RepositoryError as error:
        raise ServerError(f"{error}: make one with `(umask 077; openssl rand -hex 24 > FILE)`") from error


def read_admin_key(path: Path, on_warning: Callable[[str], None] = lambda message: None) -> str:
    """Read an admin key from the only line of a file, or of a pipe such as `<(COMMAND)`.

    Args:
        path: The file.
        on_warning: Receives a message if users other than the owner can read the file.

    Raises:
        ServerError: The file cannot be read, or does not contain a valid key.
    """
    try:
        text = read_user_file(path, _LARGEST_KEY_FILE).decode().strip()
        status = path.stat()
    except OSError as error:
        raise ServerError(f"admin key file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ServerError(f"admin key file {path} is not text: make one with `(umask 077; openssl rand -hex 24 > FILE)`") from error
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        on_warning(
            f"admin key file {path} has mode {mode:03o}, expected 600: other users of this machine can read the key. "
            f"Close it with: chmod 600 {shlex.quote(str(path))}"
        )
    return check_admin_key(text)


def new_admin_key() -> str:
    """Return a random admin key of 192 bits."""
    return secrets.token_hex(24)
