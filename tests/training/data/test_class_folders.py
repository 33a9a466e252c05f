"""Class folders of images, valid and invalid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defensemble_training import DataError, load_dataset
from tests.support.facts import assert_each, raises
from tests.support.written import CLASSES, by_class, pictures, write_class_folders, write_split


def test_images_equal_the_files(tmp_path: Path) -> None:
    train, test = write_split(tmp_path)
    (tmp_path / "train/ant/._000.png").write_bytes(b"of macOS")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/ant/notes.txt").write_text("words")
    data = load_dataset("folder", data_dir=str(tmp_path))
    np.testing.assert_array_equal(data.train.pixels, by_class(train))
    np.testing.assert_array_equal(data.test.pixels, by_class(test))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.class_names == CLASSES
    assert data.source == "images from a local folder as class folders, PNG-coded"


@pytest.mark.parametrize("test_split", ["val", "validation", "valid"])
def test_test_part_may_have_other_names(tmp_path: Path, test_split: str) -> None:
    write_split(tmp_path)
    (tmp_path / "test").rename(tmp_path / test_split)
    assert len(load_dataset("folder", 8, data_dir=tmp_path).test) == 6


def test_without_a_split_the_test_part_is_a_fixed_fifth_of_each_class(tmp_path: Path) -> None:
    images = pictures(45)
    for name in ("one", "other"):
        write_class_folders(tmp_path / name, images, [number % 3 for number in range(45)])
    first, second = (load_dataset("folder", data_dir=tmp_path / name) for name in ("one", "other"))
    assert np.bincount(first.train.labels).tolist() == [12] * 3
    assert np.bincount(first.test.labels).tolist() == [3] * 3
    assert first.digest == second.digest
    together = np.concatenate([first.train.pixels, first.test.pixels])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in by_class(images))
    assert "without a split" in first.source


@pytest.mark.usefixtures("three_classes")
def test_tiny_imagenet_in_its_original_layout(tmp_path: Path) -> None:
    images = pictures(9, 64)
    for number, image in enumerate(images[:6]):
        folder = tmp_path / "train" / CLASSES[number % 3] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder.parent / "boxes.txt").write_text("0.png\t0\t0\t1\t1\n")
    (tmp_path / "val/images").mkdir(parents=True)
    for number, image in enumerate(images[6:]):
        Image.fromarray(image).save(tmp_path / f"val/images/val_{number}.png")
    annotations = tmp_path / "val/val_annotations.txt"
    annotations.write_text("val_2.png\tant\t0\t0\t1\t1\nval_0.png\tcow\t0\t0\t1\t1\nval_1.png\tbee\t0\t0\t1\t1\n")
    (tmp_path / "test/images").mkdir(parents=True)
    data = load_dataset("tiny-imagenet", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.pixels, by_class(images[:6]))
    np.testing.assert_array_equal(data.test.pixels, images[[8, 6, 7]].transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 2, 1]
    annotations.write_text("val_2.png\tant\nval_9.png\tcow\n")
    with raises(DataError, "line 2 | val/images/val_9.png"):
        load_dataset("tiny-imagenet", data_dir=tmp_path)
    annotations.write_text("val_2.png\tdog\n")
    with raises(DataError, "line 1 | 'dog' | training"):
        load_dataset("tiny-imagenet", data_dir=tmp_path)


def test_damaged_image_is_rejected_unless_skipped(tmp_path: Path) -> None:
    write_split(tmp_path)
    damaged = tmp_path / "train/bee/004.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with raises(DataError, f"{damaged} | truncated"):
        load_dataset("folder", data_dir=tmp_path)
    data = load_dataset("folder", data_dir=tmp_path, skip_damaged=True)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert data.source == "images from a local folder as class folders, PNG-coded, 1 damaged image left out"
    damaged.write_text("no image at all")
    with raises(DataError, "train/bee/004.png | JPEG, PNG"):
        load_dataset("folder", data_dir=tmp_path)


def test_class_with_only_damaged_images_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    for path in (tmp_path / "train/cow").iterdir():
        path.write_bytes(b"")
    with raises(DataError, "4 damaged images | 1 of the 3 classes | cow"):
        load_dataset("folder", data_dir=tmp_path, skip_damaged=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_folder_is_rejected(tmp_path: Path, split: str) -> None:
    write_split(tmp_path)
    for path in (tmp_path / split / "bee").iterdir():
        path.unlink()
    (tmp_path / split / "bee/notes.txt").write_text("words")
    with raises(DataError, f"{split}/bee | notes.txt | .png"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.parametrize(("split", "missing"), [("train", "test or validation or valid or val"), ("test", "train")])
def test_missing_split_is_rejected(tmp_path: Path, split: str, missing: str) -> None:
    images, _ = write_split(tmp_path / "whole")
    write_class_folders(tmp_path / "half" / split, images, [0, 1, 2] * 4)
    with raises(DataError, f"{split}/ | {missing}"):
        load_dataset("folder", data_dir=tmp_path / "half")


def test_test_class_without_training_images_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "test/cow").rename(tmp_path / "test/dog")
    with raises(DataError, "dog | ant, bee, cow"):
        load_dataset("folder", data_dir=tmp_path)


def test_error_shows_the_unknown_layout_and_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("a,b")
    with raises(DataError, "images/, labels.csv | train-*.parquet | TRAIN/CLASS/IMAGE"):
        load_dataset("cifar10", data_dir=tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "train/a.png")
    with raises(DataError, "train/a.png | class folders"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_missing_folder_or_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    for name in ("nothing", "file"):
        with raises(DataError, f"{tmp_path / name} | not a folder"):
            load_dataset("cifar10", data_dir=tmp_path / name)


def test_broken_link_to_an_image_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "train/ant/link.png").symlink_to("nowhere")
    with raises(DataError, "train/ant/link.png | No such file or directory"):
        load_dataset("folder", data_dir=tmp_path, skip_damaged=True)


def test_broken_link_to_a_class_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "train/emu").symlink_to("nowhere")
    with raises(DataError, "train/emu | No such file or directory | link"):
        load_dataset("folder", data_dir=tmp_path, skip_damaged=True)


def test_folders_deeper_than_the_stack_are_read_in_name_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path)
    (tmp_path / "test/ant/000.png").rename(tmp_path / "test/ant/z.png")
    monkeypatch.chdir(tmp_path / "test/ant")
    for _ in range(1100):
        os.mkdir("n")
        os.chdir("n")
    Image.new("RGB", (8, 8), (7, 7, 7)).save("a.png")
    try:
        test = load_dataset("folder", data_dir=tmp_path).test
    finally:  # pytest cannot remove this deep folder
        monkeypatch.chdir(tmp_path)
        subprocess.run(["rm", "-r", "test/ant/n"], check=True)
    assert len(test) == 7
    assert (test.pixels[1] == 7).all(), "after 003.png, before z.png"


def test_image_above_the_memory_limit_is_rejected_before_decoding(tmp_path: Path) -> None:
    write_split(tmp_path)
    Image.new("L", (2000, 1000)).save(tmp_path / "train/bee/large.png")
    with raises(DataError, "train/bee/large.png | 20.0 MiB | --max-memory"):
        load_dataset("folder", 8, data_dir=tmp_path, max_memory=20 << 20, skip_damaged=True)
    assert len(load_dataset("folder", 8, data_dir=tmp_path, max_memory=20 << 40).train) == 13


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a folder"])
def test_irregular_files_are_not_opened(tmp_path: Path, kind: str) -> None:
    write_split(tmp_path)
    path = tmp_path / "train/ant/004.png"
    if kind == "a FIFO":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else tmp_path)
    with raises(DataError, f"{path} | {kind} | --skip"):
        load_dataset("folder", data_dir=tmp_path)
    data = load_dataset("folder", data_dir=tmp_path, skip_damaged=True)
    assert len(data.train) == 12
    assert data.source.endswith(", 1 damaged image left out")


@pytest.mark.parametrize("layout", ["train", "test", "without a split"])
@pytest.mark.parametrize(("name", "fact"), [(b"d\xffg", "UTF-8"), (b"d\ng", "line break"), (b"d\tg", "control character")])
def test_class_name_that_is_not_one_line_of_utf_8_is_rejected(tmp_path: Path, layout: str, name: bytes, fact: str) -> None:
    write_split(tmp_path)
    folder = tmp_path / ("train" if layout == "without a split" else layout)
    (folder / "cow").rename(folder / os.fsdecode(name))
    progress: list[object] = []
    with raises(DataError, f"{os.fsdecode(name)!r} | {fact}") as caught:
        load_dataset(
            "folder", data_dir=folder if layout == "without a split" else tmp_path, on_progress=lambda *step: progress.append(step)
        )
    str(caught.value).encode()
    assert progress == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_image_next_to_the_class_folders_is_rejected(tmp_path: Path, split: str) -> None:
    write_split(tmp_path)
    (tmp_path / split / "notes.txt").write_text("words")
    (tmp_path / split / "._a.png").write_bytes(b"of macOS")
    assert len(load_dataset("folder", data_dir=tmp_path).train) == 12
    for name in ("a.png", "b.JPG"):
        Image.fromarray(pictures(1)[0]).save(tmp_path / split / name)
    with raises(DataError, f"{tmp_path}/{split}/a.png | 1 more images | class folders"):
        load_dataset("folder", data_dir=tmp_path)


def test_class_without_test_images_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    shutil.rmtree(tmp_path / "test/bee")
    with raises(DataError, f"test images | bee | {tmp_path}"):
        load_dataset("folder", data_dir=tmp_path)


def test_class_too_small_for_a_test_image_is_rejected(tmp_path: Path) -> None:
    write_class_folders(tmp_path, pictures(12), [0] * 5 + [1] * 5 + [2] * 2)
    with raises(DataError, "test images | cow"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["", "train"])
def test_single_class_is_rejected(tmp_path: Path, split: str) -> None:
    write_class_folders(tmp_path / split, pictures(1), [0])
    if split:
        write_class_folders(tmp_path / "test", pictures(1), [0])
    with raises(DataError, f"{tmp_path} | ant | 2 class folders"):
        load_dataset("folder", data_dir=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "train/ant/000.png").chmod(0)
    with raises(DataError, "train/ant/000.png | Permission denied"):
        load_dataset("folder", data_dir=tmp_path, skip_damaged=True)


def test_skipped_files_are_counted_and_subfolders_are_read(tmp_path: Path) -> None:
    images, _ = write_split(tmp_path)
    nested = tmp_path / "train/bee/more/still"
    nested.mkdir(parents=True)
    (tmp_path / "train/bee/004.png").rename(nested / "004.png")
    for name in ("train/._a.png", "train/ant/._000.png", "train/ant/.DS_Store", "test/__MACOSX/ant/._000.png", "test/cow/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"litter")
    data = load_dataset("folder", data_dir=tmp_path)
    assert sorted(image.tobytes() for image in data.train.pixels) == sorted(image.tobytes() for image in by_class(images))
    assert_each(data.notes, "4 hidden entries | 1 file")


def test_animation_is_noted_also_from_the_cache(tmp_path: Path) -> None:
    images, _ = write_split(tmp_path)
    first, second = (Image.fromarray(image) for image in images[:2])
    first.save(tmp_path / "train/ant/film.png", save_all=True, append_images=[second])
    for _ in range(2):
        data = load_dataset("folder", data_dir=tmp_path)
        assert_each(data.notes, f"animation | {tmp_path}/train/ant/film.png | first frame")
    np.testing.assert_array_equal(data.train.pixels[4], images[0].transpose(2, 0, 1))


def test_names_in_different_normal_forms_are_the_same_class(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "train/cow").rename(tmp_path / "train/cafe\u0301")
    (tmp_path / "test/cow").rename(tmp_path / "test/caf\u00e9")
    data = load_dataset("folder", data_dir=tmp_path)
    assert data.class_names == ("ant", "bee", "caf\u00e9")
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "train/caf\u00e9").mkdir()
    with pytest.raises(DataError, match="caf\u00e9"):
        load_dataset("folder", data_dir=tmp_path)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    images, _ = write_split(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, path in enumerate(sorted((tmp_path / "train").rglob("*.png"))):
        Image.fromarray(np.rot90(by_class(images)[number].transpose(1, 2, 0))).save(path, exif=exif)
    np.testing.assert_array_equal(load_dataset("folder", data_dir=tmp_path).train.pixels, by_class(images))


def test_16_bit_images_keep_their_depth(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, pictures(4, channels=1), [0, 1, 0, 1])
    for number, image in enumerate(deep):
        Image.fromarray(image).save(tmp_path / "train" / CLASSES[number % 2] / f"deep{number}.png")
    data = load_dataset("folder", data_dir=tmp_path)
    assert [str(part.pixels.dtype) for part in (data.train, data.test)] == ["float32", "uint8"]
    np.testing.assert_array_equal(data.train.images()[[2, 3, 6, 7], 0], deep[[0, 2, 1, 3]] / np.float32(65535))
    assert data.mean == (round(float(data.train.images().mean(dtype=np.float64)), 4),)
    assert data.std == (round(float(data.train.images().std(dtype=np.float64)), 4),)
