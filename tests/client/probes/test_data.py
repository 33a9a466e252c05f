"""Labelled images for probes: which are chosen, their class indices, and their memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import FakeModel, FakeTransport, InputError, MissingExtraError
from defensemble._client.model_info import ModelInfo
from defensemble._image_files import ReadOptions
from defensemble.probes.data import load_probe_data
from defensemble_images import Preprocessing
from tests.client.cli.test_cli import fake, write_pictures
from tests.support.facts import raises
from tests.support.tiny import CLASSES, SHAPE, images

Array = np.ndarray[Any, Any]
CROP, SQUASH = (Preprocessing(resize).to_json() for resize in ("crop", "squash"))


def model(names: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = SHAPE, preprocessing: str | None = None) -> ModelInfo:
    return ModelInfo("net", "", "images", shape, ("logits",), 8, names, (), preprocessing)


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("arrays", "texts"),
    [
        ({"x": images(2)}, ["images and labels", "holds x"]),
        ({}, ["images and labels", "nothing"]),
        ({"images": images(2).astype(np.int32), "labels": np.zeros(2, int)}, ["`images`", "int32", "uint16"]),
        ({"images": images(0), "labels": np.zeros(0, int)}, ["`images`", "(0, 1, 4, 4)", "at least 1"]),
        ({"images": np.zeros((2, 3, 4, 4)), "labels": np.zeros(2, int)}, ["(2, 3, 4, 4)", "(N, 1, 4, 4)"]),
        ({"images": images(2), "labels": np.zeros(2)}, ["`labels`", "float64", "integers"]),
        ({"images": images(2), "labels": np.zeros(3, int)}, ["`labels`", "(3,)", "(2,)"]),
        ({"images": images(2), "labels": np.zeros((2, 1), int)}, ["`labels`", "(2, 1)", "(2,)"]),
        ({"images": images(2), "labels": np.array([0, 3])}, ["[0, 3)", "'net'", "0 to 3"]),
        ({"images": images(2), "labels": np.array([-1, 0], np.int8)}, ["[0, 3)", "-1 to 0"]),
        ({"images": images(2), "labels": np.array([0, 2**64 - 1], np.uint64)}, ["[0, 3)", str(2**64 - 1)]),
        ({"images": images(2) * np.float32(np.nan), "labels": np.zeros(2, int)}, ["image 0", "NaN"]),
        ({"images": images(2), "labels": np.array([0, 1]), "class_names": np.array(["x", "y"])}, ["x, y", ", ".join(CLASSES)]),
        ({"images": images(2), "labels": np.array([0, 1]), "class_names": np.array(CLASSES[:1])}, ["[0, 1)", "class names"]),
        ({"images": images(2), "labels": np.array([0, 1]), "class_names": np.array([1, 2])}, ["`class_names`", "int64"]),
        ({"images": images(2), "labels": np.array([0, 1]), "class_names": np.array([["a"]])}, ["`class_names`", "(1, 1)"]),
    ],
)
def test_an_archive_that_does_not_match_the_model_is_rejected(tmp_path: Path, arrays: dict[str, Array], texts: list[str]) -> None:
    path = save(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError) as caught:
        load_probe_data(path, model(), None, 0)
    assert [text for text in (path, *texts) if text not in str(caught.value)] == []


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path) -> None:
    for name, content in (("broken.npz", b"PK\x03\x04 no zip"), ("empty.NPZ", b"")):
        (tmp_path / name).write_bytes(content)
        with raises(InputError, f"{name} | .npz"):
            load_probe_data(str(tmp_path / name), model(), None, 0)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, ">i2", np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_labels_of_an_archive_with_names_are_matched_by_name(tmp_path: Path, kind: Any) -> None:
    batch, labels = images(6), np.array([2, 0, 1, 2, 1, 0], kind)
    plain = load_probe_data(save(tmp_path / "a.npz", images=batch, labels=labels), model(), None, 0)
    assert plain.data.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(plain.data.images, batch)
    named = load_probe_data(save(tmp_path / "b.npz", images=batch, labels=labels, class_names=np.array(CLASSES[::-1])), model(), None, 0)
    assert named.data.labels.tolist() == [0, 2, 1, 0, 1, 2]


def test_a_folder_is_read_completely_or_sampled(tmp_path: Path) -> None:
    info = fake().describe()
    values = write_pictures(tmp_path / "pictures")
    everything = load_probe_data(str(tmp_path / "pictures"), info, None, 0)
    assert sorted(map(bytes, everything.data.images)) == sorted(map(bytes, values))
    sample = load_probe_data(str(tmp_path / "pictures"), info, 5, 1)
    again = load_probe_data(str(tmp_path / "pictures"), info, 5, 1)
    other = load_probe_data(str(tmp_path / "pictures"), info, 5, 2)
    assert len(sample.data) == 5
    assert sample.source == again.source
    assert sample.data.digest == again.data.digest
    assert sample.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    np.testing.assert_array_equal(sample.data.images, everything.data.images[sample.rows])
    shards = [load_probe_data(str(tmp_path / "pictures"), info, 5, 1, shard=(number, 3)) for number in (1, 2, 3)]
    assert sorted(np.concatenate([shard.rows for shard in shards])) == sample.rows.tolist()
    for shard in shards:
        np.testing.assert_array_equal(shard.data.images, everything.data.images[shard.rows])
    with raises(InputError, "5 images | 6 shards"):
        load_probe_data(str(tmp_path / "pictures"), info, 5, 1, shard=(1, 6))
    assert sample.source["n_available"] == 12
    (tmp_path / "pictures/a-note.txt").touch()
    first = sorted((tmp_path / "pictures").rglob("*.png"))[0]
    first.write_bytes(b"")
    with pytest.raises(InputError, match=first.name):
        load_probe_data(str(tmp_path / "pictures"), info, None, 0)
    rest = load_probe_data(str(tmp_path / "pictures"), info, None, 0, options=ReadOptions(skip_damaged=True))
    np.testing.assert_array_equal(rest.data.images, everything.data.images[1:])
    np.testing.assert_array_equal(rest.data.labels, everything.data.labels[1:])
    assert rest.source["skipped"] == {"hidden": 0, "not_images": 1, "damaged": 1}
    assert [first.name in note for note in rest.notes] == [False, True]


def write_stripes(folder: Path, size: tuple[int, int] = (28, 28), order: str = "0123456789") -> None:
    """Write two splits of ten classes, each with one image of the grey value 20 times its number."""
    for split in ("train", "test"):
        for digit in order:
            place = folder / split / digit
            place.mkdir(parents=True)
            Image.new("L", size, 20 * int(digit)).save(place / "a.png")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_classes_of_folders_and_datasets_are_matched_by_name(tmp_path: Path) -> None:
    write_stripes(tmp_path / "set", (16, 16))
    info = model(tuple("9081726354"), (1, 16, 16))
    for source, data_dir in ((str(tmp_path / "set/test"), None), ("folder", tmp_path / "set"), ("mnist", tmp_path / "set")):
        chosen = load_probe_data(source, info, None, 0, data_dir, options=ReadOptions(resize="crop"))
        greys = (chosen.data.images[:, 0, 0, 0] * 255 / 20).round().astype(int)
        assert [info.class_names[label] for label in chosen.data.labels] == [str(grey) for grey in greys]
        with raises(InputError, "0, 1, 2 | zero, one"):
            load_probe_data(source, model(("zero", "one"), (1, 16, 16)), None, 0, data_dir, options=ReadOptions(resize="crop"))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("recorded", "resize", "accepted"),
    [(None, None, False), (CROP, None, True), (SQUASH, None, True), (None, "crop", True), (SQUASH, "crop", True), (CROP, "squash", True)],
)
@pytest.mark.parametrize("name", ["mnist", "folder"])
def test_datasets_are_resized_only_by_a_known_rule(
    tmp_path: Path, recorded: str | None, resize: str | None, accepted: bool, name: str
) -> None:
    write_stripes(tmp_path / "set", (28, 28))
    # Of 28 x 28, crop and squash make the same; `test_a_dataset_is_resized_by_the_rule_of_the_model` distinguishes them.
    for size, fits in ((28, True), (16, accepted)):
        info = model(tuple("0123456789"), (1, size, size), recorded)
        if fits:
            chosen = load_probe_data(name, info, 4, 0, tmp_path / "set", options=ReadOptions(resize))
            assert chosen.data.images.shape == (4, 1, size, size)
            assert chosen.source["n_available"] == 10
            continue
        with raises(InputError, "28 x 28 | 16 x 16 | --resize crop"):
            load_probe_data(name, info, 4, 0, tmp_path / "set", options=ReadOptions(resize))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", ["mnist", "folder"])
def test_a_dataset_is_resized_by_the_rule_of_the_model(tmp_path: Path, name: str) -> None:
    write_stripes(tmp_path / "set", (64, 16))
    for path in (tmp_path / "set").rglob("*.png"):  # bright at the sides, which only squash keeps
        image = Image.open(path)
        image.paste(255, (0, 0, 20, 16))
        image.paste(255, (44, 0, 64, 16))
        image.save(path)
    for rule, bright in ((CROP, 0), (SQUASH, 0.6)):
        images = load_probe_data(name, model(tuple("0123456789"), (1, 16, 16), rule), None, 0, tmp_path / "set").data.images
        assert (images > 0.9).mean() == pytest.approx(bright, abs=0.05)
    with raises(InputError, "64 x 16 | --resize crop"):
        load_probe_data(name, model(tuple("0123456789"), (1, 16, 16)), None, 0, tmp_path / "set")


@pytest.mark.usefixtures("own_cache")
def test_a_dataset_of_several_sizes_suggests_an_option(tmp_path: Path) -> None:
    write_stripes(tmp_path / "set")
    Image.new("L", (30, 20)).save(tmp_path / "set/test/0/b.png")
    with pytest.raises(InputError, match="--resize crop"):
        load_probe_data("folder", model(tuple("0123456789"), (1, 16, 16)), None, 0, tmp_path / "set")


def test_a_dataset_is_loaded_by_the_training_package() -> None:
    pytest.importorskip("sklearn")
    names = tuple("0123456789")
    digits = FakeModel(
        lambda batch: {"logits": np.zeros((len(batch), 10), np.float32)}, (1, 16, 16), class_names=names, platform="ensemble"
    )
    chosen = load_probe_data("digits", fake(FakeTransport({"ensemble": digits})).describe(), 50, 0)
    assert chosen.data.images.shape == (50, 1, 16, 16)
    assert chosen.source["kind"] == "dataset, test split"


def test_without_the_training_package_a_dataset_suggests_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "defensemble_training", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'defensemble\[train\]'"):
        load_probe_data("digits", fake().describe(), None, 0)


def test_a_model_of_any_size_is_probed_with_images_of_one_size(tmp_path: Path) -> None:
    info = model(shape=(1, -1, -1))
    write_pictures(tmp_path / "pictures")
    assert load_probe_data(str(tmp_path / "pictures"), info, None, 0).data.images.shape == (12, *SHAPE)
    assert load_probe_data(save(tmp_path / "a.npz", images=images(3), labels=np.zeros(3, int)), info, None, 0).data.images.shape == (
        3,
        *SHAPE,
    )
    last = sorted((tmp_path / "pictures").rglob("*.png"))[-1]
    Image.new("L", (5, 9)).save(last)
    with raises(InputError, f"{last.name} | (1, 9, 5)"):
        load_probe_data(str(tmp_path / "pictures"), info, None, 0)


@pytest.mark.usefixtures("own_cache")
def test_data_above_the_memory_limit_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    write_stripes(tmp_path / "set", (16, 16))
    archive = save(tmp_path / "a.npz", images=np.zeros((1000, 1, 16, 16), np.uint8), labels=np.zeros(1000, int))
    digits = model(tuple("0123456789"), (1, 16, 16))
    for source, info, data_dir, named in (
        (archive, digits, None, archive),
        (str(tmp_path / "pictures"), model(), None, str(tmp_path / "pictures")),
        ("folder", digits, tmp_path / "set", str(tmp_path / "set/train/0/a.png")),
    ):
        with raises(InputError, f"{named} | --max-memory"):
            load_probe_data(source, info, None, 0, data_dir, options=ReadOptions(max_memory=1000))
        assert len(load_probe_data(source, info, 1, 0, data_dir, options=ReadOptions(max_memory=10_000)).data) == 1


CHILD = """
import json, re, sys
from pathlib import Path
import numpy as np
from rich.console import Console
from defensemble import Client, FakeModel, FakeTransport
from defensemble.cli.actions.predict import predict_files
from defensemble.cli.actions.probe import ProbeArguments, run_probe
from defensemble.probes import Noise
import PIL.Image, defensemble_images.arrays, defensemble_images.decoding
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
def answer(images):
    return {"logits": np.tile(np.float32([1, 0]), (len(images), 1))}
