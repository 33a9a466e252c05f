from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defensemble import InputError
from defensemble._images import check_not_endless, images_from_file, labelled_files

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 3), np.uint8)


def test_a_picture_becomes_what_the_model_takes(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    Image.fromarray(GREY).save(tmp_path / "grey.PNG")
    colour = images_from_file(tmp_path / "colour.png", (3, 4, 6))
    np.testing.assert_array_equal(colour[0], COLOUR.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    assert colour.dtype == np.float32
    assert colour.flags.c_contiguous
    grey = images_from_file(tmp_path / "grey.PNG", (3, 4, 6))
    np.testing.assert_array_equal(grey[0], np.repeat(GREY[None].astype(np.float32) / np.float32(255), 3, axis=0))
    weights = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(images_from_file(tmp_path / "colour.png", (1, 4, 6))[0, 0] * 255, weights, atol=1)


def test_another_size_is_an_error_unless_asked_for(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="is 6 x 4 pixels, the model takes 8 x 8: pass --resize"):
        images_from_file(tmp_path / "colour.png", (3, 8, 8))
    assert images_from_file(tmp_path / "colour.png", (3, 8, 8), resize=True).shape == (1, 3, 8, 8)
    assert images_from_file(tmp_path / "colour.png", (3, -1, -1)).shape == (1, 3, 4, 6)


def test_arrays_come_as_they_are(tmp_path: Path) -> None:
    floats = RNG.random((5, 1, 4, 6))
    np.save(tmp_path / "many.npy", floats)
    np.testing.assert_array_equal(images_from_file(tmp_path / "many.npy", (1, 4, 6)), floats.astype(np.float32))
    np.save(tmp_path / "one.npy", GREY[None])
    np.testing.assert_array_equal(images_from_file(tmp_path / "one.npy", (1, 4, 6))[0, 0], GREY.astype(np.float32) / np.float32(255))


def write_bad(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("words")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "shape.npy", np.zeros((2, 3, 4), np.float32))
    np.save(folder / "integers.npy", np.zeros((1, 1, 4, 6), np.int64))
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    np.save(folder / "none.npy", np.zeros((0, 1, 4, 6), np.float32))
    Image.fromarray(GREY.astype(np.uint16) * 100).save(folder / "deep.png")
    Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("text.png", "not a picture that can be read"),
        ("notes.txt", "neither a picture"),
        ("broken.npy", "not a .npy file"),
        ("empty.npy", "not a .npy file"),
        ("shape.npy", r"shape \(1, 2, 3, 4\), expected \(N, 1, 4, 6\) or \(1, 4, 6\)"),
        ("integers.npy", "holds int64, expected floats in"),
        ("objects.npy", "not a .npy file of numbers"),
        ("none.npy", r"shape \(0, 1, 4, 6\)"),
        ("deep.png", "more than 8 bits a channel"),
        ("cut.png", "not a whole picture"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, name: str, told: str) -> None:
    write_bad(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        images_from_file(tmp_path / name, (1, 4, 6))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_the_file_system_s_error(tmp_path: Path) -> None:
    for name in ("missing.png", "missing.npy"):
        with pytest.raises(FileNotFoundError):
            images_from_file(tmp_path / name, (1, 4, 6))
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="2 channels, which no picture has"):
        images_from_file(tmp_path / "grey.png", (2, 4, 6))


def test_a_labelled_folder(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.jpg", "a/3.png", "b/notes.txt", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, labels = labelled_files(tmp_path, ("a", "b", "c"))
    assert [str(file.relative_to(tmp_path)) for file in files] == ["a/3.png", "b/1.jpg", "b/2.png"]
    assert labels.tolist() == [0, 1, 1]
    with pytest.raises(InputError, match=r"is named after no class of the model: expected .*/CLASS/IMAGE with CLASS one of a, c"):
        labelled_files(tmp_path, ("a", "c"))
    with pytest.raises(InputError, match="is not a folder"):
        labelled_files(tmp_path / "none", ("a",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no labelled pictures"):
        labelled_files(tmp_path / "empty", ("a",))


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz"])
@pytest.mark.parametrize("device", [False, True])
def test_what_may_never_end_is_not_opened(tmp_path: Path, name: str, device: bool) -> None:
    path = tmp_path / name
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=name):
        check_not_endless(path)
    if not name.endswith("z"):
        with pytest.raises(InputError, match="regular file"):
            images_from_file(path, (3, 4, 4))
