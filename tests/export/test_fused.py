"""Fused graphs in a repository: what is written, kept and rejected."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from defensemble.ensembles import Ensembles
from defensemble_export import (
    EnsembleError,
    ExistsError,
    check_ensemble,
    fuse_repository,
    fused_member,
    fused_onnx,
    planned_files,
    planned_fused_files,
    write_files,
)
from defensemble_export.fused import fuse_planned_ensemble
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError, RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_config
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import raises
from tests.support.tiny import member

PAIR = Ensemble("ensemble", (Member("alpha"), Member("beta", 1, 3.0)))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with the linear members `alpha` (seed 1) and `beta` (seed 2), weights 1 and 3, batches of up to 8."""
    return tiny.write_repository(tmp_path / "repository", weight={"beta": 3.0})


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_ensemble_of_a_repository_is_fused(repository: Path) -> None:
    before = content_of(repository)
    written = fuse_repository(repository, "ensemble", "fused", images=tiny.images(9))
    assert written == ["fused/1/model.onnx", "fused/1/model.onnx.json", "fused/labels.txt", "fused/config.pbtxt"]
    after = content_of(repository)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == set(written)
    assert [path.name for path in repository.parent.iterdir()] == ["repository"], "nothing is left next to it"
    assert after["fused/1/model.onnx"] == fused_onnx([tiny.linear_onnx(1), tiny.linear_onnx(2)], PAIR)
    config, ensemble = read_config(repository / "fused"), read_config(repository / "ensemble")
    assert list(config.input) == list(ensemble.input)
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.output] == [
        (tensor.name, tensor.data_type, list(tensor.dims)) for tensor in ensemble.output
    ]
    assert config.output[0].label_filename == "labels.txt"
    assert after["fused/labels.txt"] == after["ensemble/labels.txt"]
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [1]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "average": "probabilities",
        "weights": "[1.0, 3.0]",
        "members": '["alpha@1", "beta@1"]',
        "member_digests": json.dumps([hashlib.sha256(tiny.linear_onnx(seed)).hexdigest() for seed in (1, 2)]),
        "ensemble": "ensemble",
        "intra_op_thread_count": "0",
        "precision.1": "fp32",
        "sha256.1": hashlib.sha256(after["fused/1/model.onnx"]).hexdigest(),
    }
    report = json.loads(after["fused/1/model.onnx.json"])
    assert report["schema"] == "defensemble.export/1"
    assert report["onnx"]["sha256"] == hashlib.sha256(after["fused/1/model.onnx"]).hexdigest()
    assert (report["verification"]["batches"], report["verification"]["n"]) == ([1, 2, 8], 9)
    assert max(report["verification"]["largest_difference"].values()) <= report["tolerance"]["largest_difference"] == 1e-6
    voted = [(member["member"], member["precision"], member["weight"]) for member in report["origin"]["members"]]
    assert voted == [("alpha@1", "fp32", 1.0), ("beta@1", "fp32", 3.0)]


def test_the_versions_that_the_ensemble_pins_are_fused(repository: Path) -> None:
    tiny.write_second_version(repository, "alpha", 5)
    fuse_repository(repository, "ensemble", "old")
    assert (repository / "old/1/model.onnx").read_bytes() == fused_onnx([tiny.linear_onnx(1), tiny.linear_onnx(2)], PAIR)
    write_files(repository, planned_files(repository, [member("alpha", 6)], replace=True))
    fuse_repository(repository, "ensemble", "new")
    pair = Ensemble("ensemble", (Member("alpha", 3), Member("beta", 1, 3.0)))
    assert (repository / "new/1/model.onnx").read_bytes() == fused_onnx([tiny.linear_onnx(6), tiny.linear_onnx(2)], pair)
    assert read_config(repository / "new").parameters["members"].string_value == '["alpha@3", "beta@1"]'


