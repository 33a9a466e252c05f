"""Faults of storage: a full /dev/shm, a full disk, entries of the repository that are damaged and reloaded."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common.servers import ENSEMBLE
from benchmarks.faulting.fault import ACCEPTED, REFUSED, Injection
from benchmarks.faulting.processes import kill
from benchmarks.faulting.stage import Stage
from defensemble import Client, DefensembleError
from defensemble_repository.errors import RepositoryError

_WEIGHT = 5.0  # of the edit that must fail
_LOAD_S = 30.0
_FILLER = "filler"


def fill_shm(stage: Stage) -> Injection:
    """Fill /dev/shm for a while."""
    injection = Injection()
    filler = _fill(Path("/dev/shm"))
    time.sleep(stage.effort.flood_s)
    filler.unlink()
    return injection.end()


def fill_disk(stage: Stage) -> Injection:
    """Fill the disk of repository, log and state for a while, and edit meanwhile. The edit must fail."""
    injection = Injection()
    filler = _fill(stage.repository.parent)
    _edit_must_fail(stage, injection)
    time.sleep(stage.effort.flood_s)
    filler.unlink()
    return injection.end()


def kill_on_full_disk(stage: Stage) -> Injection:
    """Kill Triton while the disk is full; it stays full until the server answers again."""
    filler = _fill(stage.repository.parent)
    injection = kill(stage)
    injection.facts["problem_on_full_disk"] = stage.await_right()
    filler.unlink()
    return injection


def reload_damaged(stage: Stage) -> Injection:
    """Damage files of the repository in several ways, and reload. Each reload must be refused; then the file is restored."""
    member = stage.repository / stage.members[0].name
    model, config = member / "1" / "model.onnx", member / "config.pbtxt"
    ensemble_config = stage.repository / ENSEMBLE / "config.pbtxt"
    generator = np.random.default_rng(stage.seed)
    damages: list[tuple[str, Path, str, Callable[[bytes], bytes]]] = [
        ("a changed byte in a member", model, member.name, _flip),
        ("half of a member", model, member.name, _halve),
        ("an empty member", model, member.name, lambda content: b""),
        ("random bytes as the configuration of a member", config, member.name, lambda content: generator.bytes(len(content))),
        ("half of the configuration of a member", config, member.name, _halve),
        ("half of the configuration of the ensemble", ensemble_config, ENSEMBLE, _halve),
    ]
    injection = Injection()
    with Client(stage.server.http_url, admin_key=stage.server.state.admin_key) as client:
        for name, path, loaded, damage in damages:
            content = path.read_bytes()
            path.write_bytes(damage(content))
            try:
                client.transport.load_model(loaded, _LOAD_S)
            except DefensembleError:
                injection.add(REFUSED)
            else:
                injection.add(ACCEPTED, name)
            finally:
                path.write_bytes(content)
    return injection.end()


def _flip(content: bytes) -> bytes:
    """Return the content with one byte changed in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def _halve(content: bytes) -> bytes:
    """Return the first half of the content."""
    return content[: len(content) // 2]


def _edit_must_fail(stage: Stage, injection: Injection) -> None:
    try:
        stage.edit(_WEIGHT)
    except (DefensembleError, RepositoryError, OSError) as error:
        injection.add(REFUSED)
        injection.facts["edit"] = type(error).__name__
    else:
        injection.add(ACCEPTED, "an edit on a full disk")


def _fill(folder: Path) -> Path:
    """Fill a disk to the last byte, and return the file to delete."""
    filler = folder / _FILLER
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    assert os.statvfs(folder).f_bavail == 0
    return filler
