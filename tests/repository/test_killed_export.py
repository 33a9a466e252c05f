"""A killed export leaves the old or the new repository, and the next export continues from it."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
from pathlib import Path

import pytest

from defensemble_export import planned_files, write_files
from defensemble_repository.transaction import remove_stale_staging
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.killing import killed_at_each_rename
from tests.support.tiny import member

# The parent of the repository is not writable, so files are staged inside a model.
INSIDE = "; import defensemble_repository.transaction as writing; writing.can_write = lambda folder: folder.parent.name == 'repository'"


@pytest.mark.parametrize("parent", ["", pytest.param(INSIDE, marks=pytest.mark.slow)], ids=["parent", "model"])
def test_a_kill_at_any_rename_leaves_a_servable_repository(tmp_path: Path, parent: str) -> None:
    old = tiny.write_repository(tmp_path / "old" / "repository", weight={"beta": 3.0})
    (old / "alpha/configs").mkdir()
    (old / "alpha/configs/gpu.pbtxt").write_bytes((old / "alpha/config.pbtxt").read_bytes())
    members = [member("alpha", 7), member("gamma", 8), member("beta", 9)]
    (tmp_path / "plan").write_bytes(pickle.dumps(planned_files(old, members, replace=True)))
    plan = f"import pickle; from defensemble_export import write_files; plan = pickle.loads(Path({str(tmp_path / 'plan')!r}).read_bytes())"
    statuses = killed_at_each_rename(old, tmp_path, prepare=plan + parent, act="write_files(repository, plan)")
    # alpha: two configurations and version 2; gamma; beta: configuration and version 2; the averaging model; the ensemble.
    assert statuses == [-signal.SIGKILL] * 8 + [0]

    before = [("alpha", 1), ("beta", 1)]
    after = [("alpha", 2), ("beta", 2), ("gamma", 1)]
    for number, status in enumerate(statuses, 1):
        repository = tmp_path / str(number) / "repository"
        for profile in (None, "gpu"):
            state = read_repository(repository, profile=profile)
            assert state.problems == {}, f"killed at rename {number}"
            assert state.models["ensemble"].members == (before if status else after)
            for model in state.models.values():
                undigested = [version for version in model.versions if model.parameter(f"sha256.{version}") is None]
                assert model.is_ensemble or undigested == [], f"killed at rename {number}: {model.name} serves files without digests"
        stale = remove_stale_staging(repository)
        assert len(stale) == (1 if status else 0)
        assert not stale or (stale[0].parent == repository.parent) == (not parent)
        assert os.listdir(repository.parent) == ["repository"]
        write_files(repository, planned_files(repository, members, replace=True))
        assert read_repository(repository).problems == {}
        assert [name for name, _ in read_repository(repository).models["ensemble"].members] == ["alpha", "beta", "gamma"]


def test_only_stale_staging_folders_are_removed(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    stale = tmp_path / ".repository.staging-a1b2_c3d"
    in_use = tmp_path / ".repository.staging-a1b2_c3e"
    others = [tmp_path / name for name in (".repository.staging-mine", ".other.staging-a1b2_c3d", "repository.staging-a1b2_c3d")]
    for folder in (stale, in_use, *others):
        (folder / "alpha").mkdir(parents=True)
    descriptor = os.open(in_use, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert remove_stale_staging(repository) == [stale]
    finally:
        os.close(descriptor)
    assert sorted(tmp_path.iterdir()) == sorted([repository, in_use, *others])
    assert remove_stale_staging(tmp_path / "not" / "there") == []


def test_stale_staging_is_found_behind_a_link(tmp_path: Path) -> None:
    real = tiny.write_repository(tmp_path / "disk" / "models")
    link = tmp_path / "link"
    link.symlink_to(real)
    (stale := tmp_path / "disk" / ".models.staging-a1b2_c3d").mkdir()
    assert remove_stale_staging(link) == [stale]


def test_a_failed_flush_keeps_the_stale_staging_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    (stale := tmp_path / ".repository.staging-a1b2_c3d").mkdir()

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        remove_stale_staging(repository)
    assert stale.exists()