def test_replace_adds_the_next_version_and_keeps_hand_edits(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused")
    with raises(ExistsError, "fused | already | --replace"):
        fuse_repository(repository, "ensemble", "fused")
    path = repository / "fused/config.pbtxt"
    config = read_config(repository / "fused")
    config.max_batch_size = 4
    config.parameters["intra_op_thread_count"].string_value = "1"
    del config.output[3]
    path.write_bytes(pbtxt_from_config(config))
    (repository / "fused/configs").mkdir()
    config.default_model_filename = "model.plan"
    (repository / "fused/configs/gpu-tensorrt.pbtxt").write_bytes(pbtxt_from_config(config))
    write_files(repository, planned_files(repository, [member("gamma", 3)], replace=True, average="logits"))
    first = (repository / "fused/1/model.onnx").read_bytes()

    written = fuse_repository(repository, "ensemble", "fused", replace=True)
    assert written == ["fused/2/model.onnx", "fused/2/model.onnx.json", "fused/configs/gpu-tensorrt.pbtxt", "fused/config.pbtxt"]
    assert (repository / "fused/1/model.onnx").read_bytes() == first
    for file, keys in (("config.pbtxt", {"sha256.1", "sha256.2"}), ("configs/gpu-tensorrt.pbtxt", {"sha256.1"})):
        config = config_from_pbtxt((repository / "fused" / file).read_text(), file)
        assert config.max_batch_size == 4
        assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [
            ("probabilities", [3]),
            ("member_probabilities", [3, 3]),
            ("entropy", [1]),
        ]
        assert list(config.version_policy.specific.versions) == [2]
        assert config.parameters["intra_op_thread_count"].string_value == "1"
        assert config.parameters["average"].string_value == "logits"
        assert json.loads(config.parameters["members"].string_value) == ["alpha@1", "beta@1", "gamma@1"]
        assert json.loads(config.parameters["weights"].string_value) == [1, 3, 1]
        assert {key for key in config.parameters if key.startswith("sha256.")} == keys
    assert json.loads((repository / "fused/2/model.onnx.json").read_text())["verification"]["batches"] == [1, 2, 4]


def test_planned_members_are_fused_before_they_are_written(tmp_path: Path) -> None:
    half = member("beta", 2, precision="fp16")
    planned = planned_files(tmp_path, [member("alpha", 1), half], weights={"beta": 3.0}, max_batch_size=4)
    plan = fuse_planned_ensemble(tmp_path, "ensemble", "fused", planned, images=tiny.images(3))
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    config = config_from_pbtxt(plan["fused/config.pbtxt"].decode(), "fused")
    assert config.max_batch_size == 4
    assert config.parameters["precision.1"].string_value == "fp16"
    write_files(tmp_path, {**planned, **plan})
    other = tmp_path / "other"
    tiny.write_repository(other, weight={"beta": 3.0}, max_batch_size=4)
    fuse_repository(other, "ensemble", "fused")
    assert plan["fused/1/model.onnx"] == (other / "fused/1/model.onnx").read_bytes()
    # Next to members that are already in the repository.
    later = planned_files(tmp_path, [member("gamma", 3)], replace=True)
    plan = fuse_planned_ensemble(tmp_path, "ensemble", "fused", later, replace=True)
    assert json.loads(config_from_pbtxt(plan["fused/config.pbtxt"].decode(), "f").parameters["members"].string_value) == [
        "alpha@1",
        "beta@1",
        "gamma@1",
    ]
    with raises(EnsembleError, "'gamma' | ensemble | member"):
        fuse_planned_ensemble(tmp_path, "ensemble", "gamma", later)


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [(("fp32", "fp32"), "fp32"), (("fp16", "fp32"), "fp16"), (("int8", "fp16"), "int8"), (("fp32", "int8"), "int8")],
)
def test_a_fused_graph_has_the_lowest_precision_of_its_members(precisions: tuple[str, str], expected: str) -> None:
    members = [tiny.member(name, 1, precision=precision) for name, precision in zip(("alpha", "beta"), precisions, strict=True)]
    assert fused_member("fused", PAIR, members, None, max_batch_size=2).precision == expected


def test_an_unknown_precision_is_rejected() -> None:
    members = [tiny.member("alpha", 1), tiny.member("beta", 2, precision="fp8")]
    with raises(RepositoryError, "precision | fp32, fp16, int8 | 'fp8'"):
        fused_member("fused", PAIR, members, None, max_batch_size=2)


