"""nginx with the shipped configuration in front of a server of a test."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

import pytest

from benchmarks.common.nginx import Nginx, NginxError, nginx_program, start_nginx
from defensemble_server import Server


def require_nginx() -> None:
    """Skip the test on a machine without nginx."""
    try:
        nginx_program()
    except NginxError as error:
        pytest.skip(str(error))


def nginx_before(
    server: Server | tuple[int, int], folder: Path, changes: Mapping[str, str] = MappingProxyType({})
) -> AbstractContextManager[Nginx]:
    """Return a proxy; the test is skipped on a machine without nginx.

    Args:
        server: The server, or its ports for HTTP and gRPC.
        folder: A folder for the files of nginx.
        changes: Replacements in the shipped configuration.
    """
    require_nginx()
    http_port, grpc_port = server if isinstance(server, tuple) else (server.state.http_port, server.state.grpc_port)
    return start_nginx(folder, http_port=http_port, grpc_port=grpc_port, changes=changes)
