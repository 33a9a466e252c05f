"""The size of images from a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from defensemble_training import DataError, load_dataset
from tests.support.facts import raises
from tests.support.written import pictures, write_split


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_split(tmp_path)
    Image.fromarray(pictures(1, 12)[0]).save(tmp_path / "test/ant/other.png")
    with raises(DataError, "8x8, 12x12 | 8 to 1024"):
        load_dataset("folder", data_dir=tmp_path)
    assert load_dataset("folder", 10, data_dir=tmp_path).input_shape == (3, 10, 10)


def test_images_that_are_not_square_need_a_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (16, 8)).save(tmp_path / split / name / "a.png")
    with raises(DataError, "16x8 | square"):
        load_dataset("folder", data_dir=tmp_path)
    assert load_dataset("folder", 8, data_dir=tmp_path).input_shape == (1, 8, 8)
