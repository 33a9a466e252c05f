"""HTTP requests as bytes, valid or not."""

from __future__ import annotations

from collections.abc import Iterable


def request(method: str, target: str, body: bytes = b"", headers: Iterable[str] = ()) -> bytes:
    """Return a request with the headers, and with the length of its body unless they have one."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    if body and not any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int) -> bytes:
    """Return a body in chunks of a size."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
