"""All checks of an ensemble: every problem is reported once, with its file, its line and a fix."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import check_ensemble, fuse_repository, planned_files, write_files, write_profile
from defensemble_repository.checks.finding import Finding
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import assert_facts


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny.write_repository(tmp_path / "place" / "repository", weight={"beta": 3.0})


def edit(repository: Path, model: str, change: Callable[[schema.ModelConfig], object]) -> None:
    path = repository / model / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), model)
    change(config)
    path.write_bytes(pbtxt_from_config(config))


def replace(path: Path, old: str, new: str, *, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def average_of(repository: Path, name: str = "ensemble", prefix: str = "average_") -> str:
    steps = config_from_pbtxt((repository / name / "config.pbtxt").read_text(), name).ensemble_scheduling.step
    return str(next(step.model_name for step in steps if step.model_name.startswith(prefix)))


def check(repository: Path, name: str = "ensemble", **other: object) -> list[Finding]:
    return check_ensemble(RepositoryView(repository), name, **other)  # type: ignore[arg-type]


def only(repository: Path, facts: str, *, name: str = "ensemble", model: str, line: str | None = None, is_error: bool = True) -> Finding:
    """Check that there is one finding, about `model`, with `facts`, whose line in the file contains `line`."""
    (finding,) = check(repository, name)
    assert_facts(finding.text, facts)
    assert (finding.model, finding.is_error) == (model, is_error)
    if line is not None:
        assert finding.file is not None
        assert finding.line is not None
        assert line in finding.file.read_text().splitlines()[finding.line - 1]
        assert str(finding) == f"{finding.file}:{finding.line}: {finding.text}"
    return finding


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_exported_ensembles_have_no_findings(tmp_path: Path, average: str, members: int) -> None:
    seeds = {f"member{number}": number for number in range(members)}
    repository = tiny.write_repository(tmp_path / "repository", seeds, average=average, weight={"member0": 2.5})
    write_profile(repository, "cpu")
    write_profile(repository, "gpu-ort-tensorrt")
    assert check(repository) == []
    tiny.write_second_version(repository, "member0", 9)
    assert check(repository) == []


def test_planned_files_are_checked_like_existing_ones(repository: Path) -> None:
    plan = planned_files(repository, [tiny.member("gamma", 3)], replace=True)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []
    without: dict[str, bytes | None] = {**plan, "gamma/config.pbtxt": None}
    (finding,) = check_ensemble(RepositoryView(repository, without), "ensemble")
    assert finding.model == "gamma"
    assert_facts(finding.text, "step 3 | gamma")
    damaged = {**plan, "gamma/1/model.onnx": b"damaged"}
    (finding,) = check_ensemble(RepositoryView(repository, damaged), "ensemble")
    assert "has SHA-256" in finding.text
    nothing: dict[str, bytes] = {}
    assert check_ensemble(RepositoryView(repository, nothing), "ensemble") == []


def test_missing_ensemble(repository: Path) -> None:
    only(repository, "there is no ensemble 'other' in", name="other", model="other")
    only(repository, "not an ensemble | 'onnxruntime'", name="alpha", model="alpha")
    (finding,) = check_ensemble(RepositoryView(repository / "nowhere"), "ensemble")
    assert "there is no ensemble" in finding.text


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ensemble", "alpha/../ensemble", "a\0b", "-x", "a" * 101, "é", "average_x", "uncertainty_"]
)
def test_invalid_ensemble_names(repository: Path, name: str) -> None:
    (finding,) = check(repository, name)
    assert (finding.is_error, finding.file) == (True, None)
    assert repr(name) in finding.text


@pytest.mark.parametrize("name", ["..", "../alpha", "alpha/../../alpha", "a\\000b", "-x", "average_of_mine", "a" * 101])
def test_invalid_member_names(repository: Path, name: str) -> None:
    replace(repository / "ensemble/config.pbtxt", 'model_name: "alpha"', f'model_name: "{name}"')
    only(repository, "step 1: ", model="ensemble", line=f'model_name: "{name}"')


def test_unreadable_configuration(repository: Path) -> None:
    replace(repository / "ensemble/config.pbtxt", "max_batch_size: 8", "max_batch_size: many")
    only(repository, "configuration | 3:", model="ensemble", line="many")
    replace(repository / "ensemble/config.pbtxt", "max_batch_size: many", "max_batch_size: 8")
    replace(repository / "beta/config.pbtxt", "dims: 4", "dimensions: 4")
    only(repository, '"dimensions"', model="beta", line="dimensions: 4")


def test_configuration_with_another_name_or_an_external_file(repository: Path) -> None:
    replace(repository / "beta/config.pbtxt", 'name: "beta"', 'name: "gamma"')
    only(repository, "folder | 'beta'", model="beta", line='name: "gamma"')
    replace(repository / "beta/config.pbtxt", 'name: "gamma"', 'default_model_filename: "../../alpha/1/model.onnx"')
    only(repository, "plain name", model="beta", line="default_model_filename")


def test_empty_configuration(repository: Path) -> None:
    (repository / "beta/config.pbtxt").write_text("")
    only(repository, "backend | platform", model="beta")


def test_a_missing_member_is_one_finding(repository: Path) -> None:
    shutil.rmtree(repository / "beta")
    finding = only(repository, "step 2 | beta", model="beta", line='model_name: "beta"')
    assert "`defensemble ensemble remove ensemble beta`" in finding.text


def test_a_missing_averaging_model_is_one_finding(repository: Path) -> None:
    name = average_of(repository)
    shutil.rmtree(repository / name)
    only(repository, f"({name}) | not", model=name, line=name)


def test_all_problems_are_reported_together(repository: Path) -> None:
    shutil.rmtree(repository / "beta")
    (repository / "alpha/1/model.onnx").write_bytes(b"damaged")
    edit(repository, "ensemble", lambda config: config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[1]))
    edit(repository, average_of(repository), lambda config: config.parameters["weights"].__setattr__("string_value", "[1, -1]"))
    assert sorted(finding.model.partition("_")[0] for finding in check(repository)) == ["alpha", "average", "beta", "ensemble"]


def test_versions(repository: Path) -> None:
    path = repository / "ensemble/config.pbtxt"
    replace(path, "model_version: 1", "model_version: 3")
    only(repository, "step 1 | alpha | model_version: 3 | 1", model="alpha", line="model_version: 3")
    replace(path, "model_version: 3", "model_version: -1")
    only(repository, "now 1", model="ensemble", line="model_version: -1")
    replace(path, "model_version: -1", "")
    only(repository, "step 1 | alpha | no model_version", model="alpha")


def test_version_excluded_by_its_policy(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    edit(repository, "beta", lambda config: config.version_policy.specific.versions.append(2))
    finding = only(repository, "'ensemble' | version 1 | version_policy | 2", model="beta", line="version_policy")
    assert finding.file == repository / "beta/config.pbtxt"
    edit(repository, "beta", lambda config: config.ClearField("version_policy"))
    assert_facts(check(repository)[0].text, "version_policy | 2")


def test_model_without_version_folders(repository: Path) -> None:
    shutil.rmtree(repository / "beta/1")
    only(repository, "no version folder", model="beta")
    shutil.rmtree(repository / "ensemble/1")
    assert "no version folder" in check(repository)[0].text


def as_member(**other: object) -> Callable[[Path], None]:
    """Write `beta` again, as a network that differs from `alpha`."""

    def write(repository: Path) -> None:
        shutil.rmtree(repository / "beta")
        write_files(repository, planned_files(repository, [tiny.member("beta", 2, **other)], ensemble=None, max_batch_size=8))

    return write


@pytest.mark.parametrize(
    ("change", "facts", "line"),
    [
        (
            as_member(onnx=tiny.linear_onnx(2, (1, 5, 5)), input_shape=(1, 5, 5)),
            "[1, 5, 5] | 'ensemble' | [1, 4, 4]",
            "dims",
        ),
        (
            as_member(onnx=tiny.linear_onnx(2, classes=4), num_classes=4, class_names=tuple("abcd")),
            "logits | [4] | [3]",
            "dims: 4",
        ),
        (as_member(class_names=("circle", "triangle", "square")), "class 2 | 'triangle' | 'square'", "triangle"),
        (lambda folder: (folder / "beta/labels.txt").write_text("circle\nsquare\n"), "2 classes | logits | 3", None),
        (lambda folder: (folder / "beta/labels.txt").unlink(), 'label_filename: "labels.txt"', "label_filename"),
        (lambda folder: edit(folder, "beta", lambda c: setattr(c.output[0], "label_filename", "../x")), "plain name", "../x"),
        (lambda folder: edit(folder, "beta", lambda c: setattr(c.input[0], "name", "pictures")), "pictures FP32 [1, 4, 4]", "input"),
        (lambda folder: edit(folder, "beta", lambda c: setattr(c.input[0], "data_type", schema.TYPE_UINT8)), "images UINT8", "input"),
        (lambda folder: edit(folder, "beta", lambda c: setattr(c.output[0], "name", "scores")), "scores FP32 [3]", "output"),
        (lambda folder: edit(folder, "beta", lambda c: c.output[0].dims.append(1)), "logits FP32 [3, 1]", "output"),
        (lambda folder: edit(folder, "beta", lambda c: c.input[0].dims.__setitem__(0, -1)), "images FP32 [-1, 4, 4]", "input"),
        (lambda folder: tiny.edit_config(folder, "beta", max_batch_size=0), "max_batch_size: 0 | 1 to 4096", None),
    ],
)
def test_members_must_have_the_same_interface(repository: Path, change: Callable[[Path], object], facts: str, line: str | None) -> None:
    change(repository)
    only(repository, facts, model="beta", line=line)


def test_an_ensemble_must_match_its_members(repository: Path) -> None:
    (repository / "ensemble/labels.txt").write_text("circle\nline\ntriangle\n")
    only(repository, "class 2 | 'line' | members | 'square'", model="ensemble", line="line")
    (repository / "ensemble/labels.txt").write_text("circle\nsquare\ntriangle")
    edit(repository, "ensemble", lambda config: config.input[0].dims.__setitem__(1, 5))
    only(repository, "images | [1, 4, 4] | 'ensemble' | [1, 5, 4]", model="ensemble", line="dims")


def test_batches(repository: Path) -> None:
    tiny.edit_config(repository, "beta", max_batch_size=4)
    only(repository, "beta | to 4", model="ensemble", line="max_batch_size: 8")
    tiny.edit_config(repository, "beta", max_batch_size=16)
    tiny.edit_config(repository, "alpha", max_batch_size=16)
    assert check(repository) == []
    tiny.edit_config(repository, "ensemble", max_batch_size=16)
    only(repository, "`defensemble ensemble reload`", model="ensemble", line="max_batch_size: 16")


def foreign(config: schema.ModelConfig) -> None:
    """Wire an ensemble of only `alpha` in another way than an export does."""
    del config.output[:]
    config.output.add(name="scores", data_type=schema.TYPE_FP32, dims=[3])
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.add(
        model_name="alpha", model_version=-1, input_map={"images": "images"}, output_map={"logits": "scores"}
    )


def test_a_foreign_ensemble_can_be_served_but_not_edited(repository: Path) -> None:
    edit(repository, "ensemble", foreign)
    only(repository, "not edited", model="ensemble", line="ensemble_scheduling", is_error=False)
    replace(repository / "ensemble/config.pbtxt", 'value: "scores"', 'value: "score"')
    only(repository, "output 'scores' | no step", model="ensemble", line="output {")


def test_ensembles_that_contain_each_other(repository: Path) -> None:
    for name, inner in (("one", "two"), ("two", "three"), ("three", "one")):
        shutil.copytree(repository / "ensemble", repository / name)
        edit(repository, name, foreign)
        edit(repository, name, lambda config, name=name: setattr(config, "name", name))  # type: ignore[misc]
        edit(repository, name, lambda config: config.output[0].MergeFrom(schema.ModelOutput(name="scores")))
        replace(repository / name / "config.pbtxt", 'model_name: "alpha"', f'model_name: "{inner}"')
        replace(repository / name / "config.pbtxt", 'key: "logits"', 'key: "scores"')
    finding = only(repository, "contains itself", name="one", model="three", line='model_name: "one"')
    assert_facts(finding.text, "'one' | 'two' | 'three'")
    replace(repository / "three/config.pbtxt", 'model_name: "one"', 'model_name: "alpha"')
    replace(repository / "three/config.pbtxt", 'key: "scores"', 'key: "logits"')
    assert not [finding for finding in check(repository, "one") if finding.is_error]
    (repository / "alpha/1/model.onnx").unlink()
    assert [finding.model for finding in check(repository, "one") if finding.is_error] == ["alpha"]


def test_mixed_precisions_are_a_remark(repository: Path) -> None:
    edit(repository, "beta", lambda config: setattr(config.parameters["precision.1"], "string_value", "fp16"))
    only(repository, "alpha@1 fp32 | beta@1 fp16", model="ensemble", is_error=False)


def test_an_outdated_fused_graph_is_a_remark(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(4))
    assert check(repository) == []
    plan = planned_files(repository, [tiny.member("gamma", 3)], replace=True)
    (finding,) = check_ensemble(RepositoryView(repository, plan), "ensemble")
    assert (finding.model, finding.is_error) == ("fused", False)
    assert "--ensemble ensemble --replace`" in finding.text
    assert "`defensemble fuse fused " in finding.text
    replace(repository / "fused/config.pbtxt", "backend:", "backend: [")
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []


def test_an_unreadable_file_is_a_finding(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RepositoryView.content

    def content(files: RepositoryView, path: str) -> bytes | None:
        if path == "beta/config.pbtxt":
            raise PermissionError(13, "Permission denied")
        return whole(files, path)

    monkeypatch.setattr(RepositoryView, "content", content)
    only(repository, "cannot be read: Permission denied", model="beta")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_repository(tmp_path_factory.mktemp("fuzzed") / "repository")


# protobuf's parser warns of an escape that it does not know, and keeps it.
@pytest.mark.filterwarnings("ignore:.*escape sequence:DeprecationWarning")
@given(data=st.data())
def test_checks_never_raise_for_file_contents(shared: Path, data: st.DataObject) -> None:
    paths = sorted(path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    content = (shared / path).read_bytes()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 40)))
    new = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"}", b"{", b"-1", b"\\", b"99999999999", content[begin:end] * 2]))
    )
    findings = check_ensemble(RepositoryView(shared, {path: content[:begin] + new + content[end:]}), "ensemble")
    assert all(str(finding) for finding in findings)
    assert len(findings) == len(set(findings))
