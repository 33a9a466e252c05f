"""Repositories behind links and mounts: where files are staged, and which paths are rejected early."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_export import remove_profile, write_profile
from defensemble_repository.errors import RepositoryError
from defensemble_repository.transaction import check_writable, remove_stale_staging
from tests.support import tiny
from tests.support.broken import bound, content
from tests.support.facts import raises


def test_a_bind_mount_is_staged_inside_a_model(tmp_path: Path) -> None:
    origin = tiny.write_repository(tmp_path / "origin")
    with bound(origin, tmp_path / "bound") as mount:
        assert mount.stat().st_dev == tmp_path.stat().st_dev
        before = content(mount)
        write_profile(mount, "gpu")
        assert (origin / "alpha/configs/gpu.pbtxt").exists()
        remove_profile(mount, "gpu")
        assert content(mount) == before


def test_a_bind_mount_without_models_is_staged_inside_itself(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    with bound(tmp_path / "origin", tmp_path / "bound") as mount:
        check_writable(mount)
        tiny.write_repository(mount)
        assert not list(mount.glob(".*"))
        (stale := mount / ".bound.staging-a1b2_c3d").mkdir()
        assert remove_stale_staging(mount) == [stale]


@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.parametrize("target", ["other", "link"], ids=["dangling", "loop"])
def test_check_writable_rejects_a_dangling_link(tmp_path: Path, target: str, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with raises(RepositoryError, f"{tmp_path / 'link'} | {tmp_path / target}"):
        check_writable(tmp_path / "link" / below)


def test_export_rejects_a_dangling_link_before_reading_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "loop1").symlink_to(tmp_path / "loop2")
    (tmp_path / "loop2").symlink_to(tmp_path / "loop1")
    (checkpoint := tmp_path / "a.safetensors").write_bytes(b"not read")
    done = CliRunner().invoke(cli, ["export", str(checkpoint), "--repository", str(tmp_path / "loop1")])
    assert done.exit_code == 2
    assert "loop1" in done.stderr
