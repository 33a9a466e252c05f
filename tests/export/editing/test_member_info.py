"""What is known of a member on disk: read from its configuration, its graph's metadata and its report; what is damaged is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from defensemble_export import repository_plan, write_files
from defensemble_export.editing import MemberInfo, read_member_info
from defensemble_export.members.report import report_from_export
from defensemble_repository.ensemble import Member
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import assert_facts

RECORD = {"accuracy": 0.9123, "n_test": 10000, "data": "cifar10", "loss": 0.1}
SPEC = {"arch": "resnet18", "keep": 0.3, "blocks": [0, 1]}
VERIFIED = {
    "against": "torch 2",
    "images": "test images of cifar10",
    "n": 2000,
    "agreement": 1.0,
    "largest_logit_difference": 1e-6,
    "largest_probability_difference": 1e-7,
    "accuracy": 0.905,
    "reference_accuracy": 0.9055,
}


def graph(seed: int, **metadata: str) -> bytes:
    """`tiny.linear_onnx` with metadata."""
    model = onnx.load_model_from_string(tiny.linear_onnx(seed))
    onnx.helper.set_model_props(model, {f"defensemble.{key}": value for key, value in metadata.items()})
    content: bytes = model.SerializeToString()
    return content


def report(content: bytes, **verified: Any) -> bytes:
    told = {"logits": 1e-4, "probabilities": None, "agreement": None}
    return report_from_export(
        content, precision="fp16", origin={"kind": "checkpoint"}, verification={**VERIFIED, **verified}, tolerance=told
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    content = graph(1, spec=json.dumps(SPEC), record=json.dumps(RECORD), class_names="[]", mask_digest="of the graph")
    member = tiny.member("alpha", 1, onnx=content, report=report(content), precision="fp16")
    write_files(tmp_path / "repository", repository_plan(tmp_path / "repository", [member], ensemble=None))
    return tmp_path / "repository"


def standing(repository: Path, name: str = "alpha", version: int = 1) -> MemberInfo:
    return read_member_info(RepositoryView(repository), Member(name, version, 2.0), 0.25)


def test_all_that_is_known_of_a_member_is_told(repository: Path) -> None:
    file = repository / "alpha/1/model.onnx"
    assert standing(repository) == MemberInfo(
        "alpha",
        1,
        2.0,
        0.25,
        precision="fp16",
        mask_digest="masks-1",
        sha256=RepositoryView(repository).digest("alpha/1/model.onnx"),
        bytes=file.stat().st_size,
        arch="resnet18",
        keep=0.3,
        record_accuracy=0.9123,
        record_n=10000,
        record_data="cifar10",
        exported_accuracy=0.905,
        exported_n=2000,
        exported_images="test images of cifar10",
        problem=None,
    )


def test_a_checkpoint_s_own_words_are_those_that_are_read(repository: Path) -> None:
    from defensemble_training import ModelSpec, TrainingRecord

    trained = TrainingRecord.untrained(("a", "b"), accuracy=0.75, n_test=8, data="shapes")
    for record, told in ((trained, (0.75, 8, "shapes")), (TrainingRecord.untrained(("a", "b")), (None, None, None))):
        spec = ModelSpec("vgg19", 0.5, (0,))
        content = graph(1, spec=spec.to_json(), record=json.dumps(record.to_values()))
        (repository / "alpha/1/model.onnx").write_bytes(content)
        found = standing(repository)
        assert (found.arch, found.keep) == ("vgg19", 0.5)
        assert (found.record_accuracy, found.record_n, found.record_data) == told
        assert found.problem is None


def test_planned_files_count_as_written(repository: Path) -> None:
    content = graph(2, record=json.dumps({**RECORD, "accuracy": 0.5}))
    planned = {"alpha/1/model.onnx": content, "alpha/1/model.onnx.json": None}
    found = read_member_info(RepositoryView(repository, planned), Member("alpha"), 1.0)
    assert (found.record_accuracy, found.exported_accuracy, found.bytes) == (0.5, None, len(content))
    assert_facts(found.problem or "", f"{repository / 'alpha/1/model.onnx.json'} | missing")


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    path = repository / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    for key in list(config.parameters):
        del config.parameters[key]
    path.write_bytes(pbtxt_from_config(config))
    found = standing(repository)
    size = (repository / "alpha/1/model.onnx").stat().st_size
    assert found == MemberInfo("alpha", 1, 2.0, 0.25, bytes=size, problem=found.problem)
    assert standing(repository, "beta").precision == "fp32"


def test_a_graph_says_what_its_configuration_does_not(repository: Path) -> None:
    path = repository / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    for key in ("precision.1", "mask_digest.1"):
        del config.parameters[key]
    path.write_bytes(pbtxt_from_config(config))
    assert (standing(repository).precision, standing(repository).mask_digest) == ("fp32", "of the graph")
    (repository / "alpha/1/model.onnx").write_bytes(graph(1, precision="int8", class_names="[]"))
    assert standing(repository).precision == "int8"


def test_images_without_classes_have_no_accuracy(repository: Path) -> None:
    content = (repository / "alpha/1/model.onnx").read_bytes()
    (repository / "alpha/1/model.onnx.json").write_bytes(report(content, accuracy=None, reference_accuracy=None))
    found = standing(repository)
    assert (found.exported_accuracy, found.exported_n, found.exported_images, found.problem) == (None, None, None, None)


def test_of_a_plan_its_size_is_told_and_of_the_graph_beside_it_the_rest(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", default_model_filename="model.plan")
    (repository / "alpha/1/model.plan").write_bytes(b"plan")
    found = standing(repository)
    assert (found.bytes, found.arch, found.problem) == (4, "resnet18", None)
    (repository / "alpha/1/model.onnx").unlink()
    found = standing(repository)
    assert (found.bytes, found.arch) == (4, None)
    assert_facts(found.problem or "", f"{repository / 'alpha/1/model.onnx'} | missing | model.plan")


def write(path: str, content: bytes) -> Callable[[Path], None]:
    def written(repository: Path) -> None:
        (repository / path).write_bytes(content)

    return written


def with_metadata(**metadata: str) -> Callable[[Path], None]:
    return write("alpha/1/model.onnx", graph(1, **metadata))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda repository: (repository / "alpha/1/model.onnx.json").unlink(), "alpha/1/model.onnx.json | missing"),
        (write("alpha/1/model.onnx.json", b"{"), "alpha/1/model.onnx.json | JSONDecodeError"),
        (write("alpha/1/model.onnx.json", b"[]"), "model.onnx.json | TypeError"),
        (write("alpha/1/model.onnx.json", b"[" * 100_000), "model.onnx.json | RecursionError"),
        (write("alpha/1/model.onnx.json", b"\xff"), "model.onnx.json | UnicodeDecodeError"),
        (write("alpha/1/model.onnx.json", report(b"")), "model.onnx.json | another file"),
        (write("alpha/1/model.onnx.json", report(b"", n=float("inf"))), "model.onnx.json | OverflowError"),
        (lambda repository: (repository / "alpha/1/model.onnx").unlink(), "alpha/1/model.onnx | missing"),
        (write("alpha/1/model.onnx", b"no graph"), "alpha/1/model.onnx | ONNX file"),
        (with_metadata(spec="{"), "metadata | alpha/1/model.onnx | JSONDecodeError"),
        (with_metadata(spec="[]"), "metadata | TypeError"),
        (with_metadata(spec='{"arch": 1, "keep": 0.5}'), "metadata | TypeError: 1"),
        (with_metadata(spec='{"arch": "a", "keep": true}'), "metadata | TypeError: True"),
        (with_metadata(record="{}"), "metadata | KeyError: 'accuracy'"),
        (with_metadata(record='{"accuracy": "1", "n_test": 1, "data": ""}'), "metadata | TypeError: '1'"),
        (with_metadata(record='{"accuracy": 1, "n_test": Infinity, "data": ""}'), "metadata | OverflowError"),
        (lambda repository: (repository / "alpha/config.pbtxt").unlink(), "alpha/config.pbtxt | does not exist"),
        (write("alpha/config.pbtxt", b"nonsense {"), "alpha/config.pbtxt: | configuration"),
        (write("alpha/config.pbtxt", b"name: 'beta'"), 'alpha/config.pbtxt | name: "beta"'),
    ],
)
def test_what_is_missing_or_damaged_is_told_and_the_rest_too(repository: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(repository)
    found = standing(repository)
    assert (found.model, found.version, found.weight, found.share) == ("alpha", 1, 2.0, 0.25)
    assert_facts(found.problem or "", told)
    known = [found.precision, found.arch, found.record_accuracy, found.exported_accuracy, found.bytes]
    assert [value for value in known if value is not None], "one damage hides nothing else"


def test_a_version_that_is_not_there_is_told(repository: Path) -> None:
    found = standing(repository, version=7)
    assert found.problem is not None
    assert found.problem.count("alpha/7") == 2
    assert (found.bytes, found.sha256) == (None, None)
    assert "nowhere" in (standing(repository, "nowhere").problem or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("path", ["alpha/config.pbtxt", "alpha/1/model.onnx", "alpha/1/model.onnx.json"])
def test_a_file_that_may_not_be_read_is_told(repository: Path, path: str) -> None:
    (repository / path).chmod(0)
    assert f"{repository / path}: Permission denied" in (standing(repository).problem or "")
