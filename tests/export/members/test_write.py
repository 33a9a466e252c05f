"""Exports from the command line: precisions, fused graphs, foreign ONNX files, engines and reports."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble_export import ExportError, ExportOptions, OnnxSource, fused_onnx
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import RepositoryError
from defensemble_repository.export_report import read_reports
from defensemble_repository.reader import read_config, read_ensemble
from tests.export.members.test_from_checkpoint import digits_spec, untrained
from tests.support.broken import content, small_disk, untrained_checkpoint
from tests.support.facts import assert_facts, raises
from tests.support.foreign_models import CLASSES, SHAPE, answer, classifier
from tests.support.tiny import softmax


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def error_text(result: Result) -> str:
    """Return the error of a failed command, after checking that there is no traceback."""
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), (result.output, result.exception)
    _, error, text = result.stderr.partition("Error: ")
    assert error, result.stderr
    return " ".join(text.split())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).random((200, *SHAPE), np.float32))
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Write the foreign classifiers `a.onnx` and `b.onnx`, with opset 18 and other names than ours."""
    for seed, name in enumerate("ab"):
        onnx.save(classifier(seed=seed), tmp_path / f"{name}.onnx")
    return tmp_path / "a.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_file_has_a_report_that_is_shown(repository: Path, foreign: Path, images: Path, precision: str) -> None:
    options = ["--calibration-images", images, "--calibration-count", "50", "--calibration-seed", "3"] if precision == "int8" else []
    done = run("import-onnx", foreign, "--name", "net", "--precision", precision, "--images", images, "--repository", repository, *options)
    assert done.exit_code == 0, done.output
    model = repository / "net/1/model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    config = read_config(repository / "net")
    assert {key: config.parameters[key].string_value for key in config.parameters} == {"sha256.1": digest, "precision.1": precision}
    report = json.loads((repository / "net/1/model.onnx.json").read_text())
    assert (report["schema"], report["precision"], report["onnx"]["sha256"]) == ("defensemble.export/1", precision, digest)
    assert report["origin"]["sha256"] == hashlib.sha256(foreign.read_bytes()).hexdigest()
    verified = report["verification"]
    assert verified["n"] == (1 + 2 + 64 if precision == "fp32" else 200)
    assert verified["agreement"] >= {"fp32": 1, "fp16": 0.995, "int8": 0.9}[precision]
    if precision == "int8":
        drawn = {key: report["calibration"][key] for key in ("count", "seed", "source")}
        assert drawn == {"count": 50, "seed": 3, "source": "user-supplied images"}
    else:
        assert report["calibration"] is None
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0, shown.output
    (row,) = [line for line in shown.stdout.splitlines() if line.strip().startswith("net@1 ")]
    assert row.split()[1] == precision
    assert f"{100 * verified['agreement']:.2f}" in row
    assert ("50 user-supplied images, seed 3" in shown.stdout) == (precision == "int8")


def test_a_missing_damaged_or_foreign_report_is_mentioned(repository: Path, foreign: Path, images: Path) -> None:
    for name in ("missing", "damaged", "other", "good"):
        done = run("import-onnx", foreign, "--name", name, "--images", images, "--repository", repository, "--no-ensemble")
        assert done.exit_code == 0, done.output
    (repository / "missing/1/model.onnx.json").unlink()
    (repository / "damaged/1/model.onnx.json").write_text('{"schema": "defensemble.export/1"')
    (repository / "other/1/model.onnx").write_bytes(b"changed")
    problems = {one.model: one.problem for one in read_reports(repository)}
    assert problems["good"] is None
    assert "has no model.onnx.json" in str(problems["missing"])
    assert "is damaged" in str(problems["damaged"])
    assert "changed" in str(problems["other"])
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0
    assert sum(": no report: " in line for line in shown.stdout.splitlines()) == 3
    with pytest.raises(RepositoryError, match="has no model nothing; its models are damaged, good, missing, other"):
        read_reports(repository, ["nothing"])
    assert "not a folder" in error_text(run("export-report", "--repository", repository / "none"))
    (repository.parent / "empty").mkdir()
    assert "no exported model" in error_text(run("export-report", "--repository", repository.parent / "empty"))