transport = FakeTransport({"m": FakeModel(answer, (3, 64, 64), class_names=("a", "b"))})
client = Client("fake", "m", transport=transport)
client.describe()
before, what, path = peak(), sys.argv[1], Path(sys.argv[2])
if what == "probe":
    console = Console(file=open("/dev/null", "w"))
    run_probe(Noise((8, 16)), ProbeArguments("", str(path), path.parent / "noise.json", transport=transport), console=console)
else:
    sys.stdout = open("/dev/null", "w")
    files, labelled = ([str(path)], None) if path.is_file() else ([], path)
    predict_files(client, files, ["probabilities"], labelled, form="json")
    sys.stdout = sys.__stdout__
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_below_the_estimate(tmp_path: Path) -> None:
    count = 4000
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 64, 64), np.uint8)
    labels = np.arange(count) % 2
    np.savez_compressed(tmp_path / "small.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "floats.npz", images=pixels / np.float32(255), labels=labels)
    np.save(tmp_path / "floats.npy", pixels / np.float32(255))
    for index, image in enumerate(pixels):
        place = tmp_path / "folder" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{index}.bmp")
    ratios = {}
    for what, name, limit in (
        ("probe", "small.npz", 2.4),
        ("probe", "floats.npz", 2.4),
        ("probe", "folder", 2.4),
        ("predict", "folder", 0.4),
        ("predict", "floats.npy", 0.4),
    ):
        done = subprocess.run([sys.executable, "-c", CHILD, what, tmp_path / name], capture_output=True, text=True, check=True)
        ratios[what, name] = int(done.stdout.split()[-1]) / (4 * pixels.size)
        assert ratios[what, name] < limit, json.dumps({str(key): value for key, value in ratios.items()})
