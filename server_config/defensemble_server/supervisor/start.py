"""How the guard starts the supervisor; its own modules import numpy, which a start must not wait for."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..options import ServeOptions


def supervisor_command() -> list[str]:
    """Return the command of the process, with the module search path of this process."""
    path = [os.path.abspath(entry) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; from {__package__}.main import main; main()"]


def supervisor_request(folder: Path, options: ServeOptions) -> dict[str, Any]:
    """Return its first line of input; `options` must have the real ports and the admin key."""
    return {"repository": str(folder), "options": asdict(options)}
