"""How long TensorRT's kernels took on this GPU, kept between builds: the second build of a network times nothing again.

What is kept is bound to the exact TensorRT and to the device, so each pair has a file of its own.
"""

from __future__ import annotations

import fcntl
import logging
import re
from pathlib import Path
from typing import Any

import platformdirs

from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.filesystem.locks import folder_lock
from defensemble_repository.filesystem.regular_files import read_regular

from .target import Target


def default_timing_cache(target: Target) -> Path:
    """Where the timings of a TensorRT on a GPU are kept: ``$XDG_CACHE_HOME/defensemble/timings/<TensorRT>-<GPU>-<capability>.cache``."""
    gpu = re.sub("[^A-Za-z0-9]+", "-", target.gpu).strip("-")
    return platformdirs.user_cache_path("defensemble") / "timings" / f"{target.tensorrt}-{gpu}-{target.compute_capability}.cache"


class Timings:
    """The timings of a build, in the file `path`."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        self._path = path
        self._logger = logger

    def attach(self, config: Any) -> None:
        """Give them to the builder's configuration; where they are of another TensorRT or GPU, or damaged, begin without."""
        try:
            kept = read_regular(self._path)
        except FileNotFoundError:
            kept = b""
        cache = attached_cache(config, kept)
        if cache is None and kept:
            self._logger.warning("%s is of another TensorRT or GPU, or damaged: this build begins it afresh", self._path)
            cache = attached_cache(config, b"")
        if cache is None:
            raise RuntimeError("TensorRT takes no timing cache, not even an empty one")
        self._config, self._cache = config, cache

    def save(self) -> None:
        """Write them back atomically, with those that another build has written meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(self._path.parent, fcntl.LOCK_EX):
            try:
                others = self._config.create_timing_cache(serialized_timing_cache=read_regular(self._path))
            except FileNotFoundError:
                others = None
            if others is not None:
                # False, and nothing done, where they are of another TensorRT.
                self._cache.combine(input_cache=others, ignore_mismatch=False)
            write_atomic(self._path, bytes(self._cache.serialize()))


def attached_cache(config: Any, timings: Any) -> Any:
    """Return the timing cache that a builder's configuration was given, None where it takes no cache of these bytes."""
    cache = config.create_timing_cache(serialized_timing_cache=timings)
    if cache is None:
        return None
    return cache if config.set_timing_cache(cache=cache, ignore_mismatch=False) else None
