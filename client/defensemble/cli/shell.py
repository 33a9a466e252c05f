"""The commands that messages suggest: not every user has the environment's `bin` on PATH."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def this_command() -> str:
    """Return `defensemble` if a shell finds this installation by that name, else a path or `python -m defensemble`."""
    script = Path(sys.executable).with_name("defensemble")
    on_path = shutil.which("defensemble")
    if on_path is not None and Path(on_path).resolve() == script.resolve():
        return "defensemble"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m defensemble"


def as_typed(*, with_option: str | None = None) -> str:
    """Return the command line without `defensemble`, quoted for a shell, with an option added if it is missing."""
    words = sys.argv[1:]
    if with_option is not None and with_option not in words:
        words = [*words[:1], with_option, *words[1:]]
    return shlex.join(words)
