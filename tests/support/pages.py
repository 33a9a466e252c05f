"""Pages of Markdown whose blocks are checked and run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from defensemble_ops import library_path
from defensemble_server.runtime.backend_build import built_backend
from tests.support.checkout import ROOT
from tests.support.scripted import free_port

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|run after): (?P<remark>.+?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# `text` is output or a picture: it is not run. Of `console` only the lines after `$ ` are commands.
LANGUAGES = {"sh", "console", "python", "yaml", "text"}
_FENCE = re.compile(r"^ *```", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        reason: Why the block is not run, from `<!-- not run: REASON -->`.
        after: A text in the block after which this one runs, from `<!-- run after: TEXT -->`; without it, the order of the page.
    """

    language: str
    text: str
    reason: str | None = None
    after: str | None = None

    @property
    def is_run(self) -> bool:
        return self.reason is None and self.language in ("sh", "console", "python")

    @property
    def commands(self) -> str:
        """The commands of a block of shell, as a script; "" in other languages."""
        if self.language == "console":
            return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))
        return self.text if self.language == "sh" else ""

    def check(self) -> None:
        """Raise unless the block is valid Python, shell or YAML."""
        if self.language == "python":
            ast.parse(self.text)
        elif self.language in ("sh", "console"):
            subprocess.run(["bash", "-n", "-c", self.commands], check=True)
        elif self.language == "yaml":
            assert list(yaml.safe_load_all(self.text))

    def calls(self) -> list[list[str]]:
        """Return the words of each command of a shell block, without pipes, redirections and assignments."""
        calls = []
        for line in self.commands.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            try:
                tokens = [*lexer, ";"]
            except ValueError:  # a quotation of several lines
                continue
            for token in tokens:
                if not set(token) <= set("();<>|&"):
                    words.append(token)
                else:
                    calls.append(words)
                    words = []
        return [words for words in calls if words]

    def command(self, text: str | None = None) -> list[str]:
        """Return the command that runs the block, or another text in its language."""
        text = (self.commands or self.text) if text is None else text
        return [sys.executable, "-c", text] if self.language == "python" else ["bash", "-euo", "pipefail", "-c", text]


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in its order."""
    text = page.read_text()
    blocks = []
    for match in _BLOCK.finditer(text):
        mark, remark = match["mark"], match["remark"]
        reason, after = remark if mark == "not run" else None, remark if mark == "run after" else None
        blocks.append(Block(match["language"], match["text"], reason, after))
    assert 2 * len(blocks) == len(_FENCE.findall(text)), f"{page}: a block was not read"
    return blocks


def blocks_to_run(page: Path) -> list[Block]:
    """Return the blocks of a page that are run, in the order in which they are run."""
    ordered: list[Block] = []
    for block in read_blocks(page):
        if block.is_run and block.after is None:
            ordered.append(block)
    for block in read_blocks(page):
        if block.is_run and block.after is not None:
            earlier = [index for index, other in enumerate(ordered) if block.after in other.text]
            assert earlier, f"{page}: no block contains {block.after!r}"
            ordered.insert(earlier[0] + 1, block)
    return ordered


def check_blocks(page: Path) -> None:
    """Raise unless every block of a page names a known language and is valid."""
    blocks = read_blocks(page)
    assert {block.language for block in blocks} <= LANGUAGES, f"{page}: a block of another language"
    for block in blocks:
        block.check()


@dataclass(frozen=True)
class Ports:
    """Free ports that replace 8000 to 8003, which may be in use."""

    http: int
    grpc: int
    metrics: int
    supervisor: int

    def put_into(self, text: str) -> str:
        """Return a block's text with these ports."""
        for standard, free in (("8000", self.http), ("8001", self.grpc), ("8002", self.metrics), ("8003", self.supervisor)):
            text = text.replace(standard, str(free))
        names = ("http", "grpc", "metrics", "supervisor")
        chosen = " ".join(f"--{name}-port {getattr(self, name)}" for name in names)
        return re.sub(r"(defensemble serve .*?--detach)", rf"\1 {chosen}", text)


def free_ports() -> Ports:
    """Return four free ports."""
    chosen: set[int] = set()
    while len(chosen) < 4:
        chosen.add(free_port())
    return Ports(*chosen)


def stop_server_on(ports: Ports) -> None:
    """Stop the server on these ports if a block failed before the one that stops it."""
    from defensemble_server import read_states, stop_server

    if ports.grpc in [state.grpc_port for state in read_states()]:
        stop_server(ports.grpc)


def run_blocks(page: Path, parent: Path, ports: Ports) -> str:
    """Run the blocks of a page in order, in a new folder with a cache of its own.

    Args:
        page: The page.
        parent: The folder in which the page's folder and the cache are made.
        ports: The ports that replace the standard ones.

    Returns:
        What the blocks printed.
    """
    backend = built_backend()
    assert backend is not None
    (parent / "cache/defensemble").mkdir(parents=True)
    (parent / "cache/defensemble/backend").symlink_to(backend.parent)
    (parent / "cache/defensemble/ops").symlink_to(library_path().parent.parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changes = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(parent / "cache")}
    folder = parent / page.stem
    folder.mkdir()
    shutil.copytree(ROOT / "zoo", folder / "zoo")
    output = ""
    for block in blocks_to_run(page):
        command = block.command(ports.put_into(block.commands or block.text))
        environment = {**os.environ, **changes}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        output += done.stdout + done.stderr
    return output
