from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError
from defensemble.probes.image_cache import cache_path, cached_images, check_space
from tests.support.facts import raises

Array = np.ndarray[Any, Any]
SHAPE = (200, 1, 4, 5)
ORACLE = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
ORIGIN = {"of": "a test", "seed": 0}


class StoppedError(Exception):
    pass


def recorder(made: list[int], stop_at: int | None = None) -> Callable[[int], Array]:
    def make(index: int) -> Array:
        if index == stop_at:
            raise StoppedError
        made.append(index)
        image: Array = ORACLE[index]
        return image

    return make


def cached(folder: Path, made: list[int], origin: dict[str, Any] = ORIGIN, stop_at: int | None = None) -> Array:
    return cached_images(folder, "fog-3", origin, SHAPE, recorder(made, stop_at), lambda done: None)


def test_images_are_made_once_and_the_file_is_a_plain_npy_file(tmp_path: Path) -> None:
    made: list[int] = []
    progress: list[int] = []
    for _ in range(2):
        images = cached_images(tmp_path / "a" / "b", "fog-3", ORIGIN, SHAPE, recorder(made), progress.append)
        np.testing.assert_array_equal(images, ORACLE)
        assert not images.flags.writeable
    assert made == list(range(200))
    assert progress == [64, 128, 192, 200, 200, 200]
    np.testing.assert_array_equal(np.load(cache_path(tmp_path / "a" / "b", "fog-3", ORIGIN), mmap_mode="r"), ORACLE)


def test_another_origin_is_another_file(tmp_path: Path) -> None:
    made: list[int] = []
    cached(tmp_path, made)
    cached(tmp_path, made, {**ORIGIN, "seed": 1})
    assert len(made) == 400


@pytest.mark.parametrize(("stop_at", "again_from"), [(0, 0), (1, 0), (64, 0), (65, 64), (130, 128), (199, 192)])
def test_an_interrupted_run_is_continued(tmp_path: Path, stop_at: int, again_from: int) -> None:
    made: list[int] = []
    with pytest.raises(StoppedError):
        cached(tmp_path, [], stop_at=stop_at)
    np.testing.assert_array_equal(cached(tmp_path, made), ORACLE)
    assert made == list(range(again_from, 200))


@pytest.mark.parametrize("kept", [0, 1, 100, 128 + 20 * 64 - 1, 128 + 20 * 64, 128 + 20 * 150 + 7])
def test_a_killed_process_leaves_a_file_that_is_continued(tmp_path: Path, kept: int) -> None:
    path = cache_path(tmp_path, "fog-3", ORIGIN)
    cached(tmp_path, [])
    path.with_suffix(".json").unlink()
    os.truncate(path, kept)
    np.testing.assert_array_equal(cached(tmp_path, []), ORACLE)


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        cached_images(tmp_path, "fog-3", ORIGIN, SHAPE, lambda index: ORACLE[index], lambda done: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    np.testing.assert_array_equal(cached(tmp_path, []), ORACLE)


def test_a_power_failure_in_the_last_batch_is_repaired(tmp_path: Path) -> None:
    path = cache_path(tmp_path, "fog-3", ORIGIN)
    cached(tmp_path, [])
    path.with_suffix(".json").unlink()
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    np.testing.assert_array_equal(cached(tmp_path, []), ORACLE)


@pytest.mark.parametrize("damage", ["pixels", "length", "digest", "json"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    path = cache_path(tmp_path, "fog-3", ORIGIN)
    cached(tmp_path, [])
    content, stated = path.read_bytes(), path.with_suffix(".json")
    if damage == "pixels":
        path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "length":
        path.write_bytes(content[:-1])
    else:
        stated.write_text('{"sha256": "0"}' if damage == "digest" else "{")
    made: list[int] = []
    np.testing.assert_array_equal(cached(tmp_path, made), ORACLE)
    assert len(made) == 200
    np.testing.assert_array_equal(cached(tmp_path, made), ORACLE)
    assert len(made) == 200


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 20 * 100, limits[1]))
    try:
        with raises(OSError, str(cache_path(tmp_path, "fog-3", ORIGIN))):
            cached(tmp_path, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    made: list[int] = []
    np.testing.assert_array_equal(cached(tmp_path, made), ORACLE)
    assert made[0] == 64


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with raises(InputError, f"{1 << 62:,} | --cache | {tmp_path / 'new'}"):
        check_space(tmp_path / "new", 1 << 62)
    check_space(tmp_path / "new", 1)
    assert not (tmp_path / "new").exists()
