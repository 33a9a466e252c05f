"""The options that the verbs of `defensemble ensemble` share, as values."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """Which folders and servers a verb works on: one folder with its servers, or `replicas`, pairs of a URL and a folder."""

    repository: Path
    urls: tuple[str, ...]
    replicas: tuple[tuple[str, Path], ...]
    files_only: bool
    admin_key_file: Path | None
    timeout_s: float
    wait_s: float = 60.0

    @property
    def finds_servers(self) -> bool:
        """Whether the servers are those that `defensemble serve` runs here on the folder."""
        return not (self.urls or self.replicas or self.files_only)

    def to_arguments(self) -> str:
        """Return the options that make another command work on the same folders and servers, with a space before them."""
        is_default = self.repository == Path("model_repository") and "DEFENSEMBLE_REPOSITORY" not in os.environ
        words = [] if self.replicas or is_default else ["--repository", str(self.repository)]
        words += [word for url in self.urls for word in ("--url", url)]
        words += [word for url, folder in self.replicas for word in ("--replica", f"{url}={folder}")]
        words += ["--files-only"] if self.files_only else []
        words += ["--admin-key-file", str(self.admin_key_file)] if self.admin_key_file is not None else []
        return f" {shlex.join(words)}" if words else ""


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How an edit is made, and how its result is printed."""

    message: str | None
    dry_run: bool
    load_timeout_s: float
    idle_timeout_s: float
    as_json: bool
