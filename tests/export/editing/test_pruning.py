"""Pruning finds, by the history, what no ensemble needs, and removes it so that a server never sees a part of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import ExportError, HistoryError, planned_files, write_files, write_profile
from defensemble_export.editing import Edit, Prunable, append_edit, find_prunable, prune_files, read_history, read_snapshot
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
    """Three networks, beta at two versions; alpha and beta@1 are members, and one network never was."""
    folder = tiny.write_repository(tmp_path / "place" / "repository")
    write_files(folder, planned_files(folder, [tiny.member("gamma", 3), tiny.member("standard", 4)], ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "beta", 5)
    return folder


def edit(folder: Path, *members: Member, name: str = "ensemble", action: str = "apply", undoes: tuple[str, ...] = ()) -> None:
    """Change the ensemble to these members and record it in the history; delete it if there are none."""
    files = RepositoryView(folder)
    before = read_snapshot(files, name) if files.has(name) else None
    if members:
        planned = ensemble_files(files, Ensemble(name, members), Interface(tiny.SHAPE, 3, 8), b"circle\nsquare\ntriangle\n")
        write_files(folder, {path: content for path, content in planned.items() if files.content(path) != content})
    else:
        shutil.rmtree(folder / name)
    number = len(read_history(folder))
    after = read_snapshot(RepositoryView(folder), name) if members else None
    append_edit(folder, Edit(f"{number:012x}", f"2026-01-31T12:00:{number:02}+00:00", "a@b", name, action, None, (), undoes, before, after))


def names(pruned: list[Prunable]) -> list[str]:
    """Return `MODEL` or `MODEL@VERSION`, and only the prefix of averaging models."""
    return [item.model.partition("_")[0] if item.version is None else f"{item.model}@{item.version}" for item in pruned]


def prune(folder: Path, keep: int = 0) -> list[Prunable]:
    pruned = find_prunable(folder, keep_edits=keep)
    writes, removals = prune_files(folder, pruned)
    remove_files(folder, removals)
    write_files(folder, writes)
    return pruned


def test_keeps_members_and_models_that_were_never_members(repository: Path) -> None:
    assert find_prunable(repository, keep_edits=0) == []
    before = tiny.content(repository)
    assert prune(repository) == []
    assert tiny.content(repository) == before


def test_prunes_former_members_that_no_rollback_needs(repository: Path) -> None:
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
        assert sorted(names(find_prunable(repository, keep_edits=keep))) == expected, keep
    (gamma,) = (item for item in find_prunable(repository, keep_edits=1) if item.model == "gamma")
    assert_facts(gamma.reason, "'ensemble' | 2026-01-31T12:00:01+00:00")
    assert gamma.files == ("gamma/1/model.onnx", "gamma/config.pbtxt", "gamma/labels.txt")
    assert gamma.bytes == sum((repository / file).stat().st_size for file in gamma.files)
    (beta,) = (item for item in find_prunable(repository, keep_edits=0) if item.model == "beta")
    assert_facts(beta.reason, "version 1 | 'ensemble'")
    assert_facts(beta.reason, "version 2 | 'ensemble'")
    prune(repository)
    assert sorted(os.listdir(repository)) == sorted(
        ["alpha", "ensemble", HISTORY_FILE, "standard", *(n for n in averages if n.endswith(averaging_digest(repository)))]
    )
    assert read_repository(repository).problems == {}
    assert find_prunable(repository, keep_edits=0) == []


def averaging_digest(repository: Path) -> str:
    return str(read_config(repository / "ensemble").ensemble_scheduling.step[-1].model_name).rpartition("_")[2]


def test_undone_edits_keep_nothing(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B, action="rollback", undoes=(f"{0:012x}",))
    assert sorted(names(find_prunable(repository, keep_edits=10))) == ["average", "gamma"]


def test_keeps_what_other_ensembles_need(repository: Path) -> None:
    edit(repository, C, B2, name="canary")
    edit(repository, A, B)
    assert find_prunable(repository, keep_edits=0) == []
    edit(repository, name="canary", action="delete")
    assert find_prunable(repository, keep_edits=1) == []
    assert sorted(names(find_prunable(repository, keep_edits=0))) == ["average", "beta@2", "gamma"]


def test_prunes_each_of_two_averaging_models(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "old")
    old = {name for name in os.listdir(repository) if AVERAGING_NAME.fullmatch(name)}
    assert len(old) == 5
    for name in ("ensemble", "trimmed", "plain"):
        plan = plan_ensemble(repository, read_ensemble(repository, name))
        write_files(repository, {**plan.averaging, **plan.files})
    assert set(names(find_prunable(repository, keep_edits=0))) == {"average", "uncertainty"}
    assert {item.model for item in find_prunable(repository, keep_edits=0)} == old


def test_keeps_also_used_models(repository: Path) -> None:
    edit(repository, A, B2, C)
    edit(repository, A, C)
    edit(repository, A)
    pruned = find_prunable(repository, keep_edits=0, also_used=["gamma", "beta@2"])
    assert names([item for item in pruned if "_" not in item.model]) == ["beta@1"]
    average = next(item.model for item in pruned if "_" in item.model)
    assert average not in [item.model for item in find_prunable(repository, keep_edits=0, also_used={average})]


def test_keeps_members_of_foreign_ensembles(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A)
    path = repository / "ensemble/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "ensemble")
    config.name = "other"
    config.ensemble_scheduling.step.add(model_name="gamma", model_version=-1)
    config.ensemble_scheduling.step.add(model_name="beta", model_version=1)
    (repository / "other/1").mkdir(parents=True)
    (repository / "other/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert {item.model.partition("_")[0] for item in find_prunable(repository, keep_edits=0)} == {"average"}


def test_keeps_members_of_ensemble_profiles(repository: Path) -> None:
    edit(repository, A, B, C)
    (repository / "ensemble/configs").mkdir()
    shutil.copy(repository / "ensemble/config.pbtxt", repository / "ensemble/configs/mine.pbtxt")
    edit(repository, A)
    assert {"beta", "gamma"} & {item.model for item in find_prunable(repository, keep_edits=0)} == set()
    (repository / "ensemble/configs/mine.pbtxt").write_text("nonsense {")
    with pytest.raises(ConfigError, match=r"ensemble/configs/mine\.pbtxt"):
        find_prunable(repository, keep_edits=0)


@pytest.mark.parametrize("damage", ["nonsense {", 'name: "other"', ""])
def test_refuses_if_a_configuration_is_damaged(repository: Path, damage: str) -> None:
    edit(repository, A, B, C)
    edit(repository, A)
    (repository / "standard/config.pbtxt").write_text(damage)
    before = tiny.content(repository)
    with pytest.raises(ConfigError, match="standard"):
        find_prunable(repository, keep_edits=0)
    (repository / "standard/config.pbtxt").unlink()
    with pytest.raises(ConfigError, match="standard"):
        find_prunable(repository, keep_edits=0)
    assert set(tiny.content(repository)) == set(before) - {"standard/config.pbtxt"}


def test_refuses_a_damaged_history_and_a_negative_number(repository: Path) -> None:
    with raises(ExportError, "0 or more | -1"):
        find_prunable(repository, keep_edits=-1)
    (repository / HISTORY_FILE).write_text("{}\n")
    with pytest.raises(HistoryError, match=r"history\.jsonl:1"):
        find_prunable(repository, keep_edits=0)


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
def test_never_lists_what_no_export_wrote(repository: Path, change: Callable[[Path], None]) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    assert "gamma" in names(find_prunable(repository, keep_edits=0))
    change(repository)
    assert "gamma" not in names(find_prunable(repository, keep_edits=0))


def test_keeps_a_model_named_like_an_averaging_model(repository: Path) -> None:
    shutil.copytree(repository / "standard", repository / f"average_{0:016x}")
    config = read_config(repository / "standard")
    config.name = f"average_{0:016x}"
    (repository / f"average_{0:016x}/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert find_prunable(repository, keep_edits=0) == []


@pytest.mark.parametrize(
    "stray", ["gamma/notes.txt", "gamma/1/data.bin", "gamma/configs/notes.txt", "gamma/1/deep/model.onnx", "gamma/x/config.pbtxt"]
)
def test_keeps_a_model_with_foreign_files(repository: Path, stray: str) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    (repository / stray).parent.mkdir(parents=True, exist_ok=True)
    (repository / stray).write_text("mine")
    progress: list[str] = []
    assert "gamma" not in names(find_prunable(repository, keep_edits=0, on_progress=progress.append))
    assert_each(progress, f"{repository / 'gamma'} | {stray}")


def test_plans_reports_and_profiles_are_pruned_with_their_model(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    write_profile(repository, "cpu")
    for name in ("model.plan", "model.plan.json", "model.onnx.json"):
        (repository / "gamma/1" / name).write_text("{}")
    assert "gamma" in names(prune(repository))
    assert not (repository / "gamma").exists()


# --- one version of a model that stays


def test_configurations_no_longer_describe_a_pruned_version(repository: Path) -> None:
    write_profile(repository, "cpu")
    (repository / "beta/configs/mine.pbtxt").write_bytes(b"# mine\n" + (repository / "beta/config.pbtxt").read_bytes())
    edit(repository, A, B2)
    pruned = find_prunable(repository, keep_edits=0)
    (beta,) = (item for item in pruned if item.model == "beta")
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
    assert [item for item in find_prunable(repository, keep_edits=0) if item.model == "beta"] == []


def read_text(path: Path) -> schema.ModelConfig:
    return config_from_pbtxt(path.read_text(), str(path))


def test_the_newest_version_is_pruned_only_if_it_was_a_member(repository: Path) -> None:
    edit(repository, A, B2)
    edit(repository, A, B)
    assert "beta@2" in names(find_prunable(repository, keep_edits=0))
    tiny.write_second_version(repository, "beta", 6)
    assert [item for item in names(find_prunable(repository, keep_edits=0)) if item.startswith("beta")] == ["beta@2"]
    edit(repository, A)
    # Version 3 was never a member: it may become one.
    assert [item for item in names(prune(repository)) if item.startswith("beta")] == ["beta@1", "beta@2"]
    assert sorted(os.listdir(repository / "beta")) == ["3", "config.pbtxt", "labels.txt"]


def test_pruned_versions_leave_the_policy_but_never_the_last(repository: Path) -> None:
    edit(repository, A, B2)
    config = read_config(repository / "beta")
    config.version_policy.specific.versions[:] = [1, 2]
    (repository / "beta/config.pbtxt").write_bytes(pbtxt_from_config(config))
    assert "beta@1" in names(prune(repository))
    assert list(read_config(repository / "beta").version_policy.specific.versions) == [2]

    tiny.write_second_version(repository, "beta", 6)
    edit(repository, A)
    progress: list[str] = []
    averaging = [name for name in os.listdir(repository) if "_" in name]
    assert find_prunable(repository, keep_edits=0, on_progress=progress.append, also_used=averaging) == []
    assert_each(progress, f"{repository / 'beta'} | version_policy")


def test_refuses_files_that_changed_since_they_were_listed(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B2)
    pruned = find_prunable(repository, keep_edits=0)
    (repository / "gamma/1/new.txt").write_text("")
    with raises(ExportError, "gamma | again"):
        prune_files(repository, pruned)
    shutil.rmtree(repository / "gamma")
    with raises(ExportError, "gamma | again"):
        prune_files(repository, pruned)


# --- killed, refused, links, mounts


def test_a_kill_at_any_rename_leaves_a_servable_repository(tmp_path: Path, repository: Path) -> None:
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
            pruned = read_repository(folder, profile=profile)
            assert pruned.problems == {}, f"killed at rename {number}"
            for model in pruned.models.values():
                assert model.is_ensemble or all(model.parameter(f"sha256.{version}") for version in model.versions), f"rename {number}"
        assert read_ensemble(folder, "ensemble").members == (A, B2)
        assert len(remove_stale_staging(folder)) == (1 if status else 0)
        again = prune(folder)
        assert bool(again) == bool(status)
        if number == 8:
            (beta,) = again
            assert (beta.model, beta.version, beta.files, beta.bytes) == ("beta", 1, (), 0)
            assert "config.pbtxt" in beta.reason
        assert tiny.content(folder) == whole
        assert os.listdir(folder.parent) == ["repository"]


def test_what_cannot_be_removed_stays_complete(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_unreadable_folder_is_an_error(repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    (repository / "gamma/1").chmod(0)
    try:
        with pytest.raises(PermissionError):
            find_prunable(repository, keep_edits=0)
    finally:
        (repository / "gamma/1").chmod(0o755)


def test_links_are_removed_but_not_their_targets(tmp_path: Path, repository: Path) -> None:
    edit(repository, A, B, C)
    edit(repository, A, B)
    shutil.move(repository / "gamma", tmp_path / "gamma")
    (repository / "gamma").symlink_to(tmp_path / "gamma")
    assert "gamma" in names(prune(repository))
    assert not (repository / "gamma").is_symlink()
    assert (tmp_path / "gamma/1/model.onnx").exists()


def test_removals_in_a_mount_are_not_staged_in_a_removed_model(tmp_path: Path, repository: Path) -> None:
    edit(repository, B2, C)
    with bound(repository, tmp_path / "bound") as place:
        assert next(iter(sorted(os.listdir(place)))) == "alpha"
        pruned = prune(place)
        assert {"alpha", "beta@1"} <= set(names(pruned))
        assert "alpha" not in os.listdir(place)
        remove_files(place, [entry.name for entry in place.iterdir() if entry.is_dir()])
        assert [entry.name for entry in place.iterdir() if entry.is_dir()] == []


def test_pruning_the_last_model_keeps_the_repository(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository", ensemble=None)
    remove_files(repository, ["alpha", "beta"])
    assert os.listdir(tmp_path) == ["repository"]
    assert os.listdir(repository) == []