def test_a_fused_graph_needs_no_ensemble_in_the_repository(tmp_path: Path) -> None:
    members = [member("alpha", 1), member("beta", 2)]
    fused = fused_member("fused", PAIR, members, None, max_batch_size=4)
    write_files(tmp_path, planned_fused_files(tmp_path, fused, PAIR, max_batch_size=4))
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
    assert read_config(tmp_path / "fused").parameters["members"].string_value == '["alpha@1", "beta@1"]'


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"class_names": ("x", "y", "z")}, "class names | 'alpha' | 'beta' | 'circle' | 'x' | class 0"),
        ({"input_shape": (1, 2, 8)}, "image size | 'alpha' | (1, 4, 4) | 'beta' | (1, 2, 8)"),
        ({"onnx": tiny.linear_onnx(2, shape=(1, 2, 8))}, "image size | 'alpha' | (1, 4, 4) | 'beta' | (1, 2, 8)"),
    ],
)
def test_members_that_do_not_fit_are_rejected(other: dict[str, object], text: str) -> None:
    with raises(EnsembleError, text):
        fused_member("fused", PAIR, [member("alpha", 1), member("beta", 2, **other)], None, max_batch_size=2)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("alpha", ExistsError, "alpha | single network"),
        ("ensemble", EnsembleError, "'ensemble' | ensemble | member"),
        ("second", ExistsError, "second | is an ensemble"),
        ("average_mine", EnsembleError, "average_"),
        ("../out", EnsembleError, "100 letters"),
    ],
)
@pytest.mark.parametrize("replace", [False, True])
def test_taken_names_are_rejected(repository: Path, name: str, error: type[Exception], text: str, replace: bool) -> None:
    write_files(repository, planned_files(repository, [member("gamma", 3)], ensemble="second"))
    before = content_of(repository)
    with raises(error, text):
        fuse_repository(repository, "ensemble", name, replace=replace)
    assert content_of(repository) == before


def test_models_that_are_not_ensembles_are_not_fused(repository: Path) -> None:
    with raises(EnsembleError, "alpha | not an ensemble"):
        fuse_repository(repository, "alpha", "fused")
    with pytest.raises(ConfigError, match=r"nobody/config\.pbtxt"):
        fuse_repository(repository, "nobody", "fused")
    fuse_repository(repository, "ensemble", "fused")
    with raises(EnsembleError, "fused | not an ensemble"):
        fuse_repository(repository, "fused", "again")


def test_a_changed_or_missing_member_is_detected(repository: Path) -> None:
    file = repository / "alpha/1/model.onnx"
    good = file.read_bytes()
    file.write_bytes(tiny.linear_onnx(9))
    with raises(RepositoryError, "alpha/1/model.onnx | SHA-256 | changed | damaged | 'alpha'"):
        fuse_repository(repository, "ensemble", "fused")
    file.unlink()
    with raises(RepositoryError, "alpha/1/model.onnx | missing | 'alpha'"):
        fuse_repository(repository, "ensemble", "fused")
    file.write_bytes(good)
    (repository / "alpha/config.pbtxt").unlink()
    with pytest.raises(EnsembleError, match="alpha"):
        fuse_repository(repository, "ensemble", "fused")
    assert not (repository / "fused").exists()


def test_a_member_without_a_digest_is_fused(repository: Path) -> None:
    model = onnx.load_model_from_string(tiny.linear_onnx(1))
    onnx.helper.set_model_props(model, {"defensemble.class_names": '["circle", "square", "triangle"]'})
    (repository / "alpha/1/model.onnx").write_bytes(model.SerializeToString())
    (repository / "alpha/labels.txt").unlink()
    config = read_config(repository / "alpha")
    config.parameters.clear()
    (repository / "alpha/config.pbtxt").write_bytes(pbtxt_from_config(config))
    fuse_repository(repository, "ensemble", "fused")
    config = read_config(repository / "fused")
    assert config.parameters["precision.1"].string_value == "fp32"
    assert (repository / "fused/labels.txt").read_text() == "circle\nsquare\ntriangle\n"
    (repository / "alpha/1/model.onnx").write_bytes(tiny.linear_onnx(1))
    with raises(EnsembleError, "class names | 'alpha' | 'circle' | '0' | class 0"):
        fuse_repository(repository, "ensemble", "other")
    (repository / "alpha/1/model.onnx").write_bytes(b"damaged")
    with raises(RepositoryError, "'alpha' | not an ONNX file"):
        fuse_repository(repository, "ensemble", "other")


def test_numbers_and_images_are_checked(repository: Path) -> None:
    with raises(RepositoryError, "max_batch_size | 1 to 4096 | 0"):
        fuse_repository(repository, "ensemble", "fused", max_batch_size=0)
    with pytest.raises(RepositoryError, match=r"verification .*\(N, 1, 4, 4\) .* got \(2, 3, 8, 8\)"):
        fuse_repository(repository, "ensemble", "fused", images=np.zeros((2, 3, 8, 8), np.float32))
    fuse_repository(repository, "ensemble", "fused", max_batch_size=2)
    with raises(RepositoryError, "max_batch_size 2 | --max-batch-size | 4"):
        fuse_repository(repository, "ensemble", "fused", max_batch_size=4, replace=True)


