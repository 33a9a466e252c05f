"""Texture against shape on folders of images: accuracy on stylised images, shape bias on images of cue conflicts.

Source: Geirhos et al., ImageNet-trained CNNs are biased towards texture, arXiv 1811.12231. An image of a cue conflict has the shape of one
class and the texture of another. A decision for the first is a shape decision, one for the second a texture decision. The shape bias is
the share of shape decisions among both; decisions for other classes are reported with it, as it means little where they are the rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from defensemble_images import normalised
from defensemble_images.class_names import format_names

from .._client.model_info import ModelInfo
from .._exceptions import InputError
from .._image_files import ReadCounts, find_labelled_images
from ..results.intervals import rate
from ..results.packed import pack, unpack
from .base import CLEAN, Condition, LabelledImages, PerturbationProbe, ProbeImage
from .data import ProbeData

FolderKind = Literal["stylised", "cue conflict", "shape only", "texture only"]
CUE_CONFLICT: FolderKind = "cue conflict"
LoadFolder = Callable[[str], ProbeData]


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder of images per class.

    Attributes:
        path: The folder.
        kind: `cue conflict`: class folders are those of the shape, and files are named `SHAPE<n>-TEXTURE<m>`, as in the public stimuli of
            Geirhos et al., or `SHAPE_<n>-TEXTURE_<m>`, which is unambiguous for classes whose names end with a digit. Others only have an
            accuracy.

    Example:
        >>> ImageFolder(Path("cue-conflict"), "cue conflict")
    """

    path: Path
    kind: FolderKind = "stylised"


class _FolderSource(msgspec.Struct):
    """What a result has of a folder."""

    name: str
    kind: FolderKind
    first_row: Annotated[int, msgspec.Meta(ge=0)]
    n_available: Annotated[int, msgspec.Meta(ge=0)]
    textures: Any = None


@dataclass(frozen=True)
class Folders(PerturbationProbe):
    """Accuracy and shape bias on the images of folders, as they are. It has no conditions: the images are those of `load_folders`.

    Example:
        >>> chosen = load_folders([ImageFolder(Path("cue-conflict"), "cue conflict")], info, partial(load_probe_data, info=info, ...))
        >>> outcome = measure(Folders(), targets, chosen.data, rows=chosen.rows, source=chosen.source)
        >>> outcome.targets[0].details["folders"][0]["shape_bias"]
    """

    name: ClassVar[str] = "folders"
    paper: ClassVar[str | None] = "arXiv:1811.12231"

    @property
    def title(self) -> str:
        """What is measured."""
        return "Texture against shape"

    @property
    def threat_model(self) -> str:
        """What is done to an image."""
        return "No attacker: images of folders as they are, in which texture and shape are changed or in conflict."

    def conditions(self) -> Sequence[Condition]:
        """Return no conditions."""
        return []

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the image."""
        return image.pixels

    @classmethod
    def summary(
        cls, source: Mapping[str, Any], rows: NDArray[np.int64], labels: NDArray[np.int64], predicted: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Return the rates of each folder. Of cue conflicts, only images whose shape and texture are of different classes count."""
        if CLEAN not in predicted:
            return {}
        classes, folders = predicted[CLEAN], []
        try:
            entries = msgspec.convert(source.get("folders"), list[_FolderSource])
        except msgspec.ValidationError as error:
            raise InputError(f"the result is damaged, data.folders: {error}. Use an unchanged copy, or measure it again.") from error
        for entry in entries:
            first, count = entry.first_row, entry.n_available
            chosen = (rows >= first) & (rows < first + count)
            result = {"name": entry.name, "kind": entry.kind}
            if entry.kind == CUE_CONFLICT:
                textures = unpack(entry.textures, np.int64, (count,), "data.folders.textures")[rows[chosen] - first]
                differs = textures != labels[chosen]
                shape = (classes[chosen] == labels[chosen])[differs]
                texture = (classes[chosen] == textures)[differs]
                rates = {"shape": shape, "texture": texture, "neither": ~(shape | texture), "shape_bias": shape[shape | texture]}
            else:
                rates = {"accuracy": classes[chosen] == labels[chosen]}
            folders.append({**result, **{name: rate(values).json() for name, values in rates.items()}})
        return {"folders": folders}


