"""Facts about a member on disk, from its configuration, its graph's metadata and its report; damage is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from defensemble_export import planned_files, write_files
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
    facts = {"logits": 1e-4, "probabilities": None, "agreement": None}
    return report_from_export(
        content, precision="fp16", origin={"kind": "checkpoint"}, verification={**VERIFIED, **verified}, tolerance=facts
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    content = graph(1, spec=json.dumps(SPEC), record=json.dumps(RECORD), class_names="[]", mask_digest="of the graph")
    member = tiny.member("alpha", 1, onnx=content, report=report(content), precision="fp16")
    write_files(tmp_path / "repository", planned_files(tmp_path / "repository", [member], ensemble=None))
    return tmp_path / "repository"


def member_info(repository: Path, name: str = "alpha", version: int = 1) -> MemberInfo:
    return read_member_info(RepositoryView(repository), Member(name, version, 2.0), 0.25)


def test_reads_all_facts(repository: Path) -> None:
    file = repository / "alpha/1/model.onnx"
    assert member_info(repository) == MemberInfo(
        "alpha",
        1,
        2.0,
        0.25,
        precision="fp16",
        mask_aware=False,
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


def test_reads_the_metadata_of_a_real_checkpoint(repository: Path) -> None:
    from defensemble_training import ModelSpec, TrainingRecord

    trained = TrainingRecord.untrained(("a", "b"), accuracy=0.75, n_test=8, data="shapes")
    for record, facts in ((trained, (0.75, 8, "shapes")), (TrainingRecord.untrained(("a", "b")), (None, None, None))):
        spec = ModelSpec("vgg19", 0.5, (0,))
        content = graph(1, spec=spec.to_json(), record=json.dumps(record.to_values()))
        (repository / "alpha/1/model.onnx").write_bytes(content)
        info = member_info(repository)
        assert (info.arch, info.keep) == ("vgg19", 0.5)
        assert (info.record_accuracy, info.record_n, info.record_data) == facts
        assert info.problem is None


def test_reads_planned_files(repository: Path) -> None:
    content = graph(2, record=json.dumps({**RECORD, "accuracy": 0.5}))
    planned = {"alpha/1/model.onnx": content, "alpha/1/model.onnx.json": None}
    info = read_member_info(RepositoryView(repository, planned), Member("alpha"), 1.0)
    assert (info.record_accuracy, info.exported_accuracy, info.bytes) == (0.5, None, len(content))
    assert_facts(info.problem or "", f"{repository / 'alpha/1/model.onnx.json'} | missing")


def test_unknown_facts_are_none(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    path = repository / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    for key in list(config.parameters):
        del config.parameters[key]
    path.write_bytes(pbtxt_from_config(config))
    info = member_info(repository)
    size = (repository / "alpha/1/model.onnx").stat().st_size
    assert info == MemberInfo("alpha", 1, 2.0, 0.25, mask_aware=False, bytes=size, problem=info.problem)
    assert member_info(repository, "beta").precision == "fp32"


def test_the_graph_supplements_its_configuration(repository: Path) -> None:
    path = repository / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    for key in ("precision.1", "mask_digest.1"):
        del config.parameters[key]
    path.write_bytes(pbtxt_from_config(config))
    assert (member_info(repository).precision, member_info(repository).mask_digest) == ("fp32", "of the graph")
    (repository / "alpha/1/model.onnx").write_bytes(graph(1, precision="int8", class_names="[]"))
    assert member_info(repository).precision == "int8"


def test_images_without_labels_have_no_accuracy(repository: Path) -> None:
    content = (repository / "alpha/1/model.onnx").read_bytes()
    (repository / "alpha/1/model.onnx.json").write_bytes(report(content, accuracy=None, reference_accuracy=None))
    info = member_info(repository)
    assert (info.exported_accuracy, info.exported_n, info.exported_images, info.problem) == (None, None, None, None)


def test_a_plan_has_its_own_size_and_the_facts_of_its_graph(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", default_model_filename="model.plan")
    (repository / "alpha/1/model.plan").write_bytes(b"plan")
    info = member_info(repository)
    assert (info.bytes, info.arch, info.problem) == (4, "resnet18", None)
    (repository / "alpha/1/model.onnx").unlink()
    info = member_info(repository)
    assert (info.bytes, info.arch) == (4, None)
    assert_facts(info.problem or "", f"{repository / 'alpha/1/model.onnx'} | missing | model.plan")


def write(path: str, content: bytes) -> Callable[[Path], None]:
    def written(repository: Path) -> None:
        (repository / path).write_bytes(content)

    return written


def with_metadata(**metadata: str) -> Callable[[Path], None]:
    return write("alpha/1/model.onnx", graph(1, **metadata))


@pytest.mark.parametrize(
    ("damage", "facts"),
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
def test_reports_missing_and_damaged_files_and_all_other_facts(repository: Path, damage: Callable[[Path], None], facts: str) -> None:
    damage(repository)
    info = member_info(repository)
    assert (info.model, info.version, info.weight, info.share) == ("alpha", 1, 2.0, 0.25)
    assert_facts(info.problem or "", facts)
    known = [info.precision, info.arch, info.record_accuracy, info.exported_accuracy, info.bytes]
    assert [value for value in known if value is not None], "one damage hides nothing else"


def test_reports_a_missing_version(repository: Path) -> None:
    info = member_info(repository, version=7)
    assert info.problem is not None
    assert info.problem.count("alpha/7") == 2
    assert (info.bytes, info.sha256) == (None, None)
    assert "nowhere" in (member_info(repository, "nowhere").problem or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("path", ["alpha/config.pbtxt", "alpha/1/model.onnx", "alpha/1/model.onnx.json"])
def test_reports_an_unreadable_file(repository: Path, path: str) -> None:
    (repository / path).chmod(0)
    assert f"{repository / path}: Permission denied" in (member_info(repository).problem or "")
