from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import InputError
from defensemble._client.model_info import ModelInfo
from defensemble.probes import LabelledImages, load_folders, write_cue_conflict
from defensemble.probes.cue_conflict import _images, _pairs
from defensemble.probes.data import ProbeData, load_probe_data
from tests.support.facts import raises

Array = np.ndarray[Any, Any]
NAMES = ("cat", "7", "dog")


def source(shape: tuple[int, ...] = (3, 10, 12), n: int = 9, classes: int = 3) -> ProbeData:
    images = np.random.default_rng(0).random((n, *shape), np.float32)
    return ProbeData(LabelledImages(images, np.arange(n) % classes), 10 * np.arange(n), {"name": "random"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shape", [(3, 10, 12), (1, 8, 8)])
def test_the_set_is_deterministic_and_can_be_measured(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    folders = write_cue_conflict(tmp_path / "a", source(shape), NAMES, count=6, seed=3)
    write_cue_conflict(tmp_path / "b", source(shape), NAMES, count=6, seed=3)
    write_cue_conflict(tmp_path / "c", source(shape), NAMES, count=6, seed=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len({tuple(contents(tmp_path / name)) for name in "ac"}) == 2
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["inputs"]["images_sha256"] == source(shape).data.digest
    assert len(manifest["images"]) == 6
    info = ModelInfo("net", "", "images", shape, ("logits",), 8, NAMES, ())
    chosen = load_folders(folders, info, partial(load_probe_data, info=info, limit=None, seed=0))
    assert chosen.data.images.shape == (18, *shape)
    conflict = chosen.source["folders"][0]
    assert (conflict["kind"], conflict["n_available"]) == ("cue conflict", 6)
    for entry in manifest["images"]:
        assert entry["shape"] != entry["texture"]
        rows = [entry["shape_row"] // 10, entry["texture_row"] // 10]
        assert [NAMES[source().data.labels[row]] for row in rows] == [entry["shape"], entry["texture"]]
        pixels = np.asarray(Image.open(tmp_path / "a/conflict" / entry["file"]))
        assert pixels.shape == (shape[1:] if shape[0] == 1 else (*shape[1:], 3))
        # Each value of the image is one of the texture's.
        texture = np.rint(source(shape).data.images[rows[1]] * 255).astype(np.uint8).reshape(shape[0], -1)
        values = {tuple(value) for value in texture.T.tolist()}
        assert {tuple(value) for value in pixels.reshape(-1, shape[0]).tolist()} <= values


def test_the_layout_is_that_of_the_shape() -> None:
    """The texture has bright and dark places, so that a quilt can follow the brightness of the layout."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    disc = np.broadcast_to((np.hypot(y - 12, x - 18) < 9).astype(np.float32), (3, 32, 32))
    blocks = np.broadcast_to(random.random((1, 8, 8), np.float32).repeat(4, 1).repeat(4, 2), (3, 32, 32))
    chosen = ProbeData(LabelledImages(np.stack([disc, blocks]), np.array([0, 1])), np.arange(2), {})
    conflict, only_shape, only_texture = _images(chosen, 0, 1, random)
    correlation = [np.corrcoef(image.mean(0).ravel(), disc[0].ravel())[0, 1] for image in (conflict, only_shape, only_texture)]
    assert correlation[0] > 0.7
    assert correlation[1] > 0.9
    assert abs(correlation[2]) < 0.3


def test_each_class_and_each_pair_of_classes_is_used_equally_often() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 7))
    pairs = [(int(labels[shape]), int(labels[texture])) for shape, texture in _pairs(labels, 5 * 4 * 3, seed=1)]
    counts = {(shape, texture): pairs.count((shape, texture)) for shape, texture in product(range(5), repeat=2)}
    assert counts == {(shape, texture): 3 * (shape != texture) for shape, texture in counts}
    shapes = [shape for shape, _ in _pairs(labels, 35, seed=1)]
    assert sorted(shapes) == list(range(35))  # each image once, before any is used again


def test_a_folder_with_the_set_is_used_again(tmp_path: Path) -> None:
    made: list[int] = []
    for _ in range(2):
        write_cue_conflict(tmp_path / "set", source(), NAMES, count=4, on_progress=lambda what, done, total: made.append(done))
    assert made == [1, 2, 3, 4]
    assert all(a < b for a, b in pairwise(made))


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cue_conflict(tmp_path / "set", source(), NAMES, count=4, on_progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("prepare", "facts"),
    [
        (lambda folder: folder.mkdir(), "set | no set of cue conflicts"),
        (lambda folder: folder.write_text("file"), "set | no set of cue conflicts"),
        (lambda folder: write_cue_conflict(folder, source(), NAMES, count=3), "count"),
        (lambda folder: write_cue_conflict(folder, source(), NAMES, count=4, seed=1), "seed"),
        (lambda folder: write_cue_conflict(folder, source(n=8), NAMES, count=4), "images_sha256"),
    ],
)
def test_a_folder_with_something_else_is_left_as_it_is(tmp_path: Path, prepare: Callable[[Path], object], facts: str) -> None:
    prepare(tmp_path / "set")
    before = contents(tmp_path)
    with raises(InputError, facts):
        write_cue_conflict(tmp_path / "set", source(), NAMES, count=4)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files[0].unlink(),
        lambda files: files[1].write_bytes(files[2].read_bytes()),
        lambda files: files[0].with_name("more.png").write_bytes(files[0].read_bytes()),
    ],
    ids=["removed", "changed", "added"],
)
def test_a_set_whose_images_were_changed_is_refused(tmp_path: Path, change: Callable[[list[Path]], object]) -> None:
    write_cue_conflict(tmp_path / "set", source(), NAMES, count=4)
    change(sorted((tmp_path / "set").rglob("*.png")))
    before = contents(tmp_path)
    with raises(InputError, "set | 1 images | .png"):
        write_cue_conflict(tmp_path / "set", source(), NAMES, count=4)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("chosen", "names", "facts"),
    [
        (source((2, 8, 8)), NAMES, "(2, 8, 8) | 1 or 3"),
        (source((3, 8, 7)), NAMES, "(3, 8, 7) | 8 x 8"),
        (source(classes=1), NAMES, "two classes | 1"),
        (source(), ("cat", "a/b", "dog"), "'a/b' | folder"),
        (source(), ("cat", ".b", "dog"), "'.b' | folder"),
    ],
)
def test_images_that_do_not_fit_are_rejected(tmp_path: Path, chosen: ProbeData, names: tuple[str, ...], facts: str) -> None:
    with raises(InputError, facts):
        write_cue_conflict(tmp_path / "set", chosen, names)
    assert not list(tmp_path.iterdir())
