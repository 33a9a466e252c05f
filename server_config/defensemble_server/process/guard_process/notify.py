"""Messages to the service manager, as sd_notify(3) sends them."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the socket of the environment variable NOTIFY_SOCKET; do nothing without it.

    Raises:
        OSError: The message could not be sent.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(assignments).encode(), address)
