"""Parquet files in the layout of the Hugging Face hub."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pytest
from PIL import Image
from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

from defensemble_training import DataError, load_dataset
from tests.support.facts import raises
from tests.support.written import CIFAR10, CLASSES, WITHOUT_CIFAR10, pictures, png, write_split, write_table, write_tables


@pytest.mark.parametrize("subfolder", ["", "data", "plain_text", "anything"])
@pytest.mark.parametrize("test_split", ["test", "validation", "valid"])
def test_images_equal_the_rows(tmp_path: Path, subfolder: str, test_split: str) -> None:
    train, test = write_tables(tmp_path / "set" / subfolder, test_split=test_split)
    (tmp_path / "set" / "README.md").write_text("words")
    data = load_dataset("folder", data_dir=tmp_path / "set")
    np.testing.assert_array_equal(data.train.pixels, train)
    np.testing.assert_array_equal(data.test.pixels, test)
    assert data.train.labels.tolist() == [number % 3 for number in range(12)]
    assert data.test.labels.tolist() == [number % 3 for number in range(6)]
    assert (data.name, data.class_names, data.input_shape, data.flip) == ("folder", CLASSES, (3, 8, 8), True)
    assert data.source == "images from a local folder as parquet, PNG-coded"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason=WITHOUT_CIFAR10)
def test_cifar10_equals_an_independent_decoder() -> None:
    data = load_dataset("cifar10", data_dir=CIFAR10)
    assert repr(data) == "Dataset('cifar10', 3x32x32, 50000 train, 10000 test, 10 classes)"
    assert data.class_names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert data.source == "cifar10 from a local folder as parquet, JPEG-coded"
    assert data.flip
    for split, part in (("train", data.train), ("test", data.test)):
        table = parquet.read_table(CIFAR10 / f"{split}-00000-of-00001.parquet")
        np.testing.assert_array_equal(part.labels, table["label"].to_numpy())
        assert np.bincount(part.labels).tolist() == [len(part) // 10] * 10
        rows = np.random.default_rng(0).choice(len(part), 300, replace=False)
        for row in rows:
            with Image.open(io.BytesIO(table["img"][int(row)]["bytes"].as_py())) as image:
                np.testing.assert_array_equal(part.pixels[row], np.asarray(image).transpose(2, 0, 1))


def test_mean_and_std_equal_the_training_images(tmp_path: Path) -> None:
    train, _ = write_tables(tmp_path, n_train=200)
    data = load_dataset("folder", data_dir=tmp_path)
    np.testing.assert_allclose(data.mean, (train / 255).mean(axis=(0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(data.std, (train / 255).std(axis=(0, 2, 3)), atol=5.1e-5)
    assert all(value == round(value, 4) for value in (*data.mean, *data.std))


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    images = pictures(9)
    for shard in (2, 0, 1):
        rows = range(3 * shard, 3 * shard + 3)
        write_table(tmp_path / f"data/train-0000{shard}-of-00003-0f0f.parquet", [png(images[row]) for row in rows], [0, 1, 2])
    write_table(tmp_path / "data/test-00000-of-00001.parquet", [png(image) for image in images[:3]], [0, 1, 2])
    data = load_dataset("folder", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.pixels, images.transpose(0, 3, 1, 2))
    (tmp_path / "data/train-00001-of-00003-0f0f.parquet").unlink()
    with raises(DataError, "1 of the 3 files | 'train' | 00001"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.usefixtures("three_classes")
def test_imagenet_uses_the_validation_part_as_test_part(tmp_path: Path) -> None:
    write_tables(tmp_path, test_split="validation")
    write_table(tmp_path / "test-00000-of-00002.parquet", [png(pictures(1)[0])], [-1])
    assert len(load_dataset("imagenet", 8, data_dir=tmp_path).test) == 6
    write_table(tmp_path / "validation-00000-of-00001.parquet", [png(pictures(1)[0])], [-1])
    with raises(DataError, "-1 | row 0 | 0 to 2"):
        load_dataset("imagenet", 8, data_dir=tmp_path)


@pytest.mark.usefixtures("three_classes")
def test_grey_images_stay_grey_in_mnist_and_if_all_are_grey(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        rows = [png(image) for image in pictures(count, 28, channels=1)]
        write_table(tmp_path / f"mnist/{split}-00000-of-00001.parquet", rows, [n % 3 for n in range(count)], image="image")
    mnist = load_dataset("mnist", data_dir=tmp_path)
    assert (mnist.input_shape, mnist.flip, len(mnist.mean)) == ((1, 28, 28), False, 1)
    np.testing.assert_array_equal(mnist.train.pixels[:, 0], pictures(6, 28, channels=1))
    assert load_dataset("folder", data_dir=tmp_path).input_shape == (1, 28, 28)
    assert load_dataset("cifar10", data_dir=tmp_path).input_shape == (3, 32, 32)
    coloured = [png(image) for image in pictures(3, 28)]
    write_table(tmp_path / "mnist/test-00000-of-00001.parquet", coloured, [0, 1, 2], image="image")
    assert load_dataset("folder", data_dir=tmp_path).input_shape == (3, 28, 28)


def test_classes_without_names_get_numbers(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", [png(image) for image in pictures(3)], [0, 1, 2], names=None, label="fine_label")
    assert load_dataset("folder", data_dir=tmp_path).class_names == ("0", "1", "2")


@pytest.mark.parametrize("label", [100_000, 300_000_000])
def test_label_that_implies_too_many_classes_is_rejected(tmp_path: Path, label: int) -> None:
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", [png(image) for image in pictures(3)], [0, 1, label], names=None)
    with raises(DataError, f"train.parquet | {label} | row 2 | 0 to 99999"):
        load_dataset("folder", data_dir=tmp_path)


def test_named_dataset_requires_its_number_of_classes(tmp_path: Path) -> None:
    write_tables(tmp_path)
    for name, count in (("cifar10", 10), ("mnist", 10), ("tiny-imagenet", 200), ("imagenet", 1000), ("stylized-imagenet", 1000)):
        with raises(DataError, f"(ant, bee, cow) | {count} | {name} | --dataset FOLDER"):
            load_dataset(name, 8, data_dir=tmp_path)
    write_tables(tmp_path, n_test=10, names=tuple("abcdefghij"))
    assert len(load_dataset("cifar10", 8, data_dir=tmp_path).class_names) == 10


def test_class_without_test_images_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    write_table(tmp_path / "test-00000-of-00001.parquet", [png(pictures(1)[0])], [1])
    with raises(DataError, "test images | 2 classes | ant, cow"):
        load_dataset("folder", data_dir=tmp_path)


def test_single_class_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path, names=["ant"])
    with raises(DataError, f"{tmp_path} | ant | 2 class folders"):
        load_dataset("folder", data_dir=tmp_path)


def test_fifo_does_not_block(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    os.mkfifo(tmp_path / "train-00000-of-00001.parquet")
    with raises(DataError, "train-00000-of-00001.parquet | FIFO"):
        load_dataset("folder", data_dir=tmp_path)


def test_row_without_image_is_rejected_unless_skipped(tmp_path: Path) -> None:
    write_tables(tmp_path)
    good = [png(image) for image in pictures(5)]
    write_table(tmp_path / "train-00000-of-00001.parquet", [good[0], good[1], good[2], good[3][:-60], None], [0, 1, 2, 0, 1])
    with raises(DataError, "train-00000-of-00001.parquet | row 3 | --skip-damaged"):
        load_dataset("folder", data_dir=tmp_path)
    data = load_dataset("folder", data_dir=tmp_path, skip_damaged=True)
    assert data.train.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(data.train.pixels, pictures(5)[:3].transpose(0, 3, 1, 2))
    assert data.source.endswith(", PNG-coded, 2 damaged images left out")
    with pytest.raises(DataError, match="row 3"):
        load_dataset("folder", data_dir=tmp_path)


def test_missing_split_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    expected = "parquet files of train | test-*.parquet | validation-*.parquet"
    with raises(DataError, expected):
        load_dataset("folder", data_dir=tmp_path)
    write_tables(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    with raises(DataError, "parquet files of test | train-*.parquet"):
        load_dataset("folder", data_dir=tmp_path)


def test_test_class_without_training_images_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    write_table(tmp_path / "train-00000-of-00001.parquet", [png(image) for image in pictures(4)], [0, 1, 0, 1])
    with raises(DataError, "1 of the 3 classes | cow"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.parametrize("part", ["head", "tail", "middle", "nothing"])
def test_truncated_or_damaged_file_is_rejected(tmp_path: Path, part: str) -> None:
    write_tables(tmp_path, n_train=60, size=32)
    path = tmp_path / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    damaged = {
        "head": content[: len(content) // 2],
        "tail": content[-len(content) // 2 :] + b"x",
        "middle": content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :],
        "nothing": b"",
    }
    path.write_bytes(damaged[part])
    with raises(DataError, "train-00000-of-00001.parquet | damaged"):
        load_dataset("folder", data_dir=tmp_path)


def test_git_lfs_pointer_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with raises(DataError, "Git LFS | git lfs pull"):
        load_dataset("folder", data_dir=tmp_path)


def test_unreadable_file_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.unlink()
    path.symlink_to("nowhere")
    with raises(DataError, "train-00000-of-00001.parquet | No such file"):
        load_dataset("folder", data_dir=tmp_path)


def test_error_shows_unknown_columns(tmp_path: Path) -> None:
    write_tables(tmp_path)
    write_table(tmp_path / "train-00000-of-00001.parquet", [png(pictures(1)[0])], [0], image="picture")
    with raises(DataError, "picture (struct<bytes: binary, path: string>) | label (int64) | img"):
        load_dataset("folder", data_dir=tmp_path)


def test_files_with_different_class_names_are_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    write_table(tmp_path / "test-00000-of-00001.parquet", [png(pictures(1)[0])], [0], names=("cow", "bee", "ant"))
    with raises(DataError, "train- | test-"):
        load_dataset("folder", data_dir=tmp_path)


def test_parquet_and_class_folders_give_equal_images(tmp_path: Path) -> None:
    write_tables(tmp_path / "table")
    write_split(tmp_path / "folders")
    first, second = (load_dataset("folder", data_dir=tmp_path / name) for name in ("table", "folders"))
    assert first.mean == second.mean
    assert sorted(image.tobytes() for image in first.train.pixels) == sorted(image.tobytes() for image in second.train.pixels)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_every_integer_type_are_read(tmp_path: Path, kind: str) -> None:
    write_tables(tmp_path)
    expected = load_dataset("folder", data_dir=tmp_path)
    for path in tmp_path.glob("*.parquet"):
        table = parquet.read_table(path)
        index = table.schema.get_field_index("label")
        parquet.write_table(table.set_column(index, "label", table.column(index).cast(kind)), path)
    data = load_dataset("folder", data_dir=tmp_path)
    assert data.train.labels.tolist() == expected.train.labels.tolist()
    assert data.digest == expected.digest


@pytest.mark.parametrize(("kind", "label"), [("uint8", None), ("uint64", 2**63), ("int8", -1)])
def test_error_shows_a_label_without_a_class(tmp_path: Path, kind: str, label: int | None) -> None:
    write_tables(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    table = parquet.read_table(path)
    labels = pa.array([0, label, *[number % 3 for number in range(10)]], kind)
    parquet.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    with raises(DataError, f"label {'null' if label is None else label} | row 1"):
        load_dataset("folder", data_dir=tmp_path)


def test_duplicate_class_names_are_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path, names=("ant", "caf\u00e9", "cafe\u0301"))
    with pytest.raises(DataError, match="caf\u00e9"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("names", "fact"), [("abc", "abc"), (5, "5"), (["a", None, "c"], "None"), (["a\nb", "c", "d"], r"a\nb"), (["", "c", "d"], "empty")]
)
def test_invalid_class_names_are_rejected(tmp_path: Path, names: object, fact: str) -> None:
    _write_tables_with_metadata(tmp_path, {"info": {"features": {"label": {"names": names}}}})
    with raises(DataError, f"train-00000-of-00001.parquet | {fact}"):
        load_dataset("folder", data_dir=tmp_path)


def test_null_class_names_are_ignored(tmp_path: Path) -> None:
    _write_tables_with_metadata(tmp_path, {"info": {"features": {"label": {"names": None}}}})
    assert load_dataset("folder", data_dir=tmp_path).class_names == ("0", "1", "2")


def _write_tables_with_metadata(folder: Path, metadata: object) -> None:
    write_tables(folder)
    for path in folder.glob("*.parquet"):
        table = parquet.read_table(path).replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
        parquet.write_table(table, path)


def test_error_shows_a_duplicate_column(tmp_path: Path) -> None:
    write_tables(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        table = parquet.read_table(path)
        parquet.write_table(table.append_column("label", table.column("label")), path)
    with pytest.raises(DataError, match=r"label \(int64\), label \(int64\)"):
        load_dataset("folder", data_dir=tmp_path)


def test_row_group_above_the_memory_limit_is_rejected(tmp_path: Path) -> None:
    write_tables(tmp_path)
    with raises(DataError, "row group 0 | train-00000-of-00001.parquet | --max-memory"):
        load_dataset("folder", data_dir=tmp_path, max_memory=1000)


def test_labels_above_the_memory_limit_are_rejected_before_they_are_read(tmp_path: Path) -> None:
    count = 1_000_000
    missing = pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), pa.nulls(count, pa.string())], ["bytes", "path"])
    table = pa.table({"image": missing, "label": np.zeros(count, np.int64)})
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    assert (tmp_path / "train-00000-of-00001.parquet").stat().st_size < 100_000
    with raises(DataError, "1,000,000 labels | train-00000-of-00001.parquet | 30.5 MiB | --max-memory"):
        load_dataset("folder", data_dir=tmp_path, max_memory=1 << 20)