def test_checkpoints_and_onnx_files_form_one_ensemble_and_one_graph(repository: Path, foreign: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{name}\n" for name in "vwxyz"))
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    np.save(tmp_path / "some.npy", images)
    shared = ["--labels", labels, "--images", tmp_path / "some.npy", "--repository", repository]
    assert run("import-onnx", foreign, "--name", "a", *shared).exit_code == 0
    done = run("import-onnx", tmp_path / "b.onnx", "--name", "b", *shared, "--replace", "--weight", "b=3")
    assert done.exit_code == 0, done.output
    done = run("fuse", "both", "--images", tmp_path / "some.npy", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert [(member.model, member.weight) for member in read_ensemble(repository, "ensemble").members] == [("a", 1), ("b", 3)]
    assert (repository / "both/labels.txt").read_text() == labels.read_text()
    session = onnxruntime.InferenceSession(repository / "both/1/model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(["probabilities"], {"images": images})
    expected = sum(weight * softmax(answer(images, seed)) for seed, weight in ((0, 0.25), (1, 0.75)))
    assert np.abs(got - expected).max() < 1e-5
    report = json.loads((repository / "both/1/model.onnx.json").read_text())
    assert max(report["verification"]["largest_difference"].values()) <= 1e-6
    again = run("fuse", "later", "--repository", repository)
    assert again.exit_code == 0, again.output
    assert (repository / "later/1/model.onnx").read_bytes() == (repository / "both/1/model.onnx").read_bytes()


def test_checkpoints_can_be_fused_without_becoming_members(repository: Path, tmp_path: Path) -> None:
    paths = [untrained_checkpoint(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab")]
    done = run("fuse", "one", *paths, "--weight", "a=3", "--average", "logits", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert [path.name for path in repository.iterdir()] == ["one"]
    parameters = read_config(repository / "one").parameters
    assert json.loads(parameters["weights"].string_value) == [3, 1]
    assert (parameters["average"].string_value, parameters["members"].string_value) == ("logits", '["a@1", "b@1"]')
    before = content(tmp_path)
    text = error_text(run("fuse", "two", *paths, "--weight", "c=3", "--repository", repository))
    assert_facts(text, "c | 'two' | a, b")
    assert "already" in error_text(run("fuse", "one", *paths, "--repository", repository))
    assert "of a member" in error_text(run("fuse", "a", *paths, "--repository", repository))
    assert content(tmp_path) == before


def test_a_failed_import_leaves_nothing(repository: Path, foreign: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "text.onnx").write_text("these are no weights")
    np.save(tmp_path / "small.npy", np.zeros((2, 3, 4, 4), np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, *SHAPE), np.float32))
    np.save(tmp_path / "same.npy", np.full((20, *SHAPE), 0.5, np.float32))
    onnx.save(classifier(opset=5), tmp_path / "old.onnx")
    before = content(tmp_path)

    def calibrated(file: str) -> list[str | Path]:
        return ["--precision", "int8", "--images", images, "--calibration-images", tmp_path / file]

    for file, options, text in (
        ("text.onnx", [], "is a text file, expected ONNX"),
        ("old.onnx", [], "has opset 5"),
        ("a.onnx", ["--output", "nothing"], "nothing"),
        ("a.onnx", ["--labels", tmp_path / "four.txt"], f"has {CLASSES} classes, got 4 class names: pass one per class"),
        ("a.onnx", ["--images", tmp_path / "small.npy"], "for the network, got (2, 3, 4, 4)"),
        ("a.onnx", ["--precision", "fp16"], "must be compared with the original on real images: pass some (--images FILE.npy)"),
        ("a.onnx", ["--precision", "int8", "--images", images], "must be calibrated on training images: pass some (--calibration-images"),
        ("a.onnx", calibrated("none.npy"), "got an empty batch of shape (0, 3, 6, 8)"),
        ("a.onnx", calibrated("same.npy"), "are all the same (20)"),
        ("a.onnx", [*calibrated("images.npy"), "--calibration-count", "1"], "must be at least 2 images, got 1"),
        ("a.onnx", ["--mean", "0.5,0.5", "--std", "1"], "mean"),
    ):
        result = run("import-onnx", tmp_path / file, "--name", "net", "--repository", repository, *options)
        assert text in error_text(result), file
        assert content(tmp_path) == before


def test_members_with_other_images_or_classes_are_rejected(repository: Path, foreign: Path, images: Path, tmp_path: Path) -> None:
    assert run("import-onnx", foreign, "--name", "a", "--images", images, "--repository", repository).exit_code == 0
    before = content(repository)
    (tmp_path / "other.txt").write_text("".join(f"{name}\n" for name in "vwxyz"))
    onnx.save(classifier(shape=("N", 3, 6, 6)), tmp_path / "small.onnx")
    for file, options, text in (
        ("b.onnx", ["--labels", tmp_path / "other.txt"], "the class names in"),
        ("small.onnx", [], "'a' has input and output [[3, 6, 8], [5]], but 'net' has [[3, 6, 6], [5]]"),
    ):
        done = run("import-onnx", tmp_path / file, "--name", "net", "--replace", "--repository", repository, *options)
        assert text in error_text(done)
        assert content(repository) == before


def test_engine_without_tensorrt_fails_before_the_export(repository: Path, foreign: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    text = error_text(run("import-onnx", foreign, "--name", "a", "--engine", "--repository", repository))
    assert "TensorRT" in text
    assert "docker compose --profile gpu run --rm engines" in text
    assert "nvcr.io/nvidia/tensorrt:" in text
    assert not repository.exists()


def test_a_verification_on_random_images_only_is_mentioned(repository: Path, foreign: Path) -> None:
    for name, words in (("a", ["import-onnx", foreign, "--name", "a"]), ("one", ["fuse", "one"])):
        done = run(*words, "--repository", repository)
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.stderr.splitlines() if line.endswith("--images FILE.npy")]
        assert line.startswith(f"note: {name}@1 ")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"precision": 5},
        {"onnx": {"bytes": "x"}},
        {"onnx": 5},
        {"verification": 5},
        {"verification": {"agreement": None}},
        {"verification": {"n": "x"}},
        {"calibration": {"count": 5}},
        {"schema": "defensemble.export/2"},
        {"tolerance": []},
    ],
)
def test_any_damaged_report_is_mentioned(repository: Path, foreign: Path, values: dict[str, object]) -> None:
    assert run("import-onnx", foreign, "--name", "net", "--repository", repository).exit_code == 0
    path = repository / "net/1/model.onnx.json"
    whole = json.loads(path.read_text())
    damaged = {key: {**whole[key], **value} if isinstance(value, dict) else value for key, value in values.items() if key != "calibration"}
    path.write_text(json.dumps({**whole, **damaged, **{key: values[key] for key in values if key == "calibration"}} if values else {}))
    assert "is damaged" in str(read_reports(repository)[0].problem)
    path.write_text("[" * 200_000)
    (repository / "net/²").mkdir()
    (repository / "net/²/model.onnx").write_bytes(b"")
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0, shown.output
    assert "net@1: no report: " in shown.stdout


@pytest.mark.parametrize("name", ["a\0x", "\x1b[1m", "a\u2028b"])
def test_a_class_name_with_control_characters_is_rejected(repository: Path, foreign: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.txt").write_text("\n".join([name, *"bcde"]))
    result = run("import-onnx", foreign, "--name", "net", "--labels", tmp_path / "labels.txt", "--repository", repository)
    assert "labels.txt" in error_text(result)
    assert "line 1" in error_text(result)
    assert not repository.exists()


def test_the_report_contains_the_number_of_compared_images(repository: Path, foreign: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).random((1, *SHAPE), np.float32))
    done = run("import-onnx", foreign, "--name", "net", "--images", tmp_path / "one.npy", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert run("fuse", "both", "--images", tmp_path / "one.npy", "--repository", repository).exit_code == 0
    assert [(one.values or {})["verification"]["n"] for one in read_reports(repository)] == [1, 1]


def test_an_outdated_fused_graph_is_mentioned(repository: Path, foreign: Path, tmp_path: Path) -> None:
    assert run("import-onnx", foreign, "--name", "a", "--repository", repository).exit_code == 0
    assert run("fuse", "one", "--repository", repository).exit_code == 0
    done = run("import-onnx", tmp_path / "b.onnx", "--name", "b", "--repository", repository, "--replace")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "graph 'one' has other" in line]
    assert_facts(line, f"fuse one --repository {repository} --ensemble ensemble --replace")
    again = run("fuse", "one", "--replace", "--repository", repository)
    assert again.exit_code == 0, again.output
    assert "graph 'one' has other" not in again.stderr


def test_checkpoints_of_another_image_size_fail_before_slow_work(repository: Path, tmp_path: Path) -> None:
    paths = [untrained_checkpoint(tmp_path / "small.safetensors"), untrained(tmp_path / "large.safetensors", digits_spec(width=2))]
    result = run("export", *paths, "--repository", repository)
    assert_facts(error_text(result), "input shape | 'small' | (1, 8, 8) | 'large' | (1, 16, 16)")
    assert "exported and verified" not in result.stderr


def test_a_full_disk_leaves_the_repository_unchanged(foreign: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        assert run("import-onnx", foreign, "--name", "a", "--repository", disk / "repository").exit_code == 0
        before = content(disk / "repository")
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        for words in (["import-onnx", tmp_path / "b.onnx", "--name", "b", "--replace"], ["fuse", "one"]):
            text = error_text(run(*words, "--repository", disk / "repository"))
            assert text.startswith(f"No space left on device: {disk}/")
            assert content(disk / "repository") == before
            assert sorted(path.name for path in disk.iterdir()) == ["filler", "repository"]


def test_an_inconsistent_ensemble_is_not_fused(repository: Path, foreign: Path) -> None:
    assert run("import-onnx", foreign, "--name", "a", "--repository", repository).exit_code == 0
    (average,) = repository.glob("average_*")

    def fused(path: Path, old: str, new: str) -> str:
        whole = path.read_text()
        assert old in whole
        path.write_text(whole.replace(old, new))
        text = error_text(run("fuse", "one", "--repository", repository))
        path.write_text(whole)
        return text

    text = fused(average / "config.pbtxt", '"probabilities"\n  }\n}', '"logits"\n  }\n}')
    assert f"{average / 'config.pbtxt'}:" in text
    assert "logits of a@1 with weight 1" in text
    assert "and 'a' have different class names, '9' and '0'" in fused(repository / "ensemble/labels.txt", "0", "9")
    config = repository / "a/config.pbtxt"
    assert f"computes in fp32, but {config} states precision.1 'fp7'" in fused(config, "fp32", "fp7")
    (average / "1/model.onnx").write_bytes(b"another")
    assert f"{average / '1/model.onnx'}: version 1: this file has SHA-256" in error_text(run("fuse", "one", "--repository", repository))


def test_the_precision_of_a_member_is_that_of_its_file(repository: Path, foreign: Path, images: Path) -> None:
    options = ["--precision", "fp16", "--images", images, "--repository", repository]
    assert run("import-onnx", foreign, "--name", "a", *options).exit_code == 0
    config = repository / "a/config.pbtxt"
    config.write_text(config.read_text().replace("fp16", "fp32"))
    text = error_text(run("fuse", "one", "--repository", repository))
    assert f"a/1/model.onnx computes in fp16, but {config} states precision.1 'fp32'; write 'fp16' there" in text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ExportOptions(calibration_count=2.5), "count | integer | 2.5"),  # type: ignore[arg-type]
        (lambda: ExportOptions(calibration_seed="x"), "seed | integer | 'x'"),  # type: ignore[arg-type]
        (lambda: ExportOptions(["fp32"]), "precision | fp32, fp16, int8 | ['fp32']"),  # type: ignore[arg-type]
        (lambda: OnnxSource(Path("x"), "x", class_names="abc"), "class_names | sequence of texts"),  # type: ignore[arg-type]
        (lambda: fused_onnx(["x"], Ensemble("e", (Member("a"),))), "'a' | bytes"),  # type: ignore[list-item]
        (lambda: onnx_from_foreign("x.onnx"), "x.onnx | not exist"),
        (lambda: read_reports(Path("nowhere")), "nowhere | not a folder"),
    ],
)
def test_values_of_the_wrong_type_are_rejected(make: Callable[[], object], text: str) -> None:
    with pytest.raises(RepositoryError, match=text):
        make()


