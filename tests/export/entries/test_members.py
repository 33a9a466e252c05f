"""The files that an export writes, before anything is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import EnsembleError, ExistsError, planned_files, write_files
from defensemble_repository.errors import ConfigError, RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from tests.support import tiny
from tests.support.facts import raises
from tests.support.tiny import member


def test_plans_a_new_repository(tmp_path: Path) -> None:
    members = [member("a", 1), member("b", 2)]
    plan = planned_files(tmp_path, members, weights={"b": 3.0})
    digest = next(path for path in plan if path.startswith("average_")).split("/")[0].removeprefix("average_")
    assert list(plan) == [
        "a/1/model.onnx",
        "a/labels.txt",
        "a/config.pbtxt",
        "b/1/model.onnx",
        "b/labels.txt",
        "b/config.pbtxt",
        f"average_{digest}/1/model.onnx",
        f"average_{digest}/config.pbtxt",
        "ensemble/1/placeholder",
        "ensemble/labels.txt",
        "ensemble/config.pbtxt",
    ]
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    a = config_from_pbtxt(plan["a/config.pbtxt"].decode(), "a")
    assert (a.backend, a.max_batch_size) == ("onnxruntime", 64)
    assert a.version_policy.HasField("all")
    assert a.HasField("dynamic_batching")
    assert [(x.name, list(x.dims)) for x in (*a.input, *a.output)] == [("images", [1, 4, 4]), ("logits", [3])]
    assert a.output[0].label_filename == "labels.txt"
    assert a.parameters["sha256.1"].string_value == hashlib.sha256(plan["a/1/model.onnx"]).hexdigest()
    assert a.parameters["mask_digest.1"].string_value == "masks-1"
    average = config_from_pbtxt(plan[f"average_{digest}/config.pbtxt"].decode(), "average")
    assert json.loads(average.parameters["weights"].string_value) == [1.0, 3.0]
    assert json.loads(average.parameters["members"].string_value) == ["a@1", "b@1"]
    assert average.parameters["average"].string_value == "probabilities"
    assert average.parameters["intra_op_thread_count"].string_value == "1"
    assert average.version_policy.HasField("all")
    assert [(group.kind, group.count) for group in average.instance_group] == [(schema.ModelInstanceGroup.KIND_CPU, 1)]
    ensemble = config_from_pbtxt(plan["ensemble/config.pbtxt"].decode(), "ensemble")
    for config in (average, ensemble):
        assert [(x.name, list(x.dims)) for x in config.output] == [
            ("probabilities", [3]),
            ("member_probabilities", [2, 3]),
            ("entropy", [1]),
            ("mutual_information", [1]),
        ]
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["a", "b", f"average_{digest}"]
    assert ensemble.output[0].label_filename == "labels.txt"
    assert all(step.model_version == 1 for step in ensemble.ensemble_scheduling.step), "steps pin versions"
    assert plan["ensemble/labels.txt"] == b"circle\nsquare\ntriangle\n"


def test_existing_entries_need_replace(tmp_path: Path) -> None:
    write_files(tmp_path, planned_files(tmp_path, [member("a"), member("b")]))
    with raises(ExistsError, "/a | already | --name NAME | --replace"):
        planned_files(tmp_path, [member("a")], ensemble=None)
    with raises(ExistsError, "ensemble | already"):
        planned_files(tmp_path, [member("c")])
    with pytest.raises(ExistsError, match="is an ensemble"):
        planned_files(tmp_path, [member("ensemble")], ensemble=None, replace=True)
    with pytest.raises(ExistsError, match="not an ensemble"):
        planned_files(tmp_path, [member("c")], ensemble="a", replace=True)


def test_replace_adds_a_version_and_keeps_hand_edits(tmp_path: Path) -> None:
    write_files(tmp_path, planned_files(tmp_path, [member("a", 1), member("b", 2)]))
    old = (tmp_path / "a/1/model.onnx").read_bytes()
    path = tmp_path / "a/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "a")
    config.max_batch_size = 16
    path.write_bytes(pbtxt_from_config(config))
    (tmp_path / "a/configs").mkdir()
    (tmp_path / "a/configs/gpu.pbtxt").write_bytes(path.read_bytes())

    plan = planned_files(tmp_path, [member("a", 9)], replace=True)
    assert "a/1/model.onnx" not in plan
    assert plan["a/2/model.onnx"] == tiny.linear_onnx(9)
    for name in ("a/config.pbtxt", "a/configs/gpu.pbtxt"):
        config = config_from_pbtxt(plan[name].decode(), name)
        assert config.max_batch_size == 16
        assert {key for key in config.parameters} == {
            f"{what}.{version}" for what in ("sha256", "mask_digest", "precision") for version in (1, 2)
        }
    ensemble = config_from_pbtxt(plan["ensemble/config.pbtxt"].decode(), "ensemble")
    first = ensemble.ensemble_scheduling.step[0]
    assert (first.model_name, first.model_version) == ("a", 2)
    assert list(plan)[:3] == ["a/configs/gpu.pbtxt", "a/config.pbtxt", "a/2/model.onnx"], "what describes a version is there before it"
    assert ensemble.max_batch_size == 16, "at most what each member takes"
    assert "ensemble/1/placeholder" not in plan, "files that do not change are not touched"
    assert "ensemble/labels.txt" not in plan
    write_files(tmp_path, plan)
    assert (tmp_path / "a/1/model.onnx").read_bytes() == old


def test_a_new_version_must_have_the_same_interface(tmp_path: Path) -> None:
    write_files(tmp_path, planned_files(tmp_path, [member("a")], ensemble=None))
    with pytest.raises(ExistsError, match="another name"):
        planned_files(tmp_path, [member("a", num_classes=2, class_names=("x", "y"))], ensemble=None, replace=True)
    with pytest.raises(ExistsError, match="class names"):
        planned_files(tmp_path, [member("a", class_names=("x", "y", "z"))], ensemble=None, replace=True)


def test_an_existing_averaging_model_is_not_written_again(tmp_path: Path) -> None:
    write_files(tmp_path, planned_files(tmp_path, [member("a"), member("b")]))
    for folder in (tmp_path / "a", tmp_path / "b"):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        folder.rmdir()
    plan = planned_files(tmp_path, [member("a"), member("b")], ensemble="second")
    assert not [path for path in plan if path.startswith("average_")]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda r: planned_files(r, [member("a"), member("a")]), EnsembleError, "twice"),
        (
            lambda r: planned_files(r, [member("a")], weights={"z": 1.0}),
            EnsembleError,
            "z | 'ensemble' | a",
        ),
        (lambda r: planned_files(r, [member("a")], max_batch_size=0), RepositoryError, "1 to 4096 | 0"),
        (lambda r: planned_files(r, [member("a"), member("b", input_shape=(1, 2, 8))]), EnsembleError, "share | input shape"),
        (lambda r: planned_files(r, [member("a"), member("b", class_names=("x", "y", "z"))]), EnsembleError, "share | class names"),
        (lambda r: member("a", class_names=("x",)), RepositoryError, "3 classes | 1 class names"),
        (lambda r: member("a", class_names=("x", "y\n", "z")), RepositoryError, "control characters | class 1"),
    ],
)
def test_refuses_impossible_plans(tmp_path: Path, call: object, error: type[Exception], text: str) -> None:
    assert callable(call)
    with raises(error, text):
        call(tmp_path)


def test_names_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"config\.pbtxt"):
        planned_files(tmp_path, [member("a")], ensemble=None, replace=True)
    (tmp_path / "a/config.pbtxt").write_text("max_batch_size: many")
    with raises(ConfigError, "a/config.pbtxt | 1:17"):
        planned_files(tmp_path, [member("a")], ensemble=None, replace=True)


def test_refuses_a_configuration_that_does_not_round_trip() -> None:
    config = schema.ModelConfig(name="a")
    config.MergeFromString(b"\x98\x7d\x01")  # a field of a newer schema, which has no text form
    with pytest.raises(ConfigError, match="'a'"):
        pbtxt_from_config(config)


def test_parsed_configurations_are_independent() -> None:
    text = 'name: "a" parameters { key: "average" value { string_value: "logits" } }'
    config = config_from_pbtxt(text, "a")
    config.name = "b"
    config.parameters["average"].string_value = "probabilities"
    again = config_from_pbtxt(text, "a")
    assert (again.name, again.parameters["average"].string_value) == ("a", "logits")
