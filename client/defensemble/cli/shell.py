"""How the reader can call this command again: not everybody has the environment's `bin` on PATH."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def this_command() -> str:
    """`defensemble` where a shell would find this very installation by that name, else the words that run it."""
    script = Path(sys.executable).with_name("defensemble")
    found = shutil.which("defensemble")
    if found is not None and Path(found).resolve() == script.resolve():
        return "defensemble"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m defensemble"


def as_typed(*, with_option: str | None = None) -> str:
    """What follows `defensemble` on the command line, quoted for a shell; with an option more, where it is not there yet."""
    words = sys.argv[1:]
    if with_option is not None and with_option not in words:
        words = [*words[:1], with_option, *words[1:]]
    return shlex.join(words)
