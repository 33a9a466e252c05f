"""`defensemble export` in each form, from the command line: precisions, one fused graph, somebody's ONNX, engines, reports."""

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
from defensemble_export import ExportError, Form, OnnxSource, fused_onnx
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


def refused(result: Result) -> str:
    """What a command that failed says: an error, no traceback."""
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
def theirs(tmp_path: Path) -> Path:
    """Somebody's classifier, `a.onnx`, of opset 18 and names of their own; and another one, `b.onnx`."""
    for seed, name in enumerate("ab"):
        onnx.save(classifier(seed=seed), tmp_path / f"{name}.onnx")
    return tmp_path / "a.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_report_lies_beside_each_file_and_is_shown(repository: Path, theirs: Path, images: Path, precision: str) -> None:
    options = ["--calibration-images", images, "--calibration-count", "50", "--calibration-seed", "3"] if precision == "int8" else []
    done = run("import-onnx", theirs, "--name", "net", "--precision", precision, "--images", images, "--repository", repository, *options)
    assert done.exit_code == 0, done.output
    model = repository / "net/1/model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    config = read_config(repository / "net")
    assert {key: config.parameters[key].string_value for key in config.parameters} == {"sha256.1": digest, "precision.1": precision}
    report = json.loads((repository / "net/1/model.onnx.json").read_text())
    assert (report["schema"], report["precision"], report["onnx"]["sha256"]) == ("defensemble.export/1", precision, digest)
    assert report["origin"]["sha256"] == hashlib.sha256(theirs.read_bytes()).hexdigest()
    verified = report["verification"]
    assert verified["n"] == (1 + 2 + 64 if precision == "fp32" else 200)
    assert verified["agreement"] >= {"fp32": 1, "fp16": 0.995, "int8": 0.9}[precision]
    if precision == "int8":
        drawn = {key: report["calibration"][key] for key in ("count", "seed", "source")}
        assert drawn == {"count": 50, "seed": 3, "source": "images of the user's"}
    else:
        assert report["calibration"] is None
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0, shown.output
    (row,) = [line for line in shown.stdout.splitlines() if line.strip().startswith("net@1 ")]
    assert row.split()[1] == precision
    assert f"{100 * verified['agreement']:.2f}" in row
    assert ("50 images of the user's, seed 3" in shown.stdout) == (precision == "int8")


def test_a_report_that_is_missing_damaged_or_of_another_file_is_told(repository: Path, theirs: Path, images: Path) -> None:
    for name in ("missing", "damaged", "other", "good"):
        done = run("import-onnx", theirs, "--name", name, "--images", images, "--repository", repository, "--no-ensemble")
        assert done.exit_code == 0, done.output
    (repository / "missing/1/model.onnx.json").unlink()
    (repository / "damaged/1/model.onnx.json").write_text('{"schema": "defensemble.export/1"')
    (repository / "other/1/model.onnx").write_bytes(b"changed")
    told = {one.model: one.problem for one in read_reports(repository)}
    assert told["good"] is None
    assert "has no model.onnx.json" in str(told["missing"])
    assert "is damaged" in str(told["damaged"])
    assert "changed" in str(told["other"])
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0
    assert sum(": no report: " in line for line in shown.stdout.splitlines()) == 3
    with pytest.raises(RepositoryError, match="has no model nothing; its models are damaged, good, missing, other"):
        read_reports(repository, ["nothing"])
    assert "not a folder" in refused(run("export-report", "--repository", repository / "none"))
    (repository.parent / "empty").mkdir()
    assert "no exported model" in refused(run("export-report", "--repository", repository.parent / "empty"))


