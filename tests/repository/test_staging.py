"""Repositories behind links and mounts: where files are staged, and what is refused before any slow work."""

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


def test_a_bound_folder_of_the_same_file_system_is_staged_inside_a_model(tmp_path: Path) -> None:
    origin = tiny.write_repository(tmp_path / "origin")
    with bound(origin, tmp_path / "bound") as place:
        assert place.stat().st_dev == tmp_path.stat().st_dev
        before = content(place)
        write_profile(place, "gpu")
        assert (origin / "alpha/configs/gpu.pbtxt").exists()
        remove_profile(place, "gpu")
        assert content(place) == before


def test_a_bound_folder_without_a_model_is_staged_inside_itself(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    with bound(tmp_path / "origin", tmp_path / "bound") as place:
        check_writable(place)
        tiny.write_repository(place)
        assert not list(place.glob(".*"))
        (stale := place / ".bound.staging-a1b2_c3d").mkdir()
        assert remove_stale_staging(place) == [stale]


@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.parametrize("target", ["other", "link"], ids=["dangling", "loop"])
def test_a_link_that_leads_nowhere_is_refused_early(tmp_path: Path, target: str, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with raises(RepositoryError, f"{tmp_path / 'link'} | {tmp_path / target}"):
        check_writable(tmp_path / "link" / below)


def test_the_command_says_so_before_it_reads_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "loop1").symlink_to(tmp_path / "loop2")
    (tmp_path / "loop2").symlink_to(tmp_path / "loop1")
    (checkpoint := tmp_path / "a.safetensors").write_bytes(b"not read")
    done = CliRunner().invoke(cli, ["export", str(checkpoint), "--repository", str(tmp_path / "loop1")])
    assert done.exit_code == 1
    assert "loop1" in done.stderr