@pytest.mark.parametrize("path", [None, 5, b"x.onnx"])
def test_a_path_of_the_wrong_type_is_rejected(path: object) -> None:
    with pytest.raises(ExportError, match="ONNX file"):
        onnx_from_foreign(path)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="ONNX file"):
        OnnxSource(path, "a")  # type: ignore[arg-type]


def test_shapes_and_domains_of_the_wrong_type_are_rejected(foreign: Path) -> None:
    for shape in ((3.0, 6, 8), 3):
        with raises(ExportError, "input_shape | three integers"):
            onnx_from_foreign(foreign, input_shape=shape)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="custom_domains"):
        onnx_from_foreign(foreign, custom_domains="com.microsoft")


def test_a_normalisation_may_be_a_numpy_array(foreign: Path) -> None:
    listed = onnx_from_foreign(foreign, mean=[0.5, 0.25, 0.125], std=[2.0])
    arrays = onnx_from_foreign(foreign, mean=np.array([0.5, 0.25, 0.125]), std=[np.float32(2)])  # type: ignore[arg-type]
    assert listed == arrays


def test_a_version_pinned_by_hand_is_fused(repository: Path, foreign: Path) -> None:
    for more in ([], ["--replace", "--no-ensemble"]):
        assert run("import-onnx", foreign, "--name", "a", "--repository", repository, *more).exit_code == 0
    path = repository / "ensemble/config.pbtxt"
    path.write_text(path.read_text().replace('model_name: "a"\n    model_version: 1', 'model_name: "a"\n    model_version: 2'))
    assert [member.version for member in read_ensemble(repository, "ensemble").members] == [2]
    done = run("fuse", "one", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert read_config(repository / "one").parameters["members"].string_value == '["a@2"]'


@pytest.mark.parametrize("values", [0.5, "abc", ["a"], [None]])
def test_a_normalisation_of_the_wrong_type_is_rejected(foreign: Path, values: object) -> None:
    with raises(ExportError, "mean | 1 or 3 numbers"):
        onnx_from_foreign(foreign, mean=values)  # type: ignore[arg-type]
