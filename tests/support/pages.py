"""Pages of Markdown whose blocks are checked and run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from defensemble_server.runtime.backend_build import built_backend
from tests.support.scripted import free_port

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` tells why it is not run, where it is not."""

    language: str
    text: str
    reason: str | None

    @property
    def is_make(self) -> bool:
        return all(line.startswith(("make ", "#")) for line in self.text.splitlines() if line.strip())

    @property
    def runs(self) -> bool:
        return self.reason is None and not self.is_make

    def check(self) -> None:
        """Raise unless the block is valid Python or shell."""
        if self.language == "python":
            ast.parse(self.text)
        else:
            subprocess.run(["bash", "-n", "-c", self.text], check=True)

    def calls(self) -> list[list[str]]:
        """The words of each command of a shell block, without what stands around it: pipes, redirections, assignments."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else ():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set("();<>|&"):
                    words.append(word)
                else:
                    found.append(words)
                    words = []
        return [words for words in found if words]

    def command(self, text: str | None = None) -> list[str]:
        """What runs the block, or another text in its language."""
        text = self.text if text is None else text
        return [sys.executable, "-c", text] if self.language == "python" else ["bash", "-euo", "pipefail", "-c", text]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that are shell or Python, in order."""
    return [block for block in _all_blocks(page) if block.language != "text"]


def check_blocks(page: Path) -> None:
    """Raise unless every block of a page names a known language and is valid."""
    assert {block.language for block in _all_blocks(page)} <= LANGUAGES, f"{page}: a block of another language"
    for block in blocks_of(page):
        block.check()


def _all_blocks(page: Path) -> Iterable[Block]:
    return [Block(match["language"], match["text"], match["reason"]) for match in _BLOCK.finditer(page.read_text())]


@dataclass(frozen=True)
class Ports:
    """Free ports in the place of 8000, 8001 and 8002, which may be somebody's."""

    http: int
    grpc: int
    metrics: int

    def put_into(self, text: str) -> str:
        """A block's text with these ports."""
        for standard, free in (("8000", self.http), ("8001", self.grpc), ("8002", self.metrics)):
            text = text.replace(standard, str(free))
        chosen = f"--http-port {self.http} --grpc-port {self.grpc} --metrics-port {self.metrics}"
        return re.sub(r"(defensemble serve .*?--detach)", rf"\1 {chosen}", text)


def free_ports() -> Ports:
    """Three ports that nobody listens on."""
    chosen: set[int] = set()
    while len(chosen) < 3:
        chosen.add(free_port())
    return Ports(*chosen)


def stop_what_is_left(ports: Ports) -> None:
    """Stop the server of these ports, where a block failed before the one that stops it."""
    from defensemble_server import read_states, stop_server

    if ports.grpc in [state.grpc_port for state in read_states()]:
        stop_server(ports.grpc)


def run_blocks(page: Path, place: Path, ports: Ports) -> str:
    """Run a page's blocks in order, in a folder of `place` that is called as the page; returns what they print.

    Images that are decoded meanwhile are nobody's: not into the user's cache.
    """
    backend = built_backend()
    assert backend is not None
    (place / "cache/defensemble").mkdir(parents=True)
    (place / "cache/defensemble/backend").symlink_to(backend.parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changes = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place / "cache")}
    folder = place / page.stem
    folder.mkdir()
    told = ""
    for block in blocks_of(page):
        if block.runs:
            command = block.command(ports.put_into(block.text))
            environment = {**os.environ, **changes}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            told += done.stdout + done.stderr
    return told
