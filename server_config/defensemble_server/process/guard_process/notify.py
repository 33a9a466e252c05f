"""Messages to the service manager, as sd_notify(3) sends them."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the socket of the environment variable NOTIFY_SOCKET; do nothing without it.

    Raises:
        OSError: The message could not be sent.
    """
    value = os.environ.get("NOTIFY_SOCKET")
    if not value:
        return
    address = f"\0{value[1:]}" if value.startswith("@") else value  # an abstract socket, or a path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            raise type(error)(
                f"the environment variable NOTIFY_SOCKET is {value!r:.200}, to which no message can be sent ({error.strerror or error}); "
                "expected the socket of a service manager, as a path that begins with / or a name that begins with @. Unset the variable "
                "if no service manager has started this process"
            ) from error