def test_networks_of_both_kinds_of_file_form_one_ensemble_and_one_graph(repository: Path, theirs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{name}\n" for name in "vwxyz"))
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    np.save(tmp_path / "some.npy", images)
    shared = ["--labels", labels, "--images", tmp_path / "some.npy", "--repository", repository]
    assert run("import-onnx", theirs, "--name", "a", *shared).exit_code == 0
    done = run("import-onnx", tmp_path / "b.onnx", "--name", "b", *shared, "--replace", "--weight", "b=3")
    assert done.exit_code == 0, done.output
    done = run("fuse", "both", "--images", tmp_path / "some.npy", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert [(vote.model, vote.weight) for vote in read_ensemble(repository, "ensemble").members] == [("a", 1), ("b", 3)]
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
    text = refused(run("fuse", "two", *paths, "--weight", "c=3", "--repository", repository))
    assert_facts(text, "c | 'two' | a, b")
    assert "already" in refused(run("fuse", "one", *paths, "--repository", repository))
    assert "of a member" in refused(run("fuse", "a", *paths, "--repository", repository))
    assert content(tmp_path) == before


def test_what_goes_wrong_with_somebody_s_file_leaves_nothing(repository: Path, theirs: Path, images: Path, tmp_path: Path) -> None:
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
        ("a.onnx", ["--labels", tmp_path / "four.txt"], f"tells {CLASSES} classes apart, and 4 class names are given: one for each"),
        ("a.onnx", ["--images", tmp_path / "small.npy"], "for the network, got (2, 3, 4, 4)"),
        ("a.onnx", ["--precision", "fp16"], "how much only real images tell: pass some (--images FILE.npy)"),
        ("a.onnx", ["--precision", "int8", "--images", images], "is calibrated on training images: pass some (--calibration-images"),
        ("a.onnx", calibrated("none.npy"), "got an empty batch of shape (0, 3, 6, 8)"),
        ("a.onnx", calibrated("same.npy"), "are all the same (20)"),
        ("a.onnx", [*calibrated("images.npy"), "--calibration-count", "1"], "a calibration takes at least 2 images, got 1"),
        ("a.onnx", ["--mean", "0.5,0.5", "--std", "1"], "mean"),
    ):
        result = run("import-onnx", tmp_path / file, "--name", "net", "--repository", repository, *options)
        assert text in refused(result), file
        assert content(tmp_path) == before


def test_members_of_other_images_or_classes_do_not_go_into_one_ensemble(
    repository: Path, theirs: Path, images: Path, tmp_path: Path
) -> None:
    assert run("import-onnx", theirs, "--name", "a", "--images", images, "--repository", repository).exit_code == 0
    before = content(repository)
    (tmp_path / "other.txt").write_text("".join(f"{name}\n" for name in "vwxyz"))
    onnx.save(classifier(shape=("N", 3, 6, 6)), tmp_path / "small.onnx")
    for file, options, text in (
        ("b.onnx", ["--labels", tmp_path / "other.txt"], "the class names in"),
        ("small.onnx", [], "'a' takes and gives [[3, 6, 8], [5]], 'net' [[3, 6, 6], [5]]"),
    ):
        done = run("import-onnx", tmp_path / file, "--name", "net", "--replace", "--repository", repository, *options)
        assert text in refused(done)
        assert content(repository) == before


def test_engines_are_refused_before_anything_is_exported_where_there_is_no_tensorrt(repository: Path, theirs: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    text = refused(run("import-onnx", theirs, "--name", "a", "--engine", "--repository", repository))
    assert "TensorRT" in text
    assert "docker compose --profile gpu run --rm engines" in text
    assert "nvcr.io/nvidia/tensorrt:" in text
    assert not repository.exists()


def test_images_that_are_random_alone_are_told(repository: Path, theirs: Path) -> None:
    for name, words in (("a", ["import-onnx", theirs, "--name", "a"]), ("one", ["fuse", "one"])):
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
def test_a_damaged_report_is_told_whatever_it_holds(repository: Path, theirs: Path, values: dict[str, object]) -> None:
    assert run("import-onnx", theirs, "--name", "net", "--repository", repository).exit_code == 0
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
def test_a_class_name_that_servers_or_terminals_misread_is_refused(repository: Path, theirs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.txt").write_text("\n".join([name, *"bcde"]))
    result = run("import-onnx", theirs, "--name", "net", "--labels", tmp_path / "labels.txt", "--repository", repository)
    assert "labels.txt" in refused(result)
    assert "line 1" in refused(result)
    assert not repository.exists()


def test_as_many_images_are_told_as_were_compared(repository: Path, theirs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).random((1, *SHAPE), np.float32))
    done = run("import-onnx", theirs, "--name", "net", "--images", tmp_path / "one.npy", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert run("fuse", "both", "--images", tmp_path / "one.npy", "--repository", repository).exit_code == 0
    assert [(one.values or {})["verification"]["n"] for one in read_reports(repository)] == [1, 1]


def test_a_graph_of_what_the_ensemble_no_longer_votes_with_is_told(repository: Path, theirs: Path, tmp_path: Path) -> None:
    assert run("import-onnx", theirs, "--name", "a", "--repository", repository).exit_code == 0
    assert run("fuse", "one", "--repository", repository).exit_code == 0
    done = run("import-onnx", tmp_path / "b.onnx", "--name", "b", "--repository", repository, "--replace")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "graph 'one' has other" in line]
    assert_facts(line, f"fuse one --repository {repository} --ensemble ensemble --replace")
    again = run("fuse", "one", "--replace", "--repository", repository)
    assert again.exit_code == 0, again.output
    assert "graph 'one' has other" not in again.stderr


def test_checkpoints_of_other_images_are_refused_before_the_slow_work(repository: Path, tmp_path: Path) -> None:
    paths = [untrained_checkpoint(tmp_path / "small.safetensors"), untrained(tmp_path / "large.safetensors", digits_spec(width=2))]
    result = run("export", *paths, "--repository", repository)
    assert_facts(refused(result), "input shape | 'small' | (1, 8, 8) | 'large' | (1, 16, 16)")
    assert "exported and verified" not in result.stderr


def test_a_full_disk_leaves_the_repository_as_it_was(theirs: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        assert run("import-onnx", theirs, "--name", "a", "--repository", disk / "repository").exit_code == 0
        before = content(disk / "repository")
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        for words in (["import-onnx", tmp_path / "b.onnx", "--name", "b", "--replace"], ["fuse", "one"]):
            text = refused(run(*words, "--repository", disk / "repository"))
            assert text.startswith(f"No space left on device: {disk}/")
            assert content(disk / "repository") == before
            assert sorted(path.name for path in disk.iterdir()) == ["filler", "repository"]


def test_a_graph_is_not_made_of_what_was_edited_apart(repository: Path, theirs: Path) -> None:
    assert run("import-onnx", theirs, "--name", "a", "--repository", repository).exit_code == 0
    (average,) = repository.glob("average_*")

    def fused(path: Path, old: str, new: str) -> str:
        whole = path.read_text()
        assert old in whole
        path.write_text(whole.replace(old, new))
        text = refused(run("fuse", "one", "--repository", repository))
        path.write_text(whole)
        return text

    text = fused(average / "config.pbtxt", '"probabilities"\n  }\n}', '"logits"\n  }\n}')
    assert f"{average / 'config.pbtxt'}:" in text
    assert "logits of a@1 with weight 1" in text
    assert "has other class names than 'a', '9' and '0'" in fused(repository / "ensemble/labels.txt", "0", "9")
    config = repository / "a/config.pbtxt"
    assert f"computes in fp32, and {config} says precision.1 'fp7'" in fused(config, "fp32", "fp7")
    (average / "1/model.onnx").write_bytes(b"another")
    assert f"{average / '1/model.onnx'}: version 1: this file has SHA-256" in refused(run("fuse", "one", "--repository", repository))


def test_a_precision_that_the_file_denies_is_no_member_s(repository: Path, theirs: Path, images: Path) -> None:
    options = ["--precision", "fp16", "--images", images, "--repository", repository]
    assert run("import-onnx", theirs, "--name", "a", *options).exit_code == 0
    config = repository / "a/config.pbtxt"
    config.write_text(config.read_text().replace("fp16", "fp32"))
    text = refused(run("fuse", "one", "--repository", repository))
    assert f"a/1/model.onnx computes in fp16, and {config} says precision.1 'fp32': write 'fp16' there" in text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Form(calibration_count=2.5), "count | integer | 2.5"),  # type: ignore[arg-type]
        (lambda: Form(calibration_seed="x"), "seed | integer | 'x'"),  # type: ignore[arg-type]
        (lambda: Form(["fp32"]), "precision | fp32, fp16, int8 | ['fp32']"),  # type: ignore[arg-type]
        (lambda: OnnxSource(Path("x"), "x", class_names="abc"), "class_names | sequence of texts"),  # type: ignore[arg-type]
        (lambda: fused_onnx(["x"], Ensemble("e", (Member("a"),))), "'a' | bytes"),  # type: ignore[list-item]
        (lambda: onnx_from_foreign("x.onnx"), "x.onnx | not exist"),
        (lambda: read_reports(Path("nowhere")), "nowhere | not a folder"),
    ],
)
def test_what_is_no_value_of_its_kind_is_told(make: Callable[[], object], text: str) -> None:
    with pytest.raises(RepositoryError, match=text):
        make()


