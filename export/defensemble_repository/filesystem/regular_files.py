"""Read files without the risk of blocking: opening a FIFO blocks until a process writes to it, and a device may never end.

A file in a folder must be a regular file. A file that a user names may also be a pipe, such as `<(COMMAND)` or `/dev/stdin`. The functions
raise an OSError with the path for other kinds of files, and for files that are too large or cannot be read.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from typing import BinaryIO

# Configurations, labels and manifests have a few KiB. A larger file is of another kind, or sparse.
MAX_TEXT_BYTES = 1 << 26
# The longest wait for a writer to open a pipe, and for a writer to write.
_WRITER_WAIT_S = 2.0
_SILENCE_S = 60.0


def irregular_kind(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of a path, such as "a FIFO", or None for a regular file, a folder, a missing file and a link to itself."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise an OSError for a FIFO, a socket or a device."""
    _check_kind(path, irregular_kind(path))


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise an OSError for a path that a rename must not replace: a FIFO, a socket, a device, or a link to /proc such as /dev/stdout."""
    kind = irregular_kind(path)
    if kind is None and os.path.islink(path) and os.readlink(path).startswith("/proc/"):
        kind = "a link to an open file"
    if kind is not None:
        raise OSError(errno.EINVAL, f"this is {kind}; expected a regular file or a new name (choose another path)", os.fspath(path))


def regular_file_exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a regular file. A folder is not."""
    check_regular(path)
    return os.path.isfile(path)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file."""
    check_regular(path)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # It may have become a FIFO.


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        return _checked_size(path, file.read(limit + 1), limit)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a regular file of at most `MAX_TEXT_BYTES` bytes as UTF-8. Invalid bytes become U+FFFD."""
    return read_regular(path, MAX_TEXT_BYTES).decode(errors="replace")


def read_user_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file that a user names, of at most `limit` bytes: a regular file, a terminal, or a pipe with a writer."""
    kind = irregular_kind(path)
    if kind is None:
        return read_regular(path, limit)
    if kind == "a socket":
        _check_kind(path, kind)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        terminal = os.isatty(descriptor)
        if kind == "a device" and not terminal:
            _check_kind(path, kind)
        return _checked_size(path, _read_stream(path, descriptor, limit, terminal), limit)
    finally:
        os.close(descriptor)


def _read_stream(path: str | os.PathLike[str], descriptor: int, limit: int, terminal: bool) -> bytes:
    content = b""
    start = time.monotonic()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(content) <= limit:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:  # The pipe has a writer.
            if not poll.poll(None if terminal else 1000 * _SILENCE_S):
                raise OSError(errno.ETIMEDOUT, f"the pipe had no data for {_SILENCE_S:g} s; expected content", os.fspath(path)) from None
            continue
        if chunk:
            content += chunk
        elif content or terminal:
            break
        elif time.monotonic() - start >= _WRITER_WAIT_S:
            raise OSError(errno.ENODATA, "the pipe has no writer, or is empty; expected content", os.fspath(path))
        else:
            time.sleep(0.02)
    return content


def _check_kind(path: str | os.PathLike[str], kind: str | None) -> None:
    if kind is not None:
        raise OSError(errno.EINVAL, f"this is {kind}; expected a regular file (replace it with a file, or remove it)", os.fspath(path))


def _checked_size(path: str | os.PathLike[str], content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise OSError(
            errno.EFBIG,
            f"the file has more than {limit} bytes; expected a smaller one (it is of another kind, or damaged)",
            os.fspath(path),
        )
    return content
