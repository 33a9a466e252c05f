"""Messages to the service manager arrive as sd_notify(3) describes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from defensemble_server.process.guard_process.notify import notify


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_message_reaches_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:
    name = f"@defensemble-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=ready")
        assert manager.recv(1000) == b"READY=1\nSTATUS=ready"


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize("value", ["/nonexistent/socket", "relative", "@", "/dev/null", f"/{'x' * 200}"])
def test_a_missing_service_manager_is_an_error_that_names_the_variable_and_its_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", value)
    with pytest.raises(OSError, match="NOTIFY_SOCKET") as raised:
        notify("READY=1")
    assert f"'{value[:190]}" in str(raised.value)
