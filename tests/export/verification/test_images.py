"""An export without `--dataset`: the images that a checkpoint was trained on are found by their digest, or it is said what is used."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from defensemble.cli import cli
from defensemble_export import DatasetMismatchWarning, ExportError
from defensemble_export.verification.images import dataset_of, images_for_verification
from defensemble_training import (
    Dataset,
    ModelSpec,
    TrainingRecord,
    build,
    find_cached_dataset,
    load_dataset,
    save_checkpoint,
)
from tests.support.facts import assert_facts
from tests.support.written import write_split


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Class folders in `tmp_path/data`, decoded into a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    write_split(tmp_path / "data")
    return load_dataset("folder", data_dir=tmp_path / "data")


@pytest.fixture
def record(data: Dataset) -> TrainingRecord:
    """That of a network which was trained on `data`."""
    said = {"data": "folder", "data_digest": data.digest, "data_source": data.source}
    return TrainingRecord.untrained(data.class_names, **said, command="train --dataset /was/here")


def export(record: TrainingRecord, data: Dataset, tmp_path: Path, *, old: bool = False) -> Result:
    """Export a checkpoint with this record; `old`: of the format without a digest of its content."""
    spec = ModelSpec("resnet18", 0.5, (0, 1), width=1, mean=data.mean, std=data.std, num_classes=3, input_shape=data.input_shape)
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, build(spec), spec, record)
    if old:
        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["defensemble"])
        del described["content_digest"]
        save_file(load_file(path), path, {"defensemble": json.dumps({**described, "format": 2})})
    words = ["export", str(path), "--repository", str(tmp_path / "repository"), "--no-ensemble"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return CliRunner().invoke(cli, words)


def test_the_images_are_found_where_they_are_decoded(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    found = dataset_of(record, data.input_shape, None)
    for one, other in ((found.train, data.train), (found.test, data.test)):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert (found.class_names, found.mean, found.std, found.digest) == (data.class_names, data.mean, data.std, data.digest)
    source = images_for_verification(found).source
    assert_facts(source, f"{len(data.test)} test images | folder")
    assert [fact for fact in (data.source, "cache", data.digest) if fact not in source] == []


def test_only_the_same_content_is_found(record: TrainingRecord, data: Dataset) -> None:
    assert find_cached_dataset("folder", data.digest, data.class_names) is not None
    assert find_cached_dataset("folder", "0" * 16, data.class_names) is None
    assert find_cached_dataset("folder", data.digest, ("a", "b", "c")) is None
    assert find_cached_dataset("folder", "", data.class_names) is None
    assert find_cached_dataset("digits", data.digest, data.class_names) is None


def test_a_folder_that_is_named_wins_and_other_images_are_told(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    write_split(tmp_path / "other", n_train=15)
    with pytest.warns(DatasetMismatchWarning, match=data.digest):
        assert len(dataset_of(record, data.input_shape, tmp_path / "other").train) == 15
    assert dataset_of(record, data.input_shape, tmp_path / "data").source == data.source


def test_images_that_the_training_left_out_are_left_out_again(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tmp_path / "data", folder)
    (folder / "train/ant/broken.png").write_bytes(b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset_of(record, data.input_shape, folder).digest == data.digest


@pytest.mark.parametrize("damaged", [b"", b"damaged", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["meta.json", "test.npy", "test_labels.npy"])
def test_where_nothing_is_found_the_command_of_the_training_is_named(
    record: TrainingRecord, data: Dataset, tmp_path: Path, name: str, damaged: bytes
) -> None:
    (entry,) = (tmp_path / "cache/defensemble/datasets").iterdir()
    (entry / name).write_bytes(damaged)
    with pytest.raises(ExportError, match="train --dataset /was/here"):
        dataset_of(record, data.input_shape, None)


@pytest.mark.parametrize("options", [["--data", "folder", "--data-dir", "{}"], ["--dataset", "{}"], ["--dataset", "mine={}"]])
def test_the_folder_of_the_training_is_read_again(record: TrainingRecord, data: Dataset, tmp_path: Path, options: list[str]) -> None:
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "data/test/ant/damaged.png").write_bytes(b"")
    command = shlex.join(["train", *(option.format(tmp_path / "data") for option in options), "net.safetensors"])
    found = dataset_of(replace(record, command=command), data.input_shape, None)
    assert (found.digest, len(found.test)) == (data.digest, len(data.test))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ExportError, match="--dataset"):
        dataset_of(replace(record, command="train '"), data.input_shape, None)


@pytest.mark.slow
def test_an_export_says_which_images_were_compared(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    done = export(record, data, tmp_path)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "repository/net/1/model.onnx.json").read_text())
    for text in (done.stderr, report["verification"]["images"]):
        assert "cache of decoded images" in text
        assert data.digest in text


@pytest.mark.slow
def test_a_checkpoint_without_a_digest_is_noted_once(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    done = export(record, data, tmp_path, old=True)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "digest of its content" in line]
    assert line.startswith(f"note: {tmp_path}/net.safetensors ")
    assert "Warning" not in done.stderr
