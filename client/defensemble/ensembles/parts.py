"""Parts of the execution of an edit: its timings, the calls of members, and the files of the ensemble."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.filesystem.atomic_write import shared_mode, write_atomic
from defensemble_repository.transaction import write_files

from .server_models import InferCall, ModelServer
from .verification import Array


class Timings:
    """Seconds by kind of work: checks, writes, loads (load and unload calls), inferences, and drain."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Add the duration of the block to a kind of work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start


def write_ensemble(repository: Path, files: Mapping[str, bytes]) -> None:
    """Write an ensemble's files durably. Usually that is its configuration, which needs no transaction: the journal can restore it."""
    paths = [repository / path for path in files]
    if len(paths) == 1 and paths[0].exists():
        write_atomic(paths[0], *files.values(), mode=shared_mode(paths[0]), is_newer=True)
    else:
        write_files(repository, files)


def member_calls(members: Sequence[tuple[str, int]], image: NDArray[np.float32]) -> list[InferCall]:
    """Return the calls that run members on an image."""
    return [InferCall(model, {"images": image}, ["logits"], version) for model, version in members]


def member_logits(server: ModelServer, members: Sequence[tuple[str, int]], image: NDArray[np.float32]) -> dict[tuple[str, int], Array]:
    """Return the logits of each member for an image."""
    return {step: answer["logits"] for step, answer in zip(members, server.infer_all(member_calls(members, image)), strict=True)}
