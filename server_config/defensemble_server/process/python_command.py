"""Commands of Python processes with the module search path of this process."""

from __future__ import annotations

import os
import sys


def python_command(code: str) -> list[str]:
    """Return the command that runs code."""
    path = [os.path.abspath(entry) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}"]


def main_command(module: str) -> list[str]:
    """Return the command that runs `main()` of a module."""
    return python_command(f"from {module} import main; main()")