@pytest.mark.parametrize("path", [None, 5, b"x.onnx"])
def test_a_path_that_is_none_is_told(path: object) -> None:
    with pytest.raises(ExportError, match="ONNX file"):
        onnx_from_foreign(path)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="ONNX file"):
        OnnxSource(path, "a")  # type: ignore[arg-type]


def test_shapes_and_domains_of_another_kind_are_told(theirs: Path) -> None:
    for shape in ((3.0, 6, 8), 3):
        with raises(ExportError, "input_shape | three integers"):
            onnx_from_foreign(theirs, input_shape=shape)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="custom_domains"):
        onnx_from_foreign(theirs, custom_domains="com.microsoft")


def test_a_normalisation_may_come_as_numpy_has_it(theirs: Path) -> None:
    listed = onnx_from_foreign(theirs, mean=[0.5, 0.25, 0.125], std=[2.0])
    arrays = onnx_from_foreign(theirs, mean=np.array([0.5, 0.25, 0.125]), std=[np.float32(2)])  # type: ignore[arg-type]
    assert listed == arrays


def test_a_version_that_was_pinned_by_hand_is_fused(repository: Path, theirs: Path) -> None:
    for more in ([], ["--replace", "--no-ensemble"]):
        assert run("import-onnx", theirs, "--name", "a", "--repository", repository, *more).exit_code == 0
    path = repository / "ensemble/config.pbtxt"
    path.write_text(path.read_text().replace('model_name: "a"\n    model_version: 1', 'model_name: "a"\n    model_version: 2'))
    assert [vote.version for vote in read_ensemble(repository, "ensemble").members] == [2]
    done = run("fuse", "one", "--repository", repository)
    assert done.exit_code == 0, done.output
    assert read_config(repository / "one").parameters["members"].string_value == '["a@2"]'


@pytest.mark.parametrize("values", [0.5, "abc", ["a"], [None]])
def test_a_normalisation_of_another_kind_is_told(theirs: Path, values: object) -> None:
    with raises(ExportError, "mean | 1 or 3 numbers"):
        onnx_from_foreign(theirs, mean=values)  # type: ignore[arg-type]
