"""The preprocessing, from an export to every configuration and through every edit of an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from defensemble.cli import cli
from defensemble_export import (
    EnsembleError,
    ExportError,
    OnnxSource,
    check_ensemble,
    check_repository,
    export_networks,
    fuse_repository,
    fused_member,
    member_from_onnx,
    planned_files,
    write_files,
    write_profile,
)
from defensemble_export.editing import read_snapshot
from defensemble_export.editing.membership import add_members, remove_members
from defensemble_export.editing.plan import EditPlan, plan_creation, plan_ensemble, plan_snapshot
from defensemble_images import Preprocessing
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.preprocessing import common_preprocessing
from defensemble_repository.reader import parameter, read_config, read_ensemble
from defensemble_repository.target import EMBEDDED
from defensemble_repository.view import RepositoryView
from defensemble_server.repository import read_repository
from tests.support import foreign_models, tiny

CROP, SQUASH = Preprocessing("crop"), Preprocessing("squash")
SPACED = '{"filter":"bicubic","resize" : "crop", "version":1}'
UNREADABLE = ("", "crop", "[1]", "{", "[" * 99_999)


def export(repository: Path, rules: Mapping[str, Preprocessing | None], ensemble: str | None = "ensemble") -> Path:
    members = [tiny.member(name, seed, preprocessing=rule) for seed, (name, rule) in enumerate(rules.items(), 1)]
    write_files(repository, planned_files(repository, members, ensemble=ensemble, max_batch_size=8, replace=True))
    return repository


def read_preprocessing(repository: Path, model: str) -> str | None:
    return parameter(read_config(repository / model), "preprocessing")


def write_preprocessing(repository: Path, model: str, text: str | None) -> None:
    """Edit the parameter by hand, or remove it."""
    path = repository / model / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), model)
    config.parameters["preprocessing"].string_value = text or ""
    if text is None:
        del config.parameters["preprocessing"]
    path.write_bytes(pbtxt_from_config(config))


def write(plan: EditPlan) -> None:
    write_files(plan.repository, {**plan.averaging, **plan.files})


def both_and_a_fix(error: BaseException, *members: str) -> bool:
    return all(f"'{member}'" in str(error) for member in members) and all(text in str(error) for text in ('"crop"', '"squash"', "Remove"))


@given(st.lists(st.sampled_from([None, CROP.to_json(), SPACED, SQUASH.to_json()]), max_size=6))
def test_models_agree_unless_two_rules_differ(texts: list[str | None]) -> None:
    models = {f"m{index}": text for index, text in enumerate(texts)}
    rules = {Preprocessing.from_json(text, "") for text in texts if text is not None}
    if len(rules) > 1:
        with pytest.raises(EnsembleError):
            common_preprocessing(models)
    else:
        agreed = common_preprocessing(models)
        assert ({Preprocessing.from_json(agreed, "")} if agreed is not None else set()) == rules


@pytest.mark.parametrize("rule", [CROP, SQUASH, None])
def test_members_ensemble_and_fused_graph_contain_the_preprocessing(tmp_path: Path, rule: Preprocessing | None) -> None:
    repository = export(tmp_path / "repository", {"alpha": None, "beta": rule})
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(2))
    text = None if rule is None else rule.to_json()
    assert [read_preprocessing(repository, model) for model in ("alpha", "beta", "ensemble", "fused")] == [None, text, text, text]
    notes = {entry.key: entry.value for entry in onnx.load(repository / "fused/1/model.onnx").metadata_props}
    assert notes.get("defensemble.preprocessing") == text
    assert check_repository(RepositoryView(repository), EMBEDDED) == []


def test_older_members_and_ensembles_get_the_preprocessing_with_the_next_export(tmp_path: Path) -> None:
    repository = export(tmp_path / "repository", {"alpha": None, "beta": None})
    write_profile(repository, "cpu")
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(2))
    export(repository, {"beta": SQUASH})
    assert [read_preprocessing(repository, model) for model in ("alpha", "beta", "ensemble")] == [None, SQUASH.to_json(), SQUASH.to_json()]
    profile = config_from_pbtxt((repository / "beta/configs/cpu.pbtxt").read_text(), "beta")
    assert parameter(profile, "preprocessing") == SQUASH.to_json()
    write_profile(repository, "cpu")  # a hand edit would be rejected
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(2), replace=True)
    assert read_preprocessing(repository, "fused") == SQUASH.to_json()
    export(repository, {"beta": None})
    assert read_preprocessing(repository, "beta") == SQUASH.to_json(), "a new version that states none fits, and changes nothing"


def test_edits_keep_the_preprocessing_of_the_ensemble_equal_to_its_members(tmp_path: Path) -> None:
    repository = export(tmp_path / "repository", {"alpha": None, "beta": CROP}, ensemble=None)
    write(plan_creation(repository, Ensemble("ensemble", (Member("alpha"),))))
    before = read_snapshot(RepositoryView(repository), "ensemble")
    assert read_preprocessing(repository, "ensemble") is None
    write(plan_ensemble(repository, add_members(read_ensemble(repository, "ensemble"), [Member("beta")])))
    after = read_snapshot(RepositoryView(repository), "ensemble")
    assert read_preprocessing(repository, "ensemble") == CROP.to_json()
    write(plan_ensemble(repository, remove_members(read_ensemble(repository, "ensemble"), ["beta"])))
    assert read_preprocessing(repository, "ensemble") is None
    write_preprocessing(repository, "beta", SPACED)
    write(plan_snapshot(repository, "ensemble", after))
    assert read_preprocessing(repository, "ensemble") == SPACED, "what the member states now, not what it stated then"
    write(plan_snapshot(repository, "ensemble", before))
    assert read_preprocessing(repository, "ensemble") is None
    write_preprocessing(repository, "ensemble", SQUASH.to_json())
    write(plan_ensemble(repository, read_ensemble(repository, "ensemble")))
    assert read_preprocessing(repository, "ensemble") is None, "a reload makes it what the members state"


def test_members_with_different_preprocessing_are_rejected_everywhere(tmp_path: Path) -> None:
    repository = export(tmp_path / "repository", {"alpha": CROP, "beta": CROP, "gamma": None})
    export(repository, {"delta": SQUASH}, ensemble=None)
    before = tiny.content(repository)
    ensemble = read_ensemble(repository, "ensemble")
    with pytest.raises(EnsembleError) as create:
        plan_creation(repository, Ensemble("other", (Member("gamma"), Member("alpha"), Member("delta"))))
    with pytest.raises(EnsembleError) as add:
        plan_ensemble(repository, add_members(ensemble, [Member("delta")]))
    with pytest.raises(EnsembleError) as exported:
        export(repository, {"delta": None})  # has no preprocessing itself, but its model has
    with pytest.raises(EnsembleError) as joined:
        export(repository, {"epsilon": SQUASH})
    assert both_and_a_fix(create.value, "alpha", "delta")
    assert both_and_a_fix(add.value, "alpha", "delta")
    assert both_and_a_fix(exported.value, "alpha", "delta")
    assert both_and_a_fix(joined.value, "alpha", "epsilon")
    with pytest.raises(EnsembleError) as fused:
        fused_member(
            "fused",
            Ensemble("fused", (Member("a"), Member("b"))),
            [tiny.member("a", 1, preprocessing=CROP), tiny.member("b", 2, preprocessing=SQUASH)],
            tiny.images(2),
            max_batch_size=2,
        )
    assert both_and_a_fix(fused.value, "a", "b")
    with pytest.raises(EnsembleError, match="another name") as version:
        export(repository, {"alpha": SQUASH}, ensemble=None)
    assert "'alpha@2'" in str(version.value)
    assert tiny.content(repository) == before

    write_preprocessing(repository, "delta", CROP.to_json())  # the suggested fix
    write(plan_ensemble(repository, add_members(ensemble, [Member("delta")])))
    assert read_preprocessing(repository, "ensemble") == CROP.to_json()


@pytest.mark.parametrize(("model", "text"), [("ensemble", SQUASH.to_json()), ("alpha", SQUASH.to_json()), ("beta", None)])
def test_check_and_serve_warn_about_contradicting_preprocessing(tmp_path: Path, model: str, text: str | None) -> None:
    repository = export(tmp_path / "repository", {"alpha": None, "beta": CROP})
    write_preprocessing(repository, model, text)
    (finding,) = check_ensemble(RepositoryView(repository), "ensemble")
    assert (finding.model, finding.is_error, finding.file) == ("ensemble", False, repository / "ensemble/config.pbtxt")
    assert finding.line is not None
    assert "preprocessing" in finding.text
    assert '"squash"' in finding.text or "none" in finding.text
    assert check_repository(RepositoryView(repository), EMBEDDED) == [finding]
    served = read_repository(repository)
    assert (served.remarks, served.problems) == ((str(finding),), {})


@pytest.mark.parametrize("text", UNREADABLE)
@pytest.mark.parametrize("model", ["alpha", "ensemble", "fused"])
def test_check_and_serve_warn_about_a_damaged_parameter(tmp_path: Path, model: str, text: str) -> None:
    repository = export(tmp_path / "repository", {"alpha": CROP, "beta": CROP})
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(2))
    write_preprocessing(repository, model, text)
    (finding,) = check_repository(RepositoryView(repository), EMBEDDED)
    assert (finding.model, finding.is_error, finding.file) == (model, False, repository / model / "config.pbtxt")
    assert (repr(text[:80]) in finding.text, CROP.to_json() in finding.text) == (True, True)
    assert read_repository(repository).remarks == (str(finding),)
    if model == "alpha":
        with pytest.raises(ConfigError, match="alpha"):
            plan_ensemble(repository, read_ensemble(repository, "ensemble"))
        with pytest.raises(ExportError, match="alpha"):
            fuse_repository(repository, "ensemble", "again", images=tiny.images(2))


def test_show_prints_the_preprocessing_within_80_columns(tmp_path: Path) -> None:
    repository = export(tmp_path / "repository", {"alpha": None, "beta": CROP})
    for text, values in ((CROP.to_json(), CROP.to_values()), (None, None), ("crop", None)):
        write_preprocessing(repository, "ensemble", text)
        table = CliRunner().invoke(cli, ["ensemble", "show", "--repository", str(repository)]).stdout
        (line,) = [line for line in table.splitlines() if line.startswith("preprocessing: ")]
        assert line == f"preprocessing: {'unknown' if values is None else json.dumps(values)}"
        assert len(line) <= 80
        shown = json.loads(CliRunner().invoke(cli, ["ensemble", "show", "--format", "json", "--repository", str(repository)]).stdout)
        (one,) = shown if isinstance(shown, list) else [shown]
        assert one["preprocessing"] == values
        assert len(one["problems"]) == (text == "crop")


def test_a_foreign_file_gets_the_requested_preprocessing(tmp_path: Path) -> None:
    file, repository = tmp_path / "net.onnx", tmp_path / "repository"
    onnx.save(foreign_models.classifier(), file)
    written = OnnxSource(file, "a", output="scores", resize="squash").write_onnx(tmp_path / "member.onnx", max_batch_size=2)
    member = member_from_onnx(written, "a")
    assert (member.preprocessing, OnnxSource(file, "a", resize="squash").describe_member().preprocessing) == (SQUASH, SQUASH)
    write_files(repository, planned_files(repository, [member]))
    assert read_preprocessing(repository, "ensemble") == SQUASH.to_json()
    with pytest.raises(EnsembleError) as error:
        export_networks([OnnxSource(file, "b", resize="crop")], repository, replace=True)
    assert both_and_a_fix(error.value, "a", "b")
    assert "--resize" in str(error.value)
    assert not (repository / "b").exists()
    with pytest.raises(EnsembleError, match="another name"):
        export_networks([OnnxSource(file, "a", resize="crop")], repository, ensemble=None, replace=True)
    with pytest.raises(ExportError, match="crop, squash"):
        OnnxSource(file, "a", resize="stretch")


def test_an_unknown_rule_in_a_file_is_rejected(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny.linear_onnx(1))
    later = json.dumps({**CROP.to_values(), "version": 99})
    onnx.helper.set_model_props(model, {"defensemble.class_names": json.dumps(tiny.CLASSES), "defensemble.preprocessing": later})
    onnx.save(model, tmp_path / "later.onnx")
    with pytest.raises(ExportError, match="99"):
        member_from_onnx(tmp_path / "later.onnx", "later")
