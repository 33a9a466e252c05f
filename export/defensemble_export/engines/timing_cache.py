"""Keep the timings of TensorRT's kernels between builds, so that the second build of a network does not measure them again.

Timings are bound to the exact TensorRT version and the device, so each pair has its own file.
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
    """Return the timing cache of a target: `$XDG_CACHE_HOME/defensemble/timings/<TensorRT>-<GPU>-<capability>.cache`."""
    gpu = re.sub("[^A-Za-z0-9]+", "-", target.gpu).strip("-")
    return platformdirs.user_cache_path("defensemble") / "timings" / f"{target.tensorrt}-{gpu}-{target.compute_capability}.cache"


class TimingCache:
    """The timing cache of a build, in the file `path`."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        self._path = path
        self._logger = logger

    def attach(self, config: Any) -> None:
        """Attach the cache to the builder's configuration. Replace a damaged or foreign cache by an empty one."""
        try:
            content = read_regular(self._path)
        except FileNotFoundError:
            content = b""
        cache = attach_cache(config, content)
        if cache is None and content:
            self._logger.warning("%s is damaged or belongs to another TensorRT or GPU: this build replaces it", self._path)
            cache = attach_cache(config, b"")
        if cache is None:
            raise RuntimeError("TensorRT does not accept even an empty timing cache")
        self._config, self._cache = config, cache

    def save(self) -> None:
        """Write the cache back atomically, merged with what other builds have written since."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(self._path.parent, fcntl.LOCK_EX):
            try:
                others = self._config.create_timing_cache(serialized_timing_cache=read_regular(self._path))
            except FileNotFoundError:
                others = None
            if others is not None:
                # Returns False and does nothing if they belong to another TensorRT.
                self._cache.combine(input_cache=others, ignore_mismatch=False)
            write_atomic(self._path, bytes(self._cache.serialize()))


def attach_cache(config: Any, timings: Any) -> Any:
    """Attach a timing cache to a builder's configuration and return it; None if the configuration does not accept these bytes."""
    cache = config.create_timing_cache(serialized_timing_cache=timings)
    if cache is None:
        return None
    return cache if config.set_timing_cache(cache=cache, ignore_mismatch=False) else None
