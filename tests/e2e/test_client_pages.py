"""The how-to pages of the client: their blocks run in order, on the real Triton, in a folder with the files that they name."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defensemble import Client
from defensemble_server import Server
from tests.support.certificates import make_certificate
from tests.support.checkout import ROOT
from tests.support.pages import Ports, blocks_to_run
from tests.support.scripted import free_port
from tests.support.tiny import images
from tests.support.tls_proxy import tls_proxy

# Facts that the blocks of a page print, separated by ` | `.
PRINTED = {
    "pictures.md": "['circle']\n['circle']\n['circle', 'square']\nphotos/a.png: circle ( | ['circle', 'square', 'square', 'circle'",
    "asyncio.md": "saw a circle",
    "several-servers.md": "http://127.0.0.1 | http://localhost | retries: 0 | in use | triton 2.",
    "test-your-code.md": "",
}
HOW_TO = ROOT / "docs/how-to"


@pytest.fixture
def localised(triton: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes the files of the pages in the current folder, and returns a function that puts the test's server into a block."""
    monkeypatch.chdir(tmp_path)
    batch = (images(24) > 0.8).astype(np.float32)  # circle, square, square, circle, triangle, ...
    np.save("images.npy", batch)
    Path("photos").mkdir()
    for name, image in zip("ab", batch, strict=False):
        Image.fromarray((255 * image[0]).round().astype(np.uint8)).save(f"photos/{name}.png")
    state = triton.state
    ports = Ports(state.http_port, state.grpc_port, state.metrics_port, free_port())

    def localise(text: str) -> str:
        return ports.put_into(text.replace("gpu-1", "127.0.0.1").replace("gpu-2", "localhost"))

    return localise


def assert_printed(output: str, facts: str) -> None:
    assert [fact for fact in facts.split(" | ") if fact not in output] == [], output


@pytest.mark.parametrize("name", PRINTED)
def test_the_blocks_of_a_page_run(
    name: str, localised: Callable[[str], str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "defensemble")  # and back at the end: a page sets it too
    names: dict[str, object] = {}
    for block in blocks_to_run(HOW_TO / name):
        exec(compile(localised(block.text), name, "exec"), names)
    for client in (value for value in names.values() if isinstance(value, Client)):
        client.close()
    assert_printed(capsys.readouterr().out, PRINTED[name])


def run_as_one_program(page: Path, localise: Callable[[str], str]) -> str:
    """Run the blocks of a page in a process of their own, for pages that change global state or load much, and return what they print."""
    program = "\n".join(localise(block.text) for block in blocks_to_run(page))
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_blocks_of_connect_run(triton: Server, localised: Callable[[str], str]) -> None:
    pytest.importorskip("opentelemetry.sdk")
    make_certificate(Path(), "server")
    make_certificate(Path(), "client")
    Path("server.pem").rename("ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("ca.pem", "server.key")
    context.load_verify_locations("client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with tls_proxy(int(triton.http_url.rpartition(":")[2]), context) as port:
        output = run_as_one_program(HOW_TO / "connect.md", lambda text: localised(text).replace("models.example:8443", f"localhost:{port}"))
    assert_printed(output, "'circle' | defensemble predict | check the photo")


@pytest.mark.slow
def test_the_blocks_of_notebooks_run(localised: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    run_as_one_program(HOW_TO / "notebooks.md", localised)
    for name in ("uncertain.png", "uncertainty.png"):
        with Image.open(name) as plot:
            assert min(plot.size) > 300
