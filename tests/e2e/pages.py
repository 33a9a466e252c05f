"""Pages of Markdown whose blocks are checked and run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
