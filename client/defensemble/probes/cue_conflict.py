"""A generated set of cue conflicts from any labelled images: the shape of one class with the texture of another.

The public stimuli (Geirhos et al., arXiv 1811.12231) are images of 224x224 pixels and 16 classes, made by neural style transfer. This set
needs no network and has the classes of the model: image quilting (`quilting`) composes each image of patches of the texture's image, an
eighth of its side in size, such that its luminance follows that of the shape's image. Two control sets show how much a model recognises of
each cue without the other. In `shape`, the patches are of images of many classes; in `texture`, the layout is one with random phases.

Limits:
    - The texture includes colour, and the shape is only luminance, with the background. Nothing separates an object from its background.
    - A patch of a 32x32 image has 4x4 pixels. That is texture in the sense of local statistics, hardly of a material.
    - Layout and neighbours have equal weights, with which the standard network of the zoo recognises both cues about equally: the shape of
      28 % and the texture of 31 % of 1,000 controls from CIFAR-10. Another weight moves the shape bias of all models. Compare models with
      each other, not with published values.
    - Most decisions are for neither class, and where a model does not recognise a cue in its control set, the bias means little.
    - Data whose classes have no texture, such as digits, give a set that measures only how much of the shape is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .base import OnProgress
from .data import ProbeData
from .folders import ImageFolder
from .quilting import Pixels, luminance, patches, quilt, scrambled, with_values_of

SCHEMA = "defensemble.cue-conflict/1"
MANIFEST = "manifest.json"
_WEIGHT = 0.5
_SMALLEST = 8
_MOST_NEUTRAL = 16  # images of different classes whose patches make a neutral texture


def cue_conflict_folders(folder: Path) -> list[ImageFolder]:
    """Return the folders of a set: the conflicts, and the controls for each cue."""
    return [
        ImageFolder(folder / "conflict", "cue conflict"),
        ImageFolder(folder / "shape", "shape only"),
        ImageFolder(folder / "texture", "texture only"),
    ]


def write_cue_conflict(
    folder: Path,
    chosen: ProbeData,
    class_names: Sequence[str],
    *,
    count: int = 1000,
    seed: int = 0,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[ImageFolder]:
    """Write a set of cue conflicts with its controls, unless the folder has it. The same arguments give the same images.

    Args:
        folder: The folder to write, with `conflict/SHAPE/SHAPE<n>-TEXTURE<m>.png`, where n and m are rows of the dataset, `shape`,
            `texture` and `manifest.json`. It appears when it is complete.
        chosen: Labelled images of at least two classes.
        class_names: Names of the classes.
        count: Number of images of each of the three parts.
        seed: Seed of the pairs and of the controls.
        on_progress: Called with the current step, the number of images done, and the number of all images.

    Raises:
        InputError: The images do not fit, or the folder has something else.
        OSError: The folder cannot be written.

    Example:
        >>> folders = write_cue_conflict(Path("cue-conflict"), load_probe_data("cifar10", info, None, 0), info.class_names)
    """
    inputs = {
        "schema": SCHEMA,
        "seed": seed,
        "count": count,
        "weight": _WEIGHT,
        "source": chosen.source,
        "images_sha256": chosen.data.digest,
        "class_names": list(class_names),
    }
    if folder.exists():
        _check_same(folder, inputs)
        return cue_conflict_folders(folder)
    _check_images(chosen, class_names)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        images = []
        for number, (shape, texture) in enumerate(_pairs(chosen.data.labels, count, seed)):
            names = [class_names[chosen.data.labels[index]] for index in (shape, texture)]
            rows = [int(chosen.rows[index]) for index in (shape, texture)]
            file = "{}/{}-{}.png".format(
                names[0], *(f"{name}{'_' * name[-1].isdigit()}{row}" for name, row in zip(names, rows, strict=True))
            )
            conflict, only_shape, only_texture = _images(chosen, shape, texture, np.random.default_rng([seed, 1, number]))
            _write(part / "conflict" / file, conflict)
            _write(part / "shape" / names[0] / f"{number}.png", only_shape)
            _write(part / "texture" / names[1] / f"{number}.png", only_texture)
            images.append({"file": file, "shape": names[0], "texture": names[1], "shape_row": rows[0], "texture_row": rows[1]})
            on_progress("making cue conflicts", number + 1, count)
        manifest = {"inputs": inputs, "images": images, "sha256": _digests(part)}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return cue_conflict_folders(folder)


def _check_same(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Check that a folder has the set that would be written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, digests = dict(manifest["inputs"]), dict(manifest["sha256"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} exists and is no set of cue conflicts: pass a folder that does not exist, or one of such a set"
        ) from None
    different = [key for key, value in json.loads(json.dumps(inputs)).items() if found.get(key) != value]
    if different:
        raise InputError(f"{folder} has a set of other {', '.join(different)}: pass another folder, or remove this one")
    on_disk = _digests(folder)
    if changed := [name for name in sorted({**digests, **on_disk}) if digests.get(name) != on_disk.get(name)]:
        raise InputError(
            f"{folder}: {len(changed)} images of the set were changed, added or removed since it was made, such as {changed[0]}. Pass "
            "another folder, or remove this one, so that the set is made again."
        )


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each image of a set, by its path in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _check_images(chosen: ProbeData, class_names: Sequence[str]) -> None:
    channels, height, width = chosen.data.images.shape[1:]
    if channels not in (1, 3) or min(height, width) < _SMALLEST:
        raise InputError(
            f"cue conflicts need images of 1 or 3 channels and at least {_SMALLEST} x {_SMALLEST} pixels, got the shape "
            f"{(channels, height, width)}"
        )
    present = np.unique(chosen.data.labels)
    if len(present) < 2:
        raise InputError(f"cue conflicts need images of at least two classes, got {len(present)}: use more images")
    for name in (class_names[label] for label in present):
        if "/" in name or name.startswith(".") or name == "__MACOSX":
            raise InputError(f"the class {name!r} cannot be the name of a folder, as the files of cue conflicts need")


def _pairs(labels: NDArray[np.int64], count: int, seed: int) -> list[tuple[int, int]]:
    """Return the images of shape and texture of each conflict. Each class is shape and texture equally often, and each pair of classes."""
    rng = np.random.default_rng([seed, 0])
    present = np.unique(labels).tolist()
    shifts = 1 + rng.permutation(len(present) - 1)
    shapes, textures = ({label: cycle(rng.permutation(np.flatnonzero(labels == label)).tolist()) for label in present} for _ in range(2))
    pairs = []
    for number in range(count):
        turn, position = divmod(number, len(present))
        texture = (position + int(shifts[turn % len(shifts)])) % len(present)
        pairs.append((next(shapes[present[position]]), next(textures[present[texture]])))
    return pairs


def _images(chosen: ProbeData, shape: int, texture: int, rng: np.random.Generator) -> tuple[Pixels, Pixels, Pixels]:
    """Return the conflict of two images, and the controls with only the shape of the one and only the texture of the other."""

    def pixels(index: int) -> Pixels:
        rounded: Pixels = np.rint(chosen.data.images[index] * np.float32(255)).astype(np.uint8)
        return rounded

    layout, pool = luminance(pixels(shape)), pixels(texture)
    size = max(3, min(layout.shape) // _SMALLEST)
    overlap, values, textured = size // 4 or 1, luminance(pool), patches(pool, size)
    present = np.unique(chosen.data.labels)
    others = [
        patches(pixels(rng.choice(np.flatnonzero(chosen.data.labels == label))), size)
        for label in rng.permutation(present)[: min(len(present), _MOST_NEUTRAL)]
    ]
    neutral = np.concatenate([rng.permutation(one)[: -(-len(textured) // len(others))] for one in others])
    return (
        quilt(with_values_of(layout, values), textured, overlap, _WEIGHT),
        quilt(layout, neutral, overlap, _WEIGHT),
        quilt(with_values_of(scrambled(layout, rng), values), textured, overlap, _WEIGHT),
    )


def _write(path: Path, image: Pixels) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
