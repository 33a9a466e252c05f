"""Read images from files and folders for a model: `defensemble_images`, with the errors of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """How image files are read.

    Attributes:
        resize: `crop` or `squash`; None for the rule that the model records.
        skip_damaged: Skip and count images that cannot be decoded.
        max_memory: Memory limit of the images in bytes; None for half of the free memory.
    """

    resize: str | None = None
    skip_damaged: bool = False
    max_memory: int | None = None


@dataclass
class ReadCounts:
    """Skipped files, damaged images, and animations, of which only the first frame is read."""

    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    damaged: list[DamagedImageError] = field(default_factory=list)
    animations: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        skipped = {"hidden": self.skipped.hidden, "not_images": self.skipped.others, "damaged": len(self.damaged)}
        return {"skipped": skipped, "animations": len(self.animations)}

    def lines(self) -> tuple[str, ...]:
        """Return the counts as text, one line for each kind; empty if nothing was skipped."""
        return reading_notes(
            self.skipped,
            damaged=len(self.damaged),
            first_damage=self.damaged[0].where if self.damaged else None,
            animations=len(self.animations),
            first_animation=self.animations[0] if self.animations else None,
        )


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise errors of the image reader as `InputError`."""
    try:
        yield
    except ImagesError as error:
        raise InputError(str(error)) from error


def accepts_any_size(info: ModelInfo) -> bool:
    """Return whether a model takes images of any height or width."""
    return min(info.image_shape[1:]) <= 0


def choose_preprocessing(info: ModelInfo, resize: str | None) -> tuple[Preprocessing | None, str | None]:
    """Choose how images are resized for a model. Returns the rule, and a note for the user or None.

    Args:
        info: The model.
        resize: The user's choice, which overrides the model's; None for the rule that the model records.

    Raises:
        InputError: This version does not know the model's rule.
    """
    if resize is None:
        return recorded_preprocessing(info), None
    chosen = Preprocessing(resize)
    if accepts_any_size(info):
        return chosen, f"model {info.name!r} takes images of any size: --resize {resize} has no effect"
    try:
        is_same_rule = recorded_preprocessing(info) in (None, chosen)
    except InputError:  # the user's rule overrides one that this version does not know
        is_same_rule = False
    return chosen, None if is_same_rule else f"--resize {resize} overrides the rule that model {info.name!r} records: {info.preprocessing}"


def recorded_preprocessing(info: ModelInfo) -> Preprocessing | None:
    """Return the rule in the model's configuration, or None if it has none."""
    with input_errors():
        return None if info.preprocessing is None else Preprocessing.from_json(info.preprocessing, f"model {info.name!r}")


def find_labelled_images(folder: Path, info: ModelInfo, counts: ReadCounts) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the images of class folders and the indices of their classes in a model. Classes are matched by name.

    Args:
        folder: Folder with one subfolder per class.
        info: The model.
        counts: Skipped files are added to it.

    Raises:
        InputError: There are no images, the folder has splits, or a class has no counterpart in the model.
        OSError: A folder cannot be read.
    """
    splits = [name for name in _SPLITS if name not in info.class_names and (folder / name).is_dir()]
    if splits:
        raise InputError(
            f"{folder} contains the split{'s' if len(splits) > 1 else ''} {', '.join(splits)} and not the classes of model {info.name!r}: "
            f"pass the folder of one split, such as {folder / splits[0]}"
        )
    with input_errors():
        labelled = labelled_files(folder)
        if not labelled.files:
            raise InputError(
                f"{folder} has no labelled images; it has {str(labelled.skipped) or 'nothing'}; expected {folder}/CLASS/IMAGE, with CLASS "
                f"one of {format_names(info.class_names)}"
            )
        classes = match_classes(labelled.class_names, info.class_names, str(folder), info.name)
    counts.skipped += labelled.skipped
    return [labelled.root / file.name for file in labelled.files], classes[labelled.indices]


def decode_memory_bytes(files: Sequence[Path | EncodedImage], info: ModelInfo) -> int:
    """Return the bytes needed to decode images one after the other without keeping them. Reads only their headers."""
    channels, height, width = _input_shape(info)
    return memory_to_decode(list(map(_encoded_image, files)), channels, None if accepts_any_size(info) else (height, width))


def decode_for_model(
    files: Iterable[Path | EncodedImage], info: ModelInfo, preprocessing: Preprocessing | None, skip_damaged: bool, counts: ReadCounts
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decode images for a model, a few at a time. Yields the index of each image and the image, float32 (C, H, W) in [0, 1].

    Args:
        files: Image files, or other images before they are decoded.
        info: The model. If it accepts any size, images keep theirs.
        preprocessing: How images are resized; None if they must have the model's size.
        skip_damaged: Skip images that cannot be decoded.
        counts: Skipped images and animations are added to it.

    Raises:
        InputError: An image is damaged, after the images before it; or it has another size and there is no rule.
        OSError: A file cannot be read.
    """
    channels, height, width = _input_shape(info)
    images = map(_encoded_image, files)
    with input_errors():
        if accepts_any_size(info):
            for index, image in enumerate(images):
                try:
                    decoded = decode_image(image, channels, None)
                except DamagedImageError as error:
                    if not skip_damaged:
                        raise
                    counts.damaged.append(error)
                    continue
                counts.animations += [image.where] * decoded.animated
                yield index, decoded.floats
            return
        start = 0
        for batch in decode_images(images, channels, (height, width), preprocessing, skip_damaged=True):
            stops = bool(batch.damage) and not skip_damaged
            kept = np.flatnonzero(batch.kept)[: int(np.argmin(batch.kept)) if stops else None]
            counts.animations += batch.animations
            yield from zip((start + kept).tolist(), batch.floats[: len(kept)], strict=True)
            if stops:  # now, so that the images before it are known
                raise batch.damage[0]
            counts.damaged += batch.damage
            start += len(batch.kept)


def read_npy_images(path: Path) -> NDArray[np.float32]:
    """Read images (N, C, H, W) of any shape from a .npy file, as float32 in [0, 1].

    Raises:
        InputError: The file has other contents, or needs more than half of the free memory.
        OSError: The file cannot be read.
    """
    with input_errors():
        stored = npy_array(path)
        stored.check_images()
        check_memory(str(path), 2 * stored.float_bytes, option=None)
        return stored.images()


def _input_shape(info: ModelInfo) -> tuple[int, int, int]:
    if info.image_shape[0] not in (1, 3):
        raise InputError(
            f"model {info.name!r} takes {info.image_shape[0]} channels, but image files have 1 or 3: pass an array (a .npy or .npz file)"
        )
    return info.image_shape


def _encoded_image(file: Path | EncodedImage) -> EncodedImage:
    return file if isinstance(file, EncodedImage) else EncodedImage(str(file), file)
