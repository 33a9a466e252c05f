"""Images from files, as the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from struct import error as StructError  # noqa: N812 - damaged EXIF data raises it
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from defensemble._exceptions import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}


def images_from_file(path: Path, image_shape: tuple[int, int, int], *, resize: bool = False) -> NDArray[np.float32]:
    """The images of a file, float32 (n, C, H, W) in [0, 1]: one of a picture, any number of a `.npy` file.

    Pictures become grey or RGB as C is 1 or 3, and with `resize` the size that the model takes (bilinear). A `.npy` file holds
    (N, C, H, W) or (C, H, W), floats in [0, 1] or uint8, which is divided by 255.

    Raises:
        InputError: It is no such file, or its shape is not `image_shape`.
        OSError: It cannot be read.
    """
    check_not_endless(path)
    if path.suffix.lower() == ".npy":
        return _from_npy(path, image_shape)
    if path.suffix.lower() in SUFFIXES:
        return _from_picture(path, image_shape, resize)[np.newaxis]
    raise InputError(f"{path} is neither a picture ({', '.join(SUFFIXES)}) nor a .npy file")


def check_not_endless(path: Path) -> None:
    """Refuse what may block for ever when it is opened, or never end.

    Raises:
        InputError: It is a FIFO, a socket or a device.
        OSError: It cannot be looked at.
    """
    from defensemble_repository.filesystem.regular_files import irregular

    kind = irregular(path)
    if kind is not None:
        raise InputError(f"{path} is {kind}, expected a regular file: save what it gives to a file first")


def labelled_files(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], NDArray[np.int64]]:
    """The pictures of a folder that holds one folder for each class, sorted, and the indices of their classes.

    Raises:
        InputError: There are none, or a folder is named after no class.
        OSError: It cannot be read.
    """
    expected = f"expected {folder}/CLASS/IMAGE with CLASS one of {', '.join(class_names[:20])}{', ...' if len(class_names) > 20 else ''}"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: {expected}")
    files: list[Path] = []
    labels: list[int] = []
    for class_folder in sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")):
        if class_folder.name not in class_names:
            raise InputError(f"{class_folder} is named after no class of the model: {expected}")
        pictures = sorted(one for one in class_folder.iterdir() if one.suffix.lower() in SUFFIXES)
        files += pictures
        labels += [class_names.index(class_folder.name)] * len(pictures)
    if not files:
        raise InputError(f"{folder} holds no labelled pictures: {expected}")
    return files, np.array(labels, np.int64)


def npy_images(path: Path) -> NDArray[np.float32]:
    """Read images (N, C, H, W) of any shape from a .npy file, as float32.

    Raises:
        InputError: It is no file of numbers.
        OSError: The file cannot be read.
    """
    check_not_endless(path)
    return floats_from_array(_array_from_npy(path), str(path))


def _from_npy(path: Path, image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    images = _array_from_npy(path)
    if images.ndim == 3:
        images = images[np.newaxis]
    if images.ndim != 4 or len(images) == 0 or images.shape[1:] != image_shape:
        wanted = ", ".join(map(str, image_shape))
        raise InputError(f"{path} holds an array of shape {images.shape}, expected (N, {wanted}) or ({wanted})")
    return floats_from_array(images, str(path))


def _array_from_npy(path: Path) -> NDArray[Any]:
    try:
        images = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, TokenError, MemoryError, BadZipFile) as error:
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(images, np.ndarray):
        raise InputError(f"{path} holds several arrays, expected one: save it by numpy.save")
    return images


def floats_from_array(images: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Stored images as float32: uint8 divided by 255, floats as they are; `where` is named in the error.

    Raises:
        InputError: They are of another type.
    """
    if images.dtype == np.uint8:
        scaled: NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
        return scaled
    if images.dtype.kind != "f":
        raise InputError(f"{where} holds {images.dtype}, expected floats in [0, 1], or uint8")
    return images.astype(np.float32)


def _from_picture(path: Path, image_shape: tuple[int, int, int], resize: bool) -> NDArray[np.float32]:
    channels, height, width = image_shape
    if channels not in _MODES:
        raise InputError(f"the model takes {channels} channels, which no picture has ({path}): pass a .npy file")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise InputError(f"{path} has more than 8 bits a channel (mode {opened.mode}): convert it, or pass a .npy file")
            picture = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, StructError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a picture that can be read: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the file system's own
        raise InputError(f"{path} is not a whole picture: {error}") from error
    wanted = (width if width > 0 else picture.width, height if height > 0 else picture.height)
    if picture.size != wanted:
        if not resize:
            raise InputError(
                f"{path} is {picture.width} x {picture.height} pixels, the model takes {wanted[0]} x {wanted[1]}: pass --resize"
            )
        picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(values.reshape(wanted[1], wanted[0], channels).transpose(2, 0, 1))
