"""The client's additions to the image reader: its errors, the model's resize rule, and the model's classes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import Client, FakeModel, FakeTransport, InputError
from defensemble._client.model_info import ModelInfo
from defensemble._image_files import (
    ReadCounts,
    choose_preprocessing,
    decode_for_model,
    decode_memory_bytes,
    find_labelled_images,
    read_npy_images,
)
from defensemble.cli import cli
from defensemble_images import RESIZES, DamagedImageError, Preprocessing
from tests.support.facts import raises

RNG = np.random.default_rng(0)
CROP, SQUASH = (Preprocessing(resize).to_json() for resize in RESIZES)
REORDERED = json.dumps(dict(reversed(json.loads(CROP).items())))


def model(shape: tuple[int, int, int] = (1, 4, 6), names: tuple[str, ...] = ("a", "b"), preprocessing: str | None = None) -> ModelInfo:
    return ModelInfo("net", "", "images", shape, ("logits",), 8, names, (), preprocessing)


def write(path: Path, size: tuple[int, int] = (6, 4), channels: int = 1) -> np.ndarray[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(values[..., 0] if channels == 1 else values).save(path)
    channels_first: np.ndarray[Any, Any] = values.transpose(2, 0, 1)
    return channels_first


def test_the_client_reads_the_recorded_preprocessing_from_an_open_configuration() -> None:
    def answer(images: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"logits": np.zeros((len(images), 2), np.float32)}

    transport = FakeTransport(
        {
            "open": FakeModel(answer, (1, 4, 6), preprocessing=CROP),
            "none": FakeModel(answer, (1, 4, 6)),
            "closed": FakeModel(answer, (1, 4, 6), preprocessing=CROP, config_is_open=False),
        }
    )
    client = Client("fake", transport=transport)
    assert [client.describe(name).preprocessing for name in ("open", "none", "closed")] == [CROP, None, None]


@pytest.mark.parametrize(
    ("recorded", "resize", "expected", "noted"),
    [
        (None, None, None, False),
        (CROP, None, "crop", False),
        (SQUASH, None, "squash", False),
        (None, "crop", "crop", False),
        (CROP, "crop", "crop", False),
        (REORDERED, "crop", "crop", False),
        (CROP, "squash", "squash", True),
        ("later", "crop", "crop", True),
    ],
)
def test_the_user_s_rule_overrides_the_model_s(recorded: str | None, resize: str | None, expected: str | None, noted: bool) -> None:
    rule, note = choose_preprocessing(model(preprocessing=recorded), resize)
    assert (None if rule is None else rule.resize) == expected
    assert (note is not None and str(recorded) in note and str(resize) in note) is noted


def test_an_unknown_rule_is_rejected() -> None:
    with raises(InputError, "'net' | later"):
        choose_preprocessing(model(preprocessing="later"), None)


def test_the_options_match_the_reader() -> None:
    for words in (("predict",), ("probe", "noise")):
        command: Any = cli
        for word in words:
            command = command.commands[word]
        assert next(option for option in command.params if option.name == "resize").type.choices == RESIZES


def test_images_must_have_the_model_s_size_without_a_rule(tmp_path: Path) -> None:
    exact, other = write(tmp_path / "a.png"), write(tmp_path / "b.png", (12, 4))
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    counts = ReadCounts()
    with raises(InputError, "b.png | 12 x 4 | 6 x 4 | --resize crop"):
        list(decode_for_model(files, model(), None, False, counts))
    cropped = dict(decode_for_model(files, model(), Preprocessing("crop"), False, counts))
    np.testing.assert_array_equal(cropped[0], exact.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(cropped[1], other[:, :, 3:9].astype(np.float32) / np.float32(255))
    squashed = dict(decode_for_model(files, model(), Preprocessing("squash"), False, counts))
    np.testing.assert_array_equal(squashed[0], cropped[0])
    assert not np.array_equal(squashed[1], cropped[1])
    as_they_are = dict(decode_for_model(files, model((1, -1, -1)), Preprocessing("crop"), False, counts))
    np.testing.assert_array_equal(as_they_are[1], other.astype(np.float32) / np.float32(255))
    assert not counts.lines()
    with pytest.raises(InputError, match="2 channels"):
        list(decode_for_model(files, model((2, 4, 6)), None, False, counts))


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, -1, -1)])
def test_damaged_images_and_animations_are_counted(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    frames = [Image.new("L", (6, 4), value) for value in (10, 20)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    write(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    os.mkfifo(tmp_path / "pipe.png")
    files = [tmp_path / name for name in ("cut.png", "film.gif", "pipe.png", "good.png")]
    with pytest.raises(InputError, match=r"cut\.png") as caught:
        list(decode_for_model(files, model(shape), None, False, ReadCounts()))
    assert isinstance(caught.value.__cause__, DamagedImageError)
    counts = ReadCounts()
    assert [index for index, _ in decode_for_model(files, model(shape), None, True, counts)] == [1, 3]
    assert counts.json() == {"skipped": {"hidden": 0, "not_images": 0, "damaged": 2}, "animations": 1}
    damaged, animated = counts.lines()
    assert "2" in damaged
    assert "cut.png" in damaged
    assert "animation" in animated
    assert "film.gif" in animated


def test_a_missing_file_raises_an_os_error(tmp_path: Path) -> None:
    for read in (
        lambda: decode_memory_bytes([tmp_path / "none.png"], model()),
        lambda: list(decode_for_model([tmp_path / "none.png"], model(), None, True, ReadCounts())),
        lambda: read_npy_images(tmp_path / "none.npy"),
    ):
        with pytest.raises(FileNotFoundError, match=r"none\.np|none\.png"):
            read()


def test_decode_memory_covers_the_largest_image(tmp_path: Path) -> None:
    write(tmp_path / "small.png")
    write(tmp_path / "large.png", (500, 400))
    few = decode_memory_bytes([tmp_path / "small.png"], model())
    more = decode_memory_bytes([tmp_path / "small.png", tmp_path / "large.png"], model())
    assert few < 10_000 < 500 * 400 * 4 < more < 500 * 400 * 40
    assert decode_memory_bytes([tmp_path / "large.png"], model((1, -1, -1))) >= 500 * 400 * 4


def test_a_labelled_folder_is_read_as_in_training_and_matched_by_name(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deep/er/1.PPM", "a/3.pgm", "b/notes.txt", "b/._2.png", ".cache/x.png", "__MACOSX/b/2.png", "readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    counts = ReadCounts()
    files, labels = find_labelled_images(tmp_path, model(names=("c", "b", "a")), counts)
    assert [str(file.relative_to(tmp_path)) for file in files] == ["a/3.pgm", "b/2.png", "b/deep/er/1.PPM"]
    assert labels.tolist() == [2, 1, 1]
    assert counts.json()["skipped"] == {"hidden": 3, "not_images": 2, "damaged": 0}
    assert len(counts.lines()) == 1
    with raises(InputError, "'net' | b | a, c") as caught:
        find_labelled_images(tmp_path, model(names=("a", "c")), ReadCounts())
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "nothing | CLASS | a, b"),
        (["a/.x.png", "b/y.txt"], "1 hidden entry | 1 file"),
        (["test/a/1.png", "train/a/1.png"], "test, train | /test"),
        (["val/a/1.png", "readme.md"], "val | /val"),
        (["a/1.png", "stray.png"], "stray.png"),
    ],
)
def test_folders_of_another_layout_are_rejected(tmp_path: Path, entries: list[str], text: str) -> None:
    for name in entries:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with raises(InputError, text):
        find_labelled_images(tmp_path, model(), ReadCounts())
    with raises(InputError, "none | not a folder"):
        find_labelled_images(tmp_path / "none", model(), ReadCounts())


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train/1.png")
    assert find_labelled_images(tmp_path, model(names=("car", "train")), ReadCounts())[1].tolist() == [1]


def test_npy_images_are_read_for_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = RNG.integers(0, 2**16, (5, 2, 4, 6), np.uint16)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_allclose(read_npy_images(tmp_path / "a.npy"), array / 65535, rtol=1e-6)
    os.mkfifo(tmp_path / "b.npy")
    with raises(InputError, "b.npy | FIFO"):
        read_npy_images(tmp_path / "b.npy")
    monkeypatch.setattr("defensemble_images.memory.free_memory", lambda: 3000)
    with raises(InputError, "a.npy | less data"):
        read_npy_images(tmp_path / "a.npy")
