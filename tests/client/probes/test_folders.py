from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import InputError, wilson
from defensemble._client.model_info import ModelInfo
from defensemble.probes import Folders, FunctionTarget, ImageFolder, ProbeOutcome, RunOptions, load_folders, measure
from defensemble.probes.data import ProbeData, load_probe_data
from defensemble.probes.merging import merge
from defensemble.probes.outcome_reader import outcome_from_json
from tests.support.facts import raises

Array = np.ndarray[Any, Any]
CLASSES = ("bear", "cat", "truck")
SIZE = (4, 4)


def model(names: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = (1, *SIZE)) -> ModelInfo:
    return ModelInfo("net", "", "images", shape, ("logits",), 8, names, ())


def write(path: Path, decision: int, size: tuple[int, int] = SIZE) -> None:
    """Write an image that `classify` decides as `decision`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, decision, np.uint8)).save(path)


def classify(images: Array) -> Array:
    scores: Array = np.eye(3, dtype=np.float32)[np.rint(images[:, 0, 0, 0] * 255).astype(int)]
    return scores


def loaded(folders: list[ImageFolder], info: ModelInfo | None = None, **options: Any) -> ProbeData:
    info = info or model()
    return load_folders(folders, info, partial(load_probe_data, info=info, limit=None, seed=0, **options))


def measured(chosen: ProbeData, shard: tuple[int, int] | None = None) -> ProbeOutcome:
    options = RunOptions(shard=shard)
    targets = [FunctionTarget("a", classify)]
    return measure(Folders(), targets, chosen.data, rows=chosen.rows, source=chosen.source, class_names=CLASSES, options=options)


def conflicts(folder: Path, decisions: list[int]) -> ImageFolder:
    """Twelve images, two for each pair of classes, with these decisions in the order of their files."""
    pairs = [(shape, texture) for shape in CLASSES for texture in CLASSES if shape != texture for _ in range(2)]
    for number, ((shape, texture), decision) in enumerate(zip(pairs, decisions, strict=True)):
        write(folder / shape / f"{shape}{number}-{texture}{number % 2}.png", decision)
    return ImageFolder(folder, "cue conflict")


def test_a_folder_that_is_passed_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set/cat/a.png", 1)
    with raises(InputError, "set | twice"):
        loaded([ImageFolder(tmp_path / "set"), ImageFolder(tmp_path / "x/../set")])


@pytest.mark.parametrize("folders", [None, [{"name": "a"}], [{"name": "a", "kind": "stylised", "first_row": -1, "n_available": 3}]])
def test_damaged_sources_of_folders_are_refused(folders: Any) -> None:
    rows = np.arange(3)
    with raises(InputError, "data.folders"):
        Folders.summary({"folders": folders}, rows, rows, {"clean": rows})


def test_shape_bias_and_accuracies_equal_counting(tmp_path: Path) -> None:
    # Textures of the twelve files: 1 1 2 2, 0 0 2 2, 0 0 1 1. Two decisions are for neither class.
    decisions = [0, 1, 0, 1, 1, 1, 1, 2, 2, 2, 0, 2]
    labels, textures = np.repeat([0, 1, 2], 4), np.array([1, 1, 2, 2, 0, 0, 2, 2, 0, 0, 1, 1])
    write(tmp_path / "stylised/cat/1.png", 1)
    write(tmp_path / "stylised/cat/2.png", 2)
    write(tmp_path / "stylised/truck/1.png", 2)
    folders = [ImageFolder(tmp_path / "stylised"), conflicts(tmp_path / "conflict", decisions)]
    outcome = measured(loaded(folders))
    stylised, conflict = outcome.targets[0].details["folders"]
    assert (stylised["kind"], stylised["accuracy"]["successes"], stylised["accuracy"]["n"]) == ("stylised", 2, 3)
    shape, texture = int((np.array(decisions) == labels).sum()), int((np.array(decisions) == textures).sum())
    counts = {"shape": (shape, 12), "texture": (texture, 12), "neither": (12 - shape - texture, 12), "shape_bias": (shape, shape + texture)}
    assert counts["neither"] == (2, 12)
    for name, (successes, n) in counts.items():
        low, high = wilson(successes, n)
        assert conflict[name] == {"value": successes / n, "successes": successes, "n": n, "low": low, "high": high}


def test_images_whose_shape_and_texture_are_of_one_class_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "cat/cat1-cat2.png", 1)
    write(tmp_path / "cat/cat1-bear2.png", 1)
    (conflict,) = measured(loaded([ImageFolder(tmp_path, "cue conflict")])).targets[0].details["folders"]
    assert conflict["shape"]["n"] == conflict["shape_bias"]["n"] == 1


def test_a_result_file_and_merged_shards_have_the_same_summary(tmp_path: Path) -> None:
    write(tmp_path / "stylised/cat/1.png", 1)
    write(tmp_path / "stylised/cat/2.png", 0)
    folders = [ImageFolder(tmp_path / "stylised"), conflicts(tmp_path / "conflict", [0, 1, 0, 1, 1, 1, 1, 2, 2, 2, 0, 2])]
    whole = measured(loaded(folders))
    read = outcome_from_json(whole.json())
    assert read.targets[0].details == whole.targets[0].details
    parts = [measured(loaded(folders, shard=(number, 2)), (number, 2)) for number in (1, 2)]
    assert merge(parts, summary=Folders.summary).targets[0].details == whole.targets[0].details


@pytest.mark.parametrize(
    ("names", "file", "texture"),
    [
        (CLASSES, "bear/bear1-truck20.png", "truck"),
        (CLASSES, "bear/bear-truck2.png", "truck"),
        (("bear", "polar-bear"), "polar-bear/polar-bear1-bear3.png", "bear"),
        (("bear", "polar-bear"), "bear/bear1-polar-bear3.png", "polar-bear"),
        (("3", "4"), "3/317-42.png", "4"),
        (("1", "10", "no"), "1/1_5-10_55.png", "10"),
        (("1", "10", "no"), "10/10_5-1_0.png", "1"),
    ],
)
def test_the_texture_is_read_from_the_name(tmp_path: Path, names: tuple[str, ...], file: str, texture: str) -> None:
    info = model(names)
    for name in names:  # a model whose classes are numbers needs a folder for each
        (tmp_path / name).mkdir()
    write(tmp_path / file, 0)
    chosen = loaded([ImageFolder(tmp_path, "cue conflict")], info)
    predicted = np.array([names.index(texture)])
    (entry,) = Folders.summary(chosen.source, chosen.rows, chosen.data.labels, {"clean": predicted})["folders"]
    assert entry["texture"]["value"] == 1


def two_sizes(folder: Path) -> list[ImageFolder]:
    write(folder / "a/cat/1.png", 0, (4, 4))
    write(folder / "b/cat/1.png", 0, (5, 5))
    return [ImageFolder(folder / "a"), ImageFolder(folder / "b")]


def one(kind: Any, *files: str) -> Callable[[Path], list[ImageFolder]]:
    def make(folder: Path) -> list[ImageFolder]:
        for file in files:
            write(folder / file, 0)
        return [ImageFolder(folder, kind)]

    return make


@pytest.mark.parametrize(
    ("make", "info", "facts"),
    [
        (lambda folder: [], model(), "no folders"),
        (one("stylised"), model(), "no labelled images | bear, cat, truck"),
        (one("stylised", "dog/1.png", "cat/1.png"), model(), "dog | bear, cat, truck | 'net'"),
        (one("cue conflict", "dog/dog1-cat1.png"), model(), "dog | bear, cat, truck"),
        (one("cue conflict", "cat/cat1-dog1.png"), model(), "cat1-dog1.png | cat<n>-TEXTURE<m> | bear, cat, truck"),
        (one("cue conflict", "cat/cat1.png"), model(), "cat1.png | does not name its texture"),
        (one("cue conflict", "cat/bear1-cat1.png"), model(), "bear1-cat1.png | cat<n>-TEXTURE<m>"),
        (one("cue conflict", "a/a1-105.png"), model(("a", "1", "10")), "a1-105.png | several | 1, 10"),
        (two_sizes, model(shape=(1, -1, -1)), "(1, 5, 5) | (1, 4, 4)"),
    ],
)
def test_folders_that_do_not_fit_are_rejected(tmp_path: Path, make: Any, info: ModelInfo, facts: str) -> None:
    with raises(InputError, facts):
        loaded(make(tmp_path), info)
