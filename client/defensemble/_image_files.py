"""Images from files and folders, as the arrays that a model takes: `defensemble_images`, with the errors of this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble_images import (
    DamagedImageError,
    EncodedImage,
    ImagesError,
    Preprocessing,
    check_memory,
    decode_image,
    decode_images,
    labelled_files,
    match_classes,
    memory_to_decode,
    npy_array,
    reading_notes,
)
from defensemble_images.class_names import format_names
from defensemble_images.folders import SkippedFiles

from ._client.model_info import ModelInfo
from ._exceptions import InputError

_SPLITS = ("test", "validation", "valid", "val", "train")


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read."""

    resize: str | None = None  # `crop` or `squash`, the rule to follow; None: the one that the model records
    skip_damaged: bool = False  # leave out images that cannot be decoded, and count them
    max_memory: int | None = None  # bytes that the images may take; None: half of the memory that is free


@dataclass
class ReadCounts:
    """What was left out, and what was read in part."""

    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    damaged: list[DamagedImageError] = field(default_factory=list)
    animations: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """As JSON."""
        skipped = {"hidden": self.skipped.hidden, "not_images": self.skipped.others, "damaged": len(self.damaged)}
        return {"skipped": skipped, "animations": len(self.animations)}

    def lines(self) -> tuple[str, ...]:
        """As text, a line for each kind; empty where nothing was left out."""
        return reading_notes(
            self.skipped,
            damaged=len(self.damaged),
            first_damage=self.damaged[0].where if self.damaged else None,
            animations=len(self.animations),
            first_animation=self.animations[0] if self.animations else None,
        )


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise the errors of the image reader as `InputError`."""
    try:
        yield
    except ImagesError as error:
        raise InputError(str(error)) from error


def choose_preprocessing(info: ModelInfo, resize: str | None) -> tuple[Preprocessing | None, str | None]:
    """Choose how images are brought to the size of a model; returns the rule, and a note for the user where there is one.

    `resize` is the user's choice, which comes first; None: the rule that the model records.

    Raises:
        InputError: the rule of the model is not one that this version knows.
    """
    if resize is None:
        return recorded_preprocessing(info), None
    chosen = Preprocessing(resize)
    if _is_free(info):
        return chosen, f"model {info.name!r} takes images of any size, so that --resize {resize} changes nothing"
    try:
        agrees = recorded_preprocessing(info) in (None, chosen)
    except InputError:  # the user's rule comes before one that this version does not know
        agrees = False
    return chosen, None if agrees else f"--resize {resize} is followed, but model {info.name!r} records another rule: {info.preprocessing}"


def recorded_preprocessing(info: ModelInfo) -> Preprocessing | None:
    """Return the rule that the model's configuration states; None where it states none."""
    with input_errors():
        return None if info.preprocessing is None else Preprocessing.from_json(info.preprocessing, f"model {info.name!r}")


def find_labelled_images(folder: Path, info: ModelInfo, counts: ReadCounts) -> tuple[list[Path], NDArray[np.int64]]:
    """List the images of class folders, with the indices of their classes in a model, which are matched by name.

    Raises:
        InputError: there are none, the folder holds splits, or a class has no counterpart in the model.
        OSError: a folder cannot be read.
    """
    splits = [name for name in _SPLITS if name not in info.class_names and (folder / name).is_dir()]
    if splits:
        raise InputError(
            f"{folder} holds the splits {', '.join(splits)}, not the classes of model {info.name!r}: pass the folder of one split, "
            f"{folder / splits[0]}"
        )
    with input_errors():
        found = labelled_files(folder)
        if not found.files:
            raise InputError(
                f"{folder} holds no labelled images, only {str(found.skipped) or 'nothing'}; expected {folder}/CLASS/IMAGE with CLASS one "
                f"of {format_names(info.class_names)}"
            )
        classes = match_classes(found.class_names, info.class_names, str(folder), info.name)
    counts.skipped += found.skipped
    return [found.root / file.name for file in found.files], classes[found.indices]


def decode_memory_bytes(files: Sequence[Path], info: ModelInfo) -> int:
    """Return how many bytes it takes to decode images one after the other, without keeping them; reads their headers."""
    channels, height, width = _checked_channels(info)
    return memory_to_decode([EncodedImage(str(path), path) for path in files], channels, None if _is_free(info) else (height, width))


def decode_for_model(
    files: Sequence[Path], info: ModelInfo, preprocessing: Preprocessing | None, skip_damaged: bool, counts: ReadCounts
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decode image files for a model, few at a time: yields the index of each file and its image, float32 (C, H, W) in [0, 1].

    Where the model takes any size, images keep theirs; else `preprocessing` brings them to its size, which they must have where it is None.
    What is left out is counted in `counts`; with `skip_damaged`, images that cannot be decoded are.

    Raises:
        InputError: an image is damaged, or has another size and there is no rule.
        OSError: a file cannot be read.
    """
    channels, height, width = _checked_channels(info)
    images = [EncodedImage(str(path), path) for path in files]
    with input_errors():
        if _is_free(info):
            for index, image in enumerate(images):
                try:
                    one = decode_image(image, channels, None)
                except DamagedImageError as error:
                    if not skip_damaged:
                        raise
                    counts.damaged.append(error)
                    continue
                counts.animations += [image.where] * one.animated
                yield index, one.floats
            return
        start = 0
        for some in decode_images(images, channels, (height, width), preprocessing, skip_damaged=skip_damaged):
            counts.damaged += some.damage
            counts.animations += some.animations
            yield from zip((start + np.flatnonzero(some.kept)).tolist(), some.floats, strict=True)
            start += len(some.kept)


def read_npy_images(path: Path) -> NDArray[np.float32]:
    """Read images (N, C, H, W) of any shape from a .npy file, as float32 in [0, 1].

    Raises:
        InputError: it holds something else, or would take more than half of the memory that is free.
        OSError: the file cannot be read.
    """
    with input_errors():
        stored = npy_array(path)
        stored.check_images()
        check_memory(str(path), 2 * stored.float_bytes, option=None)
        return stored.images()


def _checked_channels(info: ModelInfo) -> tuple[int, int, int]:
    if info.image_shape[0] not in (1, 3):
        raise InputError(f"model {info.name!r} takes {info.image_shape[0]} channels, image files have 1 or 3: pass a .npy or .npz file")
    return info.image_shape


def _is_free(info: ModelInfo) -> bool:
    return min(info.image_shape[1:]) <= 0
