"""A refresh copies a member to a new version, to which all ensembles with it are switched."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble.ensembles import Ensembles
from defensemble_export import EnsembleError
from defensemble_export.editing import read_history
from defensemble_repository.pbtxt import config_from_pbtxt
from tests.support import tiny


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`ensemble` of alpha and beta, `canary` of beta and gamma, and delta, which is no member."""
    tiny.write_repository(tmp_path / "repository", {"alpha": 1, "beta": 2})
    tiny.write_repository(tmp_path / "repository", {"gamma": 3, "delta": 4}, ensemble=None)
    Ensembles(tmp_path / "repository").create("canary", ["beta", "gamma"], weights={"beta": 3.0})
    return tmp_path / "repository"


def members(repository: Path, name: str) -> list[tuple[str, int, float]]:
    return [(member.model, member.version, member.weight) for member in Ensembles(repository).declared(name).members]


def test_all_ensembles_with_the_member_are_switched(repository: Path) -> None:
    results = Ensembles(repository).refresh(["beta"], message="wrong answers")
    assert [applied.ensemble for applied in results] == ["canary", "ensemble"]
    assert members(repository, "ensemble") == [("alpha", 1, 1.0), ("beta", 2, 1.0)]
    assert members(repository, "canary") == [("beta", 2, 3.0), ("gamma", 1, 1.0)]
    assert (repository / "beta/2/model.onnx").read_bytes() == (repository / "beta/1/model.onnx").read_bytes()
    parameters = config_from_pbtxt((repository / "beta/config.pbtxt").read_text(), "beta").parameters
    for name in ("sha256", "mask_digest", "precision"):
        assert parameters[f"{name}.2"].string_value == parameters[f"{name}.1"].string_value != ""
    edits = read_history(repository)[-2:]
    assert [(edit.action, edit.message) for edit in edits] == [("refresh", "wrong answers"), ("refresh", "wrong answers")]
    assert [finding for finding in Ensembles(repository).check() if finding.is_error] == []


def test_a_refresh_can_be_undone(repository: Path) -> None:
    editor = Ensembles(repository)
    editor.refresh(["alpha@1"])
    assert members(repository, "ensemble")[0] == ("alpha", 2, 1.0)
    editor.rollback(name="ensemble")
    assert members(repository, "ensemble")[0] == ("alpha", 1, 1.0)


def test_a_model_that_is_no_member_gets_a_new_version(repository: Path) -> None:
    assert Ensembles(repository).refresh(["delta"]) == []
    assert (repository / "delta/2/model.onnx").read_bytes() == tiny.linear_onnx(4)


def test_nothing_is_written_by_a_dry_run(repository: Path) -> None:
    before = tiny.content(repository)
    editor = Ensembles(repository)
    assert [applied.dry_run for applied in editor.refresh(["beta"], dry_run=True)] == [True, True]
    assert editor.refresh(["delta"], dry_run=True) == []
    assert tiny.content(repository) == before


def test_what_cannot_be_refreshed_is_named(repository: Path) -> None:
    editor = Ensembles(repository)
    before = tiny.content(repository)
    average = next(path.name for path in repository.glob("average_*"))
    for refused, fact in (
        (["nobody"], "nobody"),
        (["beta@7"], "beta/7"),
        (["beta@x"], "beta@x"),
        (["ensemble"], "ensemble show ensemble"),
        (["delta", "ensemble"], "ensemble show ensemble"),
        ([average], f"{average}.*averaging model"),
        (["beta", "beta@1"], "beta, beta@1"),
        ([], "none"),
    ):
        for dry_run in (True, False):
            with pytest.raises(ValueError, match=fact):
                editor.refresh(refused, dry_run=dry_run)
    assert tiny.content(repository) == before
    path = repository / "alpha/1/model.onnx"
    path.write_bytes(tiny.linear_onnx(9))
    with pytest.raises(EnsembleError, match=r"alpha@1.*SHA-256"):
        editor.refresh(["alpha"])
    assert not (repository / "alpha/2").exists()


def test_a_member_at_two_versions_must_be_named_with_one(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 9)
    editor = Ensembles(repository)
    editor.add("canary", ["beta@2"], in_place_of="beta@1")
    with pytest.raises(EnsembleError, match="beta@1"):
        editor.refresh(["beta"])
    editor.refresh(["beta@2"])
    assert members(repository, "canary")[0] == ("beta", 3, 3.0)
    assert members(repository, "ensemble")[1] == ("beta", 1, 1.0)


def test_several_members_are_switched_in_one_edit_of_each_ensemble(repository: Path) -> None:
    editor = Ensembles(repository)
    results = editor.refresh(["gamma", "alpha", "beta", "delta"])
    assert [applied.ensemble for applied in results] == ["canary", "ensemble"]
    assert members(repository, "canary") == [("beta", 2, 3.0), ("gamma", 2, 1.0)]
    assert members(repository, "ensemble") == [("alpha", 2, 1.0), ("beta", 2, 1.0)]
    assert {name: sorted(path.name for path in (repository / name).glob("[0-9]*")) for name in ("alpha", "beta", "gamma", "delta")} == {
        name: ["1", "2"] for name in ("alpha", "beta", "gamma", "delta")
    }
    assert [edit.action for edit in read_history(repository)[-2:]] == ["refresh", "refresh"]
    assert [finding for finding in editor.check() if finding.is_error] == []
    editor.rollback(name="ensemble")
    assert members(repository, "ensemble") == [("alpha", 1, 1.0), ("beta", 1, 1.0)]