def test_another_network_cannot_be_the_next_version(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused")
    one = Ensemble("e", (Member("x"),))
    smaller = fused_member(
        "fused", one, [member("x", 1, onnx=tiny.linear_onnx(1, (1, 2, 8)), input_shape=(1, 2, 8))], None, max_batch_size=8
    )
    with raises(ExistsError, "{'images': [1, 4, 4] | {'images': [1, 2, 8]"):
        planned_fused_files(repository, smaller, one, max_batch_size=8, replace=True)
    renamed = fused_member("fused", one, [member("x", 1, class_names=("x", "y", "z"))], None, max_batch_size=8)
    with pytest.raises(ExistsError, match="class names"):
        planned_fused_files(repository, renamed, one, max_batch_size=8, replace=True)


def test_a_checkpoint_cannot_take_the_name_of_a_fused_graph(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused")
    with pytest.raises(ExistsError, match="another name"):
        planned_files(repository, [member("fused", 1)], ensemble=None, replace=True)
    with raises(ExistsError, "not an ensemble | --ensemble"):
        planned_files(repository, [member("gamma", 1)], ensemble="fused", replace=True)


def test_an_ensemble_edited_during_the_fusion_is_detected(repository: Path) -> None:
    (
        repository.parent / ".repository.staging-abcdefgh"
    ).mkdir()  # a leftover of a killed export; `on_progress` is called with the lock held

    def edit(text: str) -> None:
        write_files(repository, planned_files(repository, [member("gamma", 3)], replace=True))

    with raises(RepositoryError, "'ensemble' | again"):
        fuse_repository(repository, "ensemble", "fused", on_progress=edit)
    assert not (repository / "fused").exists()
    fuse_repository(repository, "ensemble", "fused")
    assert read_config(repository / "fused").parameters["members"].string_value == '["alpha@1", "beta@1", "gamma@1"]'


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Return a repository with ensembles of alpha, beta and gamma, and `fused`, the graph of `ensemble`."""
    folder = tiny.write_repository(tmp_path / "repository", {"alpha": 1, "beta": 2, "gamma": 3}, weight={"beta": 3.0})
    ensembles = Ensembles(folder)
    ensembles.create("canary", ["alpha", "beta"])
    ensembles.create("zoo", ["alpha", "beta", "gamma"])
    fuse_repository(folder, "ensemble", "fused", images=tiny.images(2))
    return folder


def outdated_graphs_in(folder: Path) -> list[str]:
    """Return the ensembles whose check reports `fused` as outdated."""
    names = Ensembles(folder).names()
    return [name for name in names if any(finding.model == "fused" for finding in check_ensemble(RepositoryView(folder), name))]


def without_name(folder: Path) -> None:
    """Make `fused` a graph of an older version, which names no ensemble."""
    config = read_config(folder / "fused")
    del config.parameters["ensemble"]
    (folder / "fused/config.pbtxt").write_bytes(pbtxt_from_config(config))


@pytest.mark.parametrize("is_old", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_graph_equal_to_its_ensemble_is_not_outdated(several: Path, is_old: bool) -> None:
    if is_old:
        without_name(several)
    assert outdated_graphs_in(several) == []
    Ensembles(several).weight("ensemble", {"alpha": 2.0, "beta": 6.0, "gamma": 2.0})  # the same normalised weights
    assert outdated_graphs_in(several) == []
    edited = Ensembles(several).weight("canary", {"beta": 2.0})
    assert not [remark for remark in edited.remarks if "fused" in remark]


@pytest.mark.parametrize("is_old", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_edit_makes_the_graph_outdated_for_that_ensemble_only(several: Path, is_old: bool) -> None:
    if is_old:
        without_name(several)
    edited = Ensembles(several).weight("ensemble", {"beta": 2.0})
    assert [("fused" in remark, "--ensemble ensemble " in remark) for remark in edited.remarks] == [(True, True)]
    assert len(outdated_graphs_in(several)) == 1
    if not is_old:
        assert outdated_graphs_in(several) == ["ensemble"]
    for other, weights in (("canary", {"alpha": 2.0}), ("zoo", {"alpha": 2.0})):
        remarks = Ensembles(several).weight(other, weights).remarks
        assert is_old or not [remark for remark in remarks if "fused" in remark], other
    Ensembles(several).weight("zoo", {"alpha": 1.0, "beta": 3.0})  # now the weights of the graph
    assert outdated_graphs_in(several) == []


def test_a_graph_without_an_ensemble_is_never_outdated(several: Path) -> None:
    two_members = Ensemble("fused", (Member("alpha"), Member("beta")))
    graph = fused_member("fused", two_members, [member("alpha", 1), member("beta", 2)], None, max_batch_size=8)
    write_files(several, planned_fused_files(several, graph, two_members, max_batch_size=8, replace=True))
    Ensembles(several).weight("canary", {"beta": 2.0})
    assert outdated_graphs_in(several) == []
