"""An export without a dataset folder finds the images of the checkpoint by their digest, or reports what it uses."""

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
from defensemble_export.verification.images import dataset_from_record, images_for_verification
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
    """Write class folders in `tmp_path/data` and decode them into a separate cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFENSEMBLE_DATA_DIR", raising=False)
    write_split(tmp_path / "data")
    return load_dataset("folder", data_dir=tmp_path / "data")


@pytest.fixture
def record(data: Dataset) -> TrainingRecord:
    """Return the record of a network that was trained on `data`."""
    source = {"data": "folder", "data_digest": data.digest, "data_source": data.source}
    return TrainingRecord.untrained(data.class_names, **source, command="train --data folder --data-dir /was/here")


def export(record: TrainingRecord, data: Dataset, tmp_path: Path, *, old: bool = False) -> Result:
    """Export a checkpoint with this record; `old`: in the format without a digest of its content."""
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


def test_images_are_found_in_the_decoded_cache(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    loaded = dataset_from_record(record, data.input_shape, None)
    for one, other in ((loaded.train, data.train), (loaded.test, data.test)):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert (loaded.class_names, loaded.mean, loaded.std, loaded.digest) == (data.class_names, data.mean, data.std, data.digest)
    source = images_for_verification(loaded).source
    assert_facts(source, f"{len(data.test)} test images | folder")
    assert [fact for fact in (data.source, "cache", data.digest) if fact not in source] == []


def test_the_cache_is_used_only_for_the_same_content(record: TrainingRecord, data: Dataset) -> None:
    assert find_cached_dataset("folder", data.digest, data.class_names) is not None
    assert find_cached_dataset("folder", "0" * 16, data.class_names) is None
    assert find_cached_dataset("folder", data.digest, ("a", "b", "c")) is None
    assert find_cached_dataset("folder", "", data.class_names) is None
    assert find_cached_dataset("digits", data.digest, data.class_names) is None


def test_a_named_folder_is_used_and_other_data_cause_a_warning(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    write_split(tmp_path / "other", n_train=15)
    with pytest.warns(DatasetMismatchWarning, match=data.digest):
        assert len(dataset_from_record(record, data.input_shape, tmp_path / "other").train) == 15
    assert dataset_from_record(record, data.input_shape, tmp_path / "data").source == data.source


def test_images_skipped_in_training_are_skipped_again(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tmp_path / "data", folder)
    (folder / "train/ant/broken.png").write_bytes(b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset_from_record(record, data.input_shape, folder).digest == data.digest


@pytest.mark.parametrize("damaged", [b"", b"damaged", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["meta.json", "test.npy", "test_labels.npy"])
def test_a_missing_dataset_names_the_training_command(
    record: TrainingRecord, data: Dataset, tmp_path: Path, name: str, damaged: bytes
) -> None:
    (entry,) = (tmp_path / "cache/defensemble/datasets").iterdir()
    (entry / name).write_bytes(damaged)
    with pytest.raises(ExportError, match="train --data folder --data-dir /was/here"):
        dataset_from_record(record, data.input_shape, None)


@pytest.mark.parametrize("option", ["--data-dir {}", "--dataset {}", "--dataset folder={}", "--dataset={}", "--dataset=folder={}"])
def test_the_folder_in_the_training_command_is_read_again(record: TrainingRecord, data: Dataset, tmp_path: Path, option: str) -> None:
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "data/test/ant/damaged.png").write_bytes(b"")
    command = shlex.join(["train", *option.format(tmp_path / "data").split(), "net.safetensors"])
    loaded = dataset_from_record(replace(record, command=command), data.input_shape, None)
    assert (loaded.digest, len(loaded.test)) == (data.digest, len(data.test))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ExportError, match="--dataset"):
        dataset_from_record(replace(record, command="train '"), data.input_shape, None)


@pytest.mark.slow
def test_an_export_reports_which_images_were_compared(record: TrainingRecord, data: Dataset, tmp_path: Path) -> None:
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
    (line,) = [line for line in done.stderr.splitlines() if "without a content digest" in line]
    assert line.startswith(f"note: {tmp_path}/net.safetensors ")
    assert "Warning" not in done.stderr
