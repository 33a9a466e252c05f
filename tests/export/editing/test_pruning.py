"""What no ensemble needs any more: found by the history, never more than it, and removed so that a server never sees half of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import ExportError, HistoryError, repository_plan, write_files, write_profile
from defensemble_export.editing import Edit, Prunable, append_edit, prune_files, prune_plan, read_history, read_snapshot
from defensemble_export.editing.plan import plan_ensemble
from defensemble_export.entries.ensemble import ensemble_files
from defensemble_repository.configs import Interface
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError
from defensemble_repository.names import AVERAGING_NAME, HISTORY_FILE
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.profile_digest import matches_digest
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_repository.transaction import remove_files, remove_stale_staging
from defensemble_repository.view import RepositoryView
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.broken import bound
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.killing import killed_at_each_rename
from tests.support.two_models import write_old_repository

A, B, C, B2 = Member("alpha"), Member("beta"), Member("gamma"), Member("beta", 2)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three members, beta at two versions, of which alpha and beta@1 vote; and a network that never voted."""
    folder = tiny.write_repository(tmp_path / "place" / "repository")
    write_files(folder, repository_plan(folder, [tiny.member("gamma", 3), tiny.member("standard", 4)], ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "beta", 5)
    return folder


def edit(folder: Path, *votes: Member, name: str = "ensemble", action: str = "apply", undoes: tuple[str, ...] = ()) -> None:
    """Let these vote, and write it into the history; without any the ensemble is deleted."""
    files = RepositoryView(folder)
    before = read_snapshot(files, name) if files.has(name) else None
    if votes:
        planned = ensemble_files(files, Ensemble(name, votes), Interface(tiny.SHAPE, 3, 8), b"circle\nsquare\ntriangle\n")
        write_files(folder, {path: content for path, content in planned.items() if files.content(path) != content})
    else:
        shutil.rmtree(folder / name)
    number = len(read_history(folder))
    after = read_snapshot(RepositoryView(folder), name) if votes else None
    append_edit(folder, Edit(f"{number:012x}", f"2026-01-31T12:00:{number:02}+00:00", "a@b", name, action, None, (), undoes, before, after))


def names(found: list[Prunable]) -> list[str]:
    """As a person would write them, averaging models by their kind."""
    return [one.model.partition("_")[0] if one.version is None else f"{one.model}@{one.version}" for one in found]


def prune(folder: Path, keep: int = 0) -> list[Prunable]:
    found = prune_plan(folder, keep=keep)
    writes, removals = prune_files(folder, found)
    remove_files(folder, removals)
    write_files(folder, writes)
    return found


def test_what_votes_or_never_voted_stays(repository: Path) -> None:
    assert prune_plan(repository, keep=0) == []
    before = tiny.content(repository)
    assert prune(repository) == []
    assert tiny.content(repository) == before


def test_what_voted_once_goes_when_no_rollback_needs_it(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B2)
    edit(repository, A)
    averages = [name for name in os.listdir(repository) if name.startswith("average_")]
    assert len(averages) == 4
    for keep, expected in (
        (4, []),
        (3, []),
        (2, ["average"]),
        (1, ["average", "average", "beta@1", "gamma"]),
        (0, ["average"] * 3 + ["beta", "gamma"]),
    ):
        assert sorted(names(prune_plan(repository, keep=keep))) == expected, keep
    (gamma,) = (one for one in prune_plan(repository, keep=1) if one.model == "gamma")
    assert_facts(gamma.why, "'ensemble' | 2026-01-31T12:00:01+00:00")
    assert gamma.files == ("gamma/1/model.onnx", "gamma/config.pbtxt", "gamma/labels.txt")
    assert gamma.bytes == sum((repository / file).stat().st_size for file in gamma.files)
    (beta,) = (one for one in prune_plan(repository, keep=0) if one.model == "beta")
    assert_facts(beta.why, "version 1 | 'ensemble'")
    assert_facts(beta.why, "version 2 | 'ensemble'")
    prune(repository)
    assert sorted(os.listdir(repository)) == sorted(
        ["alpha", "ensemble", HISTORY_FILE, "standard", *(n for n in averages if n.endswith(averaging_digest(repository)))]
    )
    assert read_repository(repository).problems == {}
    assert prune_plan(repository, keep=0) == []


def averaging_digest(repository: Path) -> str:
    return str(read_config(repository / "ensemble").ensemble_scheduling.step[-1].model_name).rpartition("_")[2]


def test_what_a_rollback_has_undone_is_no_state_to_go_back_to(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B, action="rollback", undoes=(f"{0:012x}",))
    assert sorted(names(prune_plan(repository, keep=10))) == ["average", "gamma"]


def test_another_ensemble_and_its_history_count_too(repository: Path) -> None:
    edit(repository, C, B2, name="canary")
    edit(repository, A, B)
    assert prune_plan(repository, keep=0) == []
    edit(repository, name="canary", action="delete")
    assert prune_plan(repository, keep=1) == []
    assert sorted(names(prune_plan(repository, keep=0))) == ["average", "beta@2", "gamma"]


def test_each_of_two_averaging_models_goes_when_no_rollback_needs_it(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "old")
    old = {name for name in os.listdir(repository) if AVERAGING_NAME.fullmatch(name)}
    assert len(old) == 5
    for name in ("ensemble", "trimmed", "plain"):
        plan = plan_ensemble(repository, read_ensemble(repository, name))
        write_files(repository, {**plan.averaging, **plan.files})
    assert set(names(prune_plan(repository, keep=0))) == {"average", "uncertainty"}
    assert {one.model for one in prune_plan(repository, keep=0)} == old


def test_what_is_used_otherwise_is_named_by_the_caller(repository: Path) -> None:
    edit(repository, A, B2, C)
    edit(repository, A, C)
    edit(repository, A)
    found = prune_plan(repository, keep=0, also_used=["gamma", "beta@2"])
    assert names([one for one in found if "_" not in one.model]) == ["beta@1"]
    average = next(one.model for one in found if "_" in one.model)
    assert average not in [one.model for one in prune_plan(repository, keep=0, also_used={average})]


def test_an_ensemble_that_is_wired_otherwise_is_no_reason_to_guess(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A)
    path = repository / "ensemble/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "ensemble")
    config.name = "other"
    config.ensemble_scheduling.step.add(model_name="gamma", model_version=-1)
    config.ensemble_scheduling.step.add(model_name="beta", model_version=1)
    (repository / "other/1").mkdir(parents=True)
    (repository / "other/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert {one.model.partition("_")[0] for one in prune_plan(repository, keep=0)} == {"average"}


def test_a_profile_of_an_ensemble_that_a_hand_has_written_counts_too(repository: Path) -> None:
    edit(repository, A, B, C)
    (repository / "ensemble/configs").mkdir()
    shutil.copy(repository / "ensemble/config.pbtxt", repository / "ensemble/configs/mine.pbtxt")
    edit(repository, A)
    assert {"beta", "gamma"} & {one.model for one in prune_plan(repository, keep=0)} == set()
    (repository / "ensemble/configs/mine.pbtxt").write_text("nonsense {")
    with pytest.raises(ConfigError, match=r"ensemble/configs/mine\.pbtxt"):
        prune_plan(repository, keep=0)


@pytest.mark.parametrize("damage", ["nonsense {", 'name: "other"', ""])
def test_a_damaged_configuration_anywhere_is_no_reason_to_guess(repository: Path, damage: str) -> None:
    edit(repository, A, B, C)
    edit(repository, A)
    (repository / "standard/config.pbtxt").write_text(damage)
    before = tiny.content(repository)
    with pytest.raises(ConfigError, match="standard"):
        prune_plan(repository, keep=0)
    (repository / "standard/config.pbtxt").unlink()
    with pytest.raises(ConfigError, match="standard"):
        prune_plan(repository, keep=0)
    assert set(tiny.content(repository)) == set(before) - {"standard/config.pbtxt"}


def test_nor_is_a_damaged_history_or_a_number_below_0(repository: Path) -> None:
    with raises(ExportError, "0 or more | -1"):
        prune_plan(repository, keep=-1)
    (repository / HISTORY_FILE).write_text("{}\n")
    with pytest.raises(HistoryError, match=r"history\.jsonl:1"):
        prune_plan(repository, keep=0)


def undigested(repository: Path) -> None:
    path = repository / "gamma/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "gamma")
    del config.parameters["sha256.1"]
    path.write_bytes(pbtxt_from_config(config))


def like_a_fused_graph(repository: Path) -> None:
    path = repository / "gamma/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "gamma")
    for key in ("average", "weights", "members"):
        config.parameters[key].string_value = "[]"
    path.write_bytes(pbtxt_from_config(config))


@pytest.mark.parametrize("change", [undigested, like_a_fused_graph])
def test_what_no_export_wrote_is_never_listed(repository: Path, change: Callable[[Path], None]) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    assert "gamma" in names(prune_plan(repository, keep=0))
    change(repository)
    assert "gamma" not in names(prune_plan(repository, keep=0))


def test_a_model_named_like_an_average_is_none(repository: Path) -> None:
    shutil.copytree(repository / "standard", repository / f"average_{0:016x}")
    config = read_config(repository / "standard")
    config.name = f"average_{0:016x}"
    (repository / f"average_{0:016x}/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert prune_plan(repository, keep=0) == []


@pytest.mark.parametrize(
    "stray", ["gamma/notes.txt", "gamma/1/data.bin", "gamma/configs/notes.txt", "gamma/1/deep/model.onnx", "gamma/x/config.pbtxt"]
)
def test_a_file_of_somebody_elses_is_left_alone_with_its_model(repository: Path, stray: str) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    (repository / stray).parent.mkdir(parents=True, exist_ok=True)
    (repository / stray).write_text("mine")
    said: list[str] = []
    assert "gamma" not in names(prune_plan(repository, keep=0, on_progress=said.append))
    assert_each(said, f"{repository / 'gamma'} | {stray}")


def test_plans_reports_and_profiles_go_with_their_model(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    write_profile(repository, "cpu")
    for name in ("model.plan", "model.plan.json", "model.onnx.json"):
        (repository / "gamma/1" / name).write_text("{}")
    assert "gamma" in names(prune(repository))
    assert not (repository / "gamma").exists()


# --- one version of a model that stays


def test_a_version_takes_along_what_the_configurations_say_of_it(repository: Path) -> None:
    write_profile(repository, "cpu")
    (repository / "beta/configs/mine.pbtxt").write_bytes(b"# mine\n" + (repository / "beta/config.pbtxt").read_bytes())
    edit(repository, A, B2)
    found = prune_plan(repository, keep=0)
    (beta,) = (one for one in found if one.model == "beta")
    assert (beta.version, beta.files) == (1, ("beta/1/model.onnx",))
    writes, removals = prune_files(repository, [beta])
    assert list(writes) == ["beta/configs/cpu.pbtxt", "beta/configs/mine.pbtxt", "beta/config.pbtxt"]
    assert removals == ["beta/1"]
    for path, content in writes.items():
        before, after = read_text(repository / path), config_from_pbtxt(content.decode(), path)
        gone = {"sha256.1", "mask_digest.1", "precision.1"}
        assert set(before.parameters) - set(after.parameters) == gone
        assert matches_digest(after) == matches_digest(before) == path.endswith("cpu.pbtxt")
        for key in gone:
            del before.parameters[key]
        before.parameters["profile.sha256"].string_value = after.parameters["profile.sha256"].string_value = ""
        assert before == after
    remove_files(repository, removals)
    write_files(repository, writes)
    assert not (repository / "beta/1").exists()
    assert read_repository(repository).problems == {}
    assert [one for one in prune_plan(repository, keep=0) if one.model == "beta"] == []


def read_text(path: Path) -> schema.ModelConfig:
    return config_from_pbtxt(path.read_text(), str(path))


def test_the_newest_version_goes_only_where_it_voted_once(repository: Path) -> None:
    edit(repository, A, B2)
    edit(repository, A, B)
    assert "beta@2" in names(prune_plan(repository, keep=0))
    tiny.write_second_version(repository, "beta", 6)
    assert [one for one in names(prune_plan(repository, keep=0)) if one.startswith("beta")] == ["beta@2"]
    edit(repository, A)
    # Version 3 never voted: a new one, which may be about to.
    assert [one for one in names(prune(repository)) if one.startswith("beta")] == ["beta@1", "beta@2"]
    assert sorted(os.listdir(repository / "beta")) == ["3", "config.pbtxt", "labels.txt"]


def test_a_version_that_a_policy_names_is_taken_out_of_it_but_never_the_last(repository: Path) -> None:
    edit(repository, A, B2)
    config = read_config(repository / "beta")
    config.version_policy.specific.versions[:] = [1, 2]
    (repository / "beta/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert "beta@1" in names(prune(repository))
    assert list(read_config(repository / "beta").version_policy.specific.versions) == [2]

    tiny.write_second_version(repository, "beta", 6)
    edit(repository, A)
    said: list[str] = []
    assert prune_plan(repository, keep=0, on_progress=said.append, also_used=[name for name in os.listdir(repository) if "_" in name]) == []
    assert_each(said, f"{repository / 'beta'} | version_policy")


def test_files_that_changed_since_they_were_listed_are_not_removed(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B2)
    found = prune_plan(repository, keep=0)
    (repository / "gamma/1/new.txt").write_text("")
    with raises(ExportError, "gamma | again"):
        prune_files(repository, found)
    shutil.rmtree(repository / "gamma")
    with raises(ExportError, "gamma | again"):
        prune_files(repository, found)


# --- killed, refused, links, mounts


def test_a_kill_at_any_rename_leaves_what_can_be_served_and_the_next_prune_ends_it(tmp_path: Path, repository: Path) -> None:
    edit(repository, A, B, C)
    write_profile(repository, "cpu")
    edit(repository, A, B2)
    prepare = "from tests.export.editing.test_pruning import prune"
    statuses = killed_at_each_rename(repository, tmp_path, prepare=prepare, act="prune(repository)")
    # The averages of two states, beta@1, gamma; beta's profile and configuration.
    assert statuses == [-signal.SIGKILL] * 6 + [0]
    whole = tiny.content(tmp_path / "7" / "repository")
    for number, status in enumerate(statuses, 1):
        folder = tmp_path / str(number) / "repository"
        for profile in (None, "cpu"):
            found = read_repository(folder, profile=profile)
            assert found.problems == {}, f"killed at rename {number}"
            for model in found.models.values():
                assert model.is_ensemble or all(model.parameter(f"sha256.{version}") for version in model.versions), f"rename {number}"
        assert read_ensemble(folder, "ensemble").members == (A, B2)
        assert len(remove_stale_staging(folder)) == (1 if status else 0)
        again = prune(folder)
        assert bool(again) == bool(status)
        if number == 8:
            (beta,) = again
            assert (beta.model, beta.version, beta.files, beta.bytes) == ("beta", 1, (), 0)
            assert "config.pbtxt" in beta.why
        assert tiny.content(folder) == whole
        assert os.listdir(folder.parent) == ["repository"]


def test_what_cannot_be_removed_stays_whole(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B2)
    before = tiny.content(repository.parent)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "gamma" and Path(source).parent == repository:
            raise PermissionError(13, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError, match="gamma"):
        prune(repository)
    assert tiny.content(repository.parent) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    (repository / "gamma/1").chmod(0)
    try:
        with pytest.raises(PermissionError):
            prune_plan(repository, keep=0)
    finally:
        (repository / "gamma/1").chmod(0o755)


def test_of_a_link_the_link_goes_and_not_what_it_leads_to(tmp_path: Path, repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    shutil.move(repository / "gamma", tmp_path / "gamma")
    (repository / "gamma").symlink_to(tmp_path / "gamma")
    assert "gamma" in names(prune(repository))
    assert not (repository / "gamma").is_symlink()
    assert (tmp_path / "gamma/1/model.onnx").exists()


def test_in_a_mount_a_model_that_goes_is_not_where_others_wait(tmp_path: Path, repository: Path) -> None:
    edit(repository, B2, C)
    with bound(repository, tmp_path / "bound") as place:
        assert next(iter(sorted(os.listdir(place)))) == "alpha"
        found = prune(place)
        assert {"alpha", "beta@1"} <= set(names(found))
        assert "alpha" not in os.listdir(place)
        remove_files(place, [entry.name for entry in place.iterdir() if entry.is_dir()])
        assert [entry.name for entry in place.iterdir() if entry.is_dir()] == []


def test_the_last_model_does_not_take_the_repository_along(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository", ensemble=None)
    remove_files(repository, ["alpha", "beta"])
    assert os.listdir(tmp_path) == ["repository"]
    assert os.listdir(repository) == []