def load_folders(folders: Sequence[ImageFolder], info: ModelInfo, load: LoadFolder) -> ProbeData:
    """Load the images of folders for a model. An image's row counts through all folders.

    Args:
        folders: The folders, at least one.
        info: The model.
        load: Loads one folder: `load_probe_data` with its other arguments. A limit is that of each folder.

    Raises:
        InputError: There is no folder, a folder does not have classes of the model, or a file of a cue conflict does not name its texture.
        OSError: A file cannot be read.
    """
    if not folders:
        raise InputError("no folders to measure: pass a folder of stylised images or of cue conflicts")
    if twice := [path for path, number in Counter(folder.path.resolve() for folder in folders).items() if number > 1]:
        raise InputError(f"the folder {twice[0]} was passed twice: pass each folder once")
    textures = {folder: _textures(folder.path, info) for folder in folders if folder.kind == CUE_CONFLICT}  # before any is decoded
    loaded: list[ProbeData] = []
    sources, rows, first = [], [], 0
    for folder in folders:
        chosen = load(str(folder.path))
        if loaded and chosen.data.images.shape[1:] != loaded[0].data.images.shape[1:]:
            shapes = f"{chosen.data.images.shape[1:]}, and those of {folders[0].path} {loaded[0].data.images.shape[1:]}"
            raise InputError(f"the images of {folder.path} have the shape {shapes}: a probe needs images of one size, so resize them")
        entry = {**chosen.source, "kind": folder.kind, "first_row": first}
        if folder in textures:
            entry["textures"] = pack(textures[folder])
        loaded.append(chosen)
        sources.append(entry)
        rows.append(chosen.rows + first)
        first += chosen.source["n_available"]
    images = np.concatenate([chosen.data.images for chosen in loaded])
    labels = np.concatenate([chosen.data.labels for chosen in loaded])
    source = {"name": ", ".join(str(folder.path) for folder in folders), "kind": "folders", "n_available": first, "folders": sources}
    notes = tuple(dict.fromkeys(note for chosen in loaded for note in chosen.notes))
    return ProbeData(LabelledImages(images, labels), np.concatenate(rows), source, notes)


def _textures(folder: Path, info: ModelInfo) -> NDArray[np.int64]:
    """Return the class of the texture of each image in a folder of cue conflicts."""
    files, labels = find_labelled_images(folder, info, ReadCounts())
    return np.array([_texture(file, info.class_names[label], info) for file, label in zip(files, labels.tolist(), strict=True)], np.int64)


def _texture(file: Path, shape: str, info: ModelInfo) -> int:
    """Return the class of the texture that the name of a file states."""
    stem, shape = normalised(file.stem), normalised(shape)
    rest = re.fullmatch(r"_?\d*-(.+)", stem.removeprefix(shape), re.ASCII) if stem.startswith(shape) else None
    texture = rest[1] if rest else ""
    digits = len(texture) - len(texture.rstrip("0123456789"))
    heads = [texture[: len(texture) - count] for count in range(1, digits + 1)]
    names = {head for head in heads for head in (head, head.removesuffix("_"))}
    found = [index for index, name in enumerate(info.class_names) if normalised(name) in names]
    if len(found) != 1:
        what = f"names several textures: {', '.join(info.class_names[index] for index in found)}" if found else "does not name its texture"
        raise InputError(
            f"{file} {what}; expected {shape}<n>-TEXTURE<m> or {shape}_<n>-TEXTURE_<m>, with TEXTURE one of the classes of model "
            f"{info.name!r}: {format_names(info.class_names)}. Rename the file."
        )
    return found[0]
