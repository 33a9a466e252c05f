"""Certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def openssl(*arguments: str | Path) -> None:
    """Run openssl; the test is skipped on a machine without it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def make_certificate(folder: Path, name: str) -> None:
    """Make a self-signed certificate for localhost and its key, `NAME.pem` and `NAME.key`; it is its own authority."""
    hosts = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    openssl(*new, "-addext", hosts, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
