"""Read files without waiting for ever: opening a FIFO blocks until somebody writes into it, and a device may never end.

What is in a folder must be a regular file. What a user names may be a pipe too, such as `<(COMMAND)` or `/dev/stdin`. Whatever is neither,
too large or not to be read is an OSError with its path.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from typing import BinaryIO

# Configurations, labels and manifests have a few KiB; this is a file of another kind, or a sparse one.
MAX_TEXT_BYTES = 1 << 26
# Until a pipe that is opened by its name has a writer, and until a writer writes.
_WRITER_WAIT_S = 2.0
_SILENCE_S = 60.0


def irregular(path: str | os.PathLike[str]) -> str | None:
    """Say what a path is that is neither a regular file nor a folder; None for these, and where there is nothing, or a link to itself."""
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
    """Refuse a FIFO, a socket and a device."""
    _refuse(path, irregular(path))


def regular_file_exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a regular file; a folder is none."""
    check_regular(path)
    return os.path.isfile(path)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file."""
    check_regular(path)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # it may be a FIFO by now


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        return _checked_size(path, file.read(limit + 1), limit)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a regular file of at most `MAX_TEXT_BYTES` bytes as UTF-8; other bytes become U+FFFD."""
    return read_regular(path, MAX_TEXT_BYTES).decode(errors="replace")


def read_user_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read what a user named, of at most `limit` bytes: a regular file, a terminal, or a pipe that somebody writes into."""
    kind = irregular(path)
    if kind is None:
        return read_regular(path, limit)
    if kind == "a socket":
        _refuse(path, kind)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        terminal = os.isatty(descriptor)
        if kind == "a device" and not terminal:
            _refuse(path, kind)
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
        except BlockingIOError:  # somebody has it open for writing
            if not poll.poll(None if terminal else 1000 * _SILENCE_S):
                raise OSError(
                    errno.ETIMEDOUT, f"this is a pipe that gave nothing for {_SILENCE_S:g} s, expected content", os.fspath(path)
                ) from None
            continue
        if chunk:
            content += chunk
        elif content or terminal:
            break
        elif time.monotonic() - start >= _WRITER_WAIT_S:
            raise OSError(errno.ENODATA, "this is a pipe that nobody writes into, or an empty one, expected content", os.fspath(path))
        else:
            time.sleep(0.02)
    return content


def _refuse(path: str | os.PathLike[str], kind: str | None) -> None:
    if kind is not None:
        raise OSError(errno.EINVAL, f"this is {kind}, expected a regular file (move it away, or put a file there)", os.fspath(path))


def _checked_size(path: str | os.PathLike[str], content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise OSError(
            errno.EFBIG, f"this has more than {limit} bytes, expected a smaller file: it is of another kind, or damaged", os.fspath(path)
        )
    return content
