"""All checks of an ensemble: each thing that is wrong is told once, with its file, its line and what mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import check_ensemble, check_repository, fuse_repository, repository_plan, write_files, write_profile
from defensemble_export.entries.ensemble import ensemble_files
from defensemble_repository.checks.finding import Finding
from defensemble_repository.configs import Interface
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_ensemble
from defensemble_repository.target import EMBEDDED
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.two_models import write_cut_short, write_old_repository


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


def only(repository: Path, told: str, *, name: str = "ensemble", model: str, line: str | None = None, is_error: bool = True) -> Finding:
    """The only finding says `told` about `model`, and its line in the file holds `line`."""
    (found,) = check(repository, name)
    assert_facts(found.text, told)
    assert (found.model, found.is_error) == (model, is_error)
    if line is not None:
        assert found.file is not None
        assert found.line is not None
        assert line in found.file.read_text().splitlines()[found.line - 1]
        assert str(found) == f"{found.file}:{found.line}: {found.text}"
    return found


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_what_an_export_writes_is_in_order(tmp_path: Path, average: str, members: int) -> None:
    seeds = {f"member{number}": number for number in range(members)}
    repository = tiny.write_repository(tmp_path / "repository", seeds, average=average, weight={"member0": 2.5})
    write_profile(repository, "cpu")
    write_profile(repository, "gpu-ort-tensorrt")
    assert check(repository) == []
    tiny.write_second_version(repository, "member0", 9)
    assert check(repository) == []


def test_what_is_planned_counts_as_if_it_were_there(repository: Path) -> None:
    plan = repository_plan(repository, [tiny.member("gamma", 3)], replace=True)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []
    without: dict[str, bytes | None] = {**plan, "gamma/config.pbtxt": None}
    (found,) = check_ensemble(RepositoryView(repository, without), "ensemble")
    assert found.model == "gamma"
    assert_facts(found.text, "step 3 | gamma")
    damaged = {**plan, "gamma/1/model.onnx": b"damaged"}
    (found,) = check_ensemble(RepositoryView(repository, damaged), "ensemble")
    assert "has SHA-256" in found.text
    nothing: dict[str, bytes] = {}
    assert check_ensemble(RepositoryView(repository, nothing), "ensemble") == []


def test_there_is_no_such_ensemble(repository: Path) -> None:
    only(repository, "there is no ensemble 'other' in", name="other", model="other")
    only(repository, "not an ensemble | 'onnxruntime'", name="alpha", model="alpha")
    (found,) = check_ensemble(RepositoryView(repository / "nowhere"), "ensemble")
    assert "there is no ensemble" in found.text


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ensemble", "alpha/../ensemble", "a\0b", "-x", "a" * 101, "é", "average_x", "uncertainty_"]
)
def test_names_that_triton_the_file_system_or_we_refuse(repository: Path, name: str) -> None:
    (found,) = check(repository, name)
    assert (found.is_error, found.file) == (True, None)
    assert repr(name) in found.text


@pytest.mark.parametrize("name", ["..", "../alpha", "alpha/../../alpha", "a\\000b", "-x", "average_of_mine", "a" * 101])
def test_names_of_members_that_triton_the_file_system_or_we_refuse(repository: Path, name: str) -> None:
    replace(repository / "ensemble/config.pbtxt", 'model_name: "alpha"', f'model_name: "{name}"')
    only(repository, "step 1: ", model="ensemble", line=f'model_name: "{name}"')


def test_a_configuration_that_cannot_be_read(repository: Path) -> None:
    replace(repository / "ensemble/config.pbtxt", "max_batch_size: 8", "max_batch_size: many")
    only(repository, "configuration | 3:", model="ensemble", line="many")
    replace(repository / "ensemble/config.pbtxt", "max_batch_size: many", "max_batch_size: 8")
    replace(repository / "beta/config.pbtxt", "dims: 4", "dimensions: 4")
    only(repository, '"dimensions"', model="beta", line="dimensions: 4")


def test_a_configuration_of_another_name_or_of_a_file_elsewhere(repository: Path) -> None:
    replace(repository / "beta/config.pbtxt", 'name: "beta"', 'name: "gamma"')
    only(repository, "folder | 'beta'", model="beta", line='name: "gamma"')
    replace(repository / "beta/config.pbtxt", 'name: "gamma"', 'default_model_filename: "../../alpha/1/model.onnx"')
    only(repository, "plain name", model="beta", line="default_model_filename")


def test_a_configuration_that_says_nothing(repository: Path) -> None:
    (repository / "beta/config.pbtxt").write_text("")
    only(repository, "backend | platform", model="beta")


def test_a_member_that_is_not_there_is_one_finding(repository: Path) -> None:
    shutil.rmtree(repository / "beta")
    found = only(repository, "step 2 | beta", model="beta", line='model_name: "beta"')
    assert "`defensemble ensemble remove ensemble beta`" in found.text


def test_an_averaging_model_that_is_not_there_is_one_finding(repository: Path) -> None:
    name = average_of(repository)
    shutil.rmtree(repository / name)
    only(repository, f"({name}) | not", model=name, line=name)


def test_all_is_told_at_once(repository: Path) -> None:
    shutil.rmtree(repository / "beta")
    (repository / "alpha/1/model.onnx").write_bytes(b"damaged")
    edit(repository, "ensemble", lambda config: config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[1]))
    edit(repository, average_of(repository), lambda config: config.parameters["weights"].__setattr__("string_value", "[1, -1]"))
    assert sorted(found.model.partition("_")[0] for found in check(repository)) == ["alpha", "average", "beta", "ensemble"]


def test_versions(repository: Path) -> None:
    path = repository / "ensemble/config.pbtxt"
    replace(path, "model_version: 1", "model_version: 3")
    only(repository, "step 1 | alpha | model_version: 3 | 1", model="alpha", line="model_version: 3")
    replace(path, "model_version: 3", "model_version: -1")
    only(repository, "now 1", model="ensemble", line="model_version: -1")
    replace(path, "model_version: -1", "")
    only(repository, "step 1 | alpha | no model_version", model="alpha")


def test_a_version_that_its_policy_does_not_serve(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    edit(repository, "beta", lambda config: config.version_policy.specific.versions.append(2))
    found = only(repository, "'ensemble' | version 1 | version_policy | 2", model="beta", line="version_policy")
    assert found.file == repository / "beta/config.pbtxt"
    edit(repository, "beta", lambda config: config.ClearField("version_policy"))
    assert_facts(check(repository)[0].text, "version_policy | 2")


def test_a_model_without_version_folders(repository: Path) -> None:
    shutil.rmtree(repository / "beta/1")
    only(repository, "no version folder", model="beta")
    shutil.rmtree(repository / "ensemble/1")
    assert "no version folder" in check(repository)[0].text


def as_member(**other: object) -> Callable[[Path], None]:
    """Write `beta` anew, as a network that differs from `alpha`."""

    def write(repository: Path) -> None:
        shutil.rmtree(repository / "beta")
        write_files(repository, repository_plan(repository, [tiny.member("beta", 2, **other)], ensemble=None, max_batch_size=8))

    return write


@pytest.mark.parametrize(
    ("change", "told", "line"),
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
def test_members_are_the_same_to_a_caller(repository: Path, change: Callable[[Path], object], told: str, line: str | None) -> None:
    change(repository)
    only(repository, told, model="beta", line=line)


def test_the_ensemble_is_told_where_its_members_agree(repository: Path) -> None:
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


PARAMETERS = [
    ("weights", "[1.0, -3.0]", "'beta' | -3.0 | above 0"),
    ("weights", "[1.0, 0]", "`defensemble ensemble apply FILE`"),
    ("weights", "[NaN, 3.0]", "'alpha' | NaN"),
    ("weights", "[1.0, Infinity]", "'beta' | Infinity"),
    ("weights", f"[1.0, 1{'0' * 400}]", "above 0"),
    ("weights", '[1.0, "3"]', "'beta' | \"3\""),
    ("weights", "[1.0, true]", "'beta' | true"),
    ("weights", "[1.0]", "1 weights | 2 members"),
    ("weights", "1.0, 3.0", "JSON list | each member"),
    ("weights", "[" * 99999, "JSON list | each member"),
    ("weights", "[1.0, 1e-9]", "not count"),
    ("weights", "[1.0, 5.0]", "edited | `defensemble ensemble reload ensemble`"),
    ("average", "logits", "edited | `defensemble ensemble reload ensemble`"),
    ("average", "median", "average | 'median' | probabilities | logits"),
    ("members", '["beta@1", "alpha@1"]', "edited | `defensemble ensemble reload ensemble`"),
    ("members", '["alpha", "beta"]', 'JSON list | "NAME@VERSION"'),
    ("members", '["alpha@1", "alpha@1"]', "alpha@1 | twice"),
    ("members", '["alpha@1", "../beta@1"]', "model name"),
    ("members", "{}", 'JSON list | "NAME@VERSION"'),
]


@pytest.mark.parametrize(("key", "value", "told"), PARAMETERS)
def test_parameters_of_the_averaging_model(repository: Path, key: str, value: str, told: str) -> None:
    model = average_of(repository)
    edit(repository, model, lambda config: setattr(config.parameters[key], "string_value", value))
    found = only(repository, told, model=model, line="string_value")
    assert found.file == repository / model / "config.pbtxt"


@pytest.mark.parametrize("prefix", ["average_", "uncertainty_"])
@pytest.mark.parametrize(("key", "value", "told"), PARAMETERS)
def test_parameters_of_each_of_two_averaging_models(tmp_path: Path, prefix: str, key: str, value: str, told: str) -> None:
    repository = write_old_repository(tmp_path / "repository")
    model = average_of(repository, "trimmed", prefix)
    edit(repository, model, lambda config: setattr(config.parameters[key], "string_value", value.replace("beta", "gamma")))
    for ours, theirs in (("beta", "gamma"), ("remove ensemble", "remove trimmed"), ("reload ensemble", "reload trimmed")):
        told = told.replace(ours, theirs)
    only(repository, told, name="trimmed", model=model, line="string_value")


@pytest.mark.parametrize("key", ["average", "weights", "members"])
def test_a_parameter_that_is_gone_stops_edits_and_not_answers(repository: Path, key: str) -> None:
    model = average_of(repository)
    edit(repository, model, lambda config: config.parameters.pop(key))
    only(repository, f"parameter {key}", model=model)
    found = {(one.model, one.is_error) for one in check_repository(RepositoryView(repository), EMBEDDED)}
    assert {(model, False)} <= found <= {(model, False), ("ensemble", False)}


def test_weights_that_mean_the_same_are_the_same(repository: Path) -> None:
    edit(repository, average_of(repository), lambda config: setattr(config.parameters["weights"], "string_value", "[2, 6]"))
    assert check(repository) == []


def test_an_average_is_the_graph_that_its_parameters_generate(repository: Path) -> None:
    from defensemble_export import average_onnx
    from defensemble_repository.ensemble import Ensemble, Member

    model = average_of(repository)
    other = average_onnx(Ensemble("e", (Member("alpha", 1, 9.0), Member("beta"))), 3)
    (repository / model / "1/model.onnx").write_bytes(other)
    only(repository, "has SHA-256", model=model)
    edit(repository, model, lambda config: config.parameters.pop("sha256.1"))
    found = only(repository, "graph | parameters", model=model)
    assert found.file == repository / model / "1/model.onnx"


def test_an_average_of_other_inputs_or_of_another_batch(repository: Path) -> None:
    model = average_of(repository)
    tiny.edit_config(repository, model, max_batch_size=9)
    only(repository, "max_batch_size 9", model=model)
    tiny.edit_config(repository, model, max_batch_size=8)
    edit(repository, model, lambda config: setattr(config.input[1], "name", "logits_2"))
    only(repository, "logits_0 FP32 [3], logits_1 FP32 [3]", model=model, line="input")


def test_two_averaging_models_are_said_and_not_mixed(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "repository")
    found = only(repository, "crash", model="ensemble", line=average_of(repository), is_error=False)
    assert "`defensemble ensemble reload ensemble`" in found.text
    assert check(repository, "plain") == []
    edit(repository, "ensemble", lambda config: config.ensemble_scheduling.step[-1].input_map.pop("logits_1"))
    only(repository, "input 'logits_1'", model="ensemble")
    name = average_of(repository, prefix="uncertainty_")
    edited = write_cut_short(tmp_path / "edited", "after_config")
    edit(edited, "ensemble", lambda config: setattr(config.ensemble_scheduling.step[-1], "model_name", name))
    only(edited, "two ensembles", model=name, line="string_value")


def test_the_files_of_two_averaging_models_are_those_of_their_digests(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "repository")
    model = average_of(repository, "trimmed", "uncertainty_")
    (repository / model / "1/model.onnx").write_bytes(tiny.linear_onnx(1))
    only(repository, "has SHA-256", name="trimmed", model=model)
    edit(repository, model, lambda config: config.parameters.pop("sha256.1"))
    only(repository, "parameter sha256.1", name="trimmed", model=model)


def test_votes_that_a_hand_has_moved_are_said_and_taken_up_by_a_reload(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    edit(repository, "ensemble", lambda config: setattr(config.ensemble_scheduling.step[1], "model_version", 2))
    only(repository, "averaging model | other members", model="ensemble", line="average_", is_error=False)
    # What a reload plans is in order.
    files = RepositoryView(repository)
    plan = ensemble_files(files, read_ensemble(repository, "ensemble"), Interface(tiny.SHAPE, 3, 8), None)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []


def test_an_edit_of_weights_by_hand_is_taken_up_by_a_reload(repository: Path) -> None:
    edit(repository, average_of(repository), lambda config: setattr(config.parameters["weights"], "string_value", "[1.0, 5.0]"))
    assert [one.is_error for one in check(repository)] == [True]
    votes = read_ensemble(repository, "ensemble")
    plan = ensemble_files(RepositoryView(repository), votes, Interface(tiny.SHAPE, 3, 8), None)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []


def foreign(config: schema.ModelConfig) -> None:
    """Wire an ensemble over `alpha` alone, as somebody else would."""
    del config.output[:]
    config.output.add(name="scores", data_type=schema.TYPE_FP32, dims=[3])
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.add(
        model_name="alpha", model_version=-1, input_map={"images": "images"}, output_map={"logits": "scores"}
    )


def test_an_ensemble_of_somebody_else_can_be_served_but_not_edited(repository: Path) -> None:
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
    found = only(repository, "contains itself", name="one", model="three", line='model_name: "one"')
    assert_facts(found.text, "'one' | 'two' | 'three'")
    replace(repository / "three/config.pbtxt", 'model_name: "one"', 'model_name: "alpha"')
    replace(repository / "three/config.pbtxt", 'key: "scores"', 'key: "logits"')
    assert not [one for one in check(repository, "one") if one.is_error]
    (repository / "alpha/1/model.onnx").unlink()
    assert [one.model for one in check(repository, "one") if one.is_error] == ["alpha"]


def test_a_mix_of_precisions_is_allowed_and_said(repository: Path) -> None:
    edit(repository, "beta", lambda config: setattr(config.parameters["precision.1"], "string_value", "fp16"))
    only(repository, "alpha@1 fp32 | beta@1 fp16", model="ensemble", is_error=False)


def test_a_fused_graph_of_other_votes_is_said(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(4))
    assert check(repository) == []
    plan = repository_plan(repository, [tiny.member("gamma", 3)], replace=True)
    (found,) = check_ensemble(RepositoryView(repository, plan), "ensemble")
    assert (found.model, found.is_error) == ("fused", False)
    assert "--ensemble ensemble --replace`" in found.text
    replace(repository / "fused/config.pbtxt", "backend:", "backend: [")
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []


def test_a_file_that_cannot_be_read_is_a_finding(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_nothing_that_is_in_a_file_is_raised(shared: Path, data: st.DataObject) -> None:
    paths = sorted(path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    content = (shared / path).read_bytes()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 40)))
    new = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"}", b"{", b"-1", b"\\", b"99999999999", content[begin:end] * 2]))
    )
    found = check_ensemble(RepositoryView(shared, {path: content[:begin] + new + content[end:]}), "ensemble")
    assert all(str(one) for one in found)
    assert len(found) == len(set(found))
