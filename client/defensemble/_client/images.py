"""What `predict` accepts as images: arrays, pictures that Pillow opened, image files, and their bytes. Nothing is guessed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from defensemble_images import EncodedImage, check_memory, image_problem, load_opened, range_problem

from .._exceptions import InputError
from .._image_files import ReadCounts, accepts_any_size, choose_preprocessing, decode_for_model, decode_memory_bytes, input_errors
from .model_info import ModelInfo, matches_model

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = "Image.Image | str | os.PathLike[str] | bytes"
    Images: TypeAlias = "NDArray[Any] | Picture | Sequence[Picture]"

LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "uint8")
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
_PICTURE = "a PIL image, a path, or the bytes of an image file"
_SMALL_BYTES = 64 << 20  # less is not compared with the free memory, whose size takes 0.2 ms to read


def images_from_input(
    images: Images, info: ModelInfo, *, layout: str = "NCHW", dtype: str = "float32", resize: str | None = None
) -> NDArray[np.float32]:
    """Return images as float32 (N, C, H, W) in [0, 1], N >= 1, of the model's size. An array that is already of this form is not copied.

    Args:
        images: An array, a picture (a PIL image, a path, or the bytes of an image file), or a list or tuple of pictures.
        info: The model.
        layout: Order of an array's axes, `NCHW` or `NHWC`.
        dtype: Type of an array, `float32` with values in [0, 1], or `uint8`, which is divided by 255.
        resize: How pictures are brought to the model's size, `crop` or `squash`; None for the rule that the model records.

    Raises:
        InputError: The images are none of these, do not match the model, or need more than half of the free memory.
        OSError: A file cannot be read.
    """
    _check_options(layout, dtype)
    if isinstance(images, np.ndarray):
        _check_no_resize(resize)
        return _images_from_array(images, info, layout, dtype, "images")
    if isinstance(images, (list, tuple)):
        if not images:
            raise InputError(f"images is an empty {type(images).__name__}; expected at least one picture ({_PICTURE})")
        names = [f"images[{number}]" for number in range(len(images))]
        encoded = [_encoded_picture(image, name, layout, dtype, is_in_list=True) for image, name in zip(images, names, strict=True)]
    else:
        encoded = [_encoded_picture(images, "images", layout, dtype)]
    return _images_from_pictures(encoded, info, resize)


def image_from_input(
    image: NDArray[Any] | Picture,
    info: ModelInfo,
    *,
    layout: str = "NCHW",
    dtype: str = "float32",
    resize: str | None = None,
    name: str = "image",
) -> NDArray[np.float32]:
    """Return one image as float32 (C, H, W) in [0, 1].

    Args:
        image: An array (C, H, W), or (H, W, C) with the layout `NHWC`; or a picture.
        info: The model.
        layout: See `images_from_input`.
        dtype: See `images_from_input`.
        resize: See `images_from_input`.
        name: Name of the image in errors, such as `images[7]`.

    Raises:
        InputError: See `images_from_input`.
        OSError: A file cannot be read.
    """
    _check_options(layout, dtype)
    if isinstance(image, np.ndarray):
        _check_no_resize(resize)
        if image.ndim != 3:
            raise InputError(
                f"{name} must be one image of shape ({', '.join(layout[1:])}), got an array of shape {image.shape}: an array of several "
                "images yields them when it is iterated, as in predict_iter(array), and predict(array) takes it as a whole"
            )
        images = _images_from_array(image[np.newaxis], info, layout, dtype, name, is_single=True)
    else:
        images = _images_from_pictures([_encoded_picture(image, name, layout, dtype)], info, resize)
    only: NDArray[np.float32] = images[0]
    return only


def _check_options(layout: object, dtype: object) -> None:
    for name, value, accepted in (("layout", layout, LAYOUTS), ("dtype", dtype, DTYPES)):
        if not isinstance(value, str) or value not in accepted:
            raise InputError(f'{name} must be "{accepted[0]}" or "{accepted[1]}", got {value!r:.100}')


def _check_no_resize(resize: object) -> None:
    if resize is not None:
        raise InputError(
            f"resize={resize!r:.100} is for pictures ({_PICTURE}), got an array, which must have the model's size: omit resize"
        )


def _images_from_array(
    images: NDArray[Any], info: ModelInfo, layout: str, dtype: str, name: str, is_single: bool = False
) -> NDArray[np.float32]:
    if type(images) is not np.ndarray and isinstance(images, np.ma.MaskedArray):  # numpy.ma takes 30 ms to import
        raise InputError(image_problem(images, name))
    if images.dtype.hasobject:
        raise InputError(
            f"{name} must be an array of numbers, got an object array of shape {images.shape}: pass numpy.stack(list({name})) if it holds "
            f"arrays, or list({name}) if it holds pictures"
        )
    if (images.dtype == _UINT8) != (dtype == "uint8"):
        fix = 'pass dtype="uint8", which divides by 255'
        if dtype == "uint8":
            fix = f'omit dtype="uint8" if the values are in [0, 1], or pass {name}.astype(numpy.uint8) if they are 0 to 255'
        raise InputError(f"{name} must be {dtype}, got {images.dtype}: {fix}")
    _check_shape(images.shape, info, layout, name, is_single)
    plain = np.asarray(images)  # without the subclass, if it is one
    channels_first = plain if layout == "NCHW" else plain.transpose(0, 3, 1, 2)
    if dtype == "uint8":
        if 4 * plain.size > _SMALL_BYTES:
            with input_errors():
                check_memory(f"{name} as float32", 4 * plain.size, option=None)
        scaled: NDArray[np.float32] = np.divide(channels_first, np.float32(255), order="C", dtype=np.float32)
        return scaled
    problem = range_problem(channels_first, name) if plain.dtype == _FLOAT32 else image_problem(channels_first, name)
    if problem is not None:
        raise InputError(problem)
    return channels_first


def _check_shape(shape: tuple[int, ...], info: ModelInfo, layout: str, name: str, is_single: bool) -> None:
    if matches_model(shape, info, layout):
        if shape[0] == 0:
            raise InputError(f"{name} must hold at least one image, got an empty array of shape {shape}")
        return
    sizes = dict(zip("CHW", info.image_shape, strict=True))
    axes = [str(sizes[axis]) if sizes.get(axis, 0) > 0 else axis for axis in layout[is_single:]]
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    fix = ""
    if matches_model(shape, info, other):
        fix = f': pass layout="{other}"'
    elif matches_model((1, *shape), info, layout):
        fix = f": pass {name}[numpy.newaxis] for one image"
    elif matches_model((1, *shape), info, other):
        fix = f': pass {name}[numpy.newaxis] and layout="{other}" for one image'
    raise InputError(
        f'{name} must have the shape ({", ".join(axes)}) for model {info.name!r} with layout="{layout}", got {shape[is_single:]}{fix}'
    )


def _encoded_picture(picture: object, name: str, layout: str, dtype: str, is_in_list: bool = False) -> EncodedImage:
    encoded = _read_later(picture, name, is_in_list)
    for option, value, default in (("layout", layout, LAYOUTS[0]), ("dtype", dtype, DTYPES[0])):
        if value != default:
            raise InputError(f'{option}="{value}" is for arrays, got a picture as {name}, which states its own: omit {option}')
    return encoded


def _read_later(picture: object, name: str, is_in_list: bool) -> EncodedImage:
    if isinstance(picture, bytes):
        return EncodedImage(name, picture)
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise InputError(f"{name} must be {_PICTURE}, got the URL {picture!r:.100}: download it, and pass the bytes")
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        if path.is_dir():
            raise InputError(
                f'{name} must be {_PICTURE}, got the folder {path}: pass its files, such as sorted(Path({str(path)!r}).rglob("*.png")), to '
                "predict_iter"
            )
        return EncodedImage(str(path), path)
    pillow = sys.modules.get("PIL.Image")  # there is no PIL image where Pillow was not imported
    if pillow is not None and isinstance(picture, pillow.Image):
        return EncodedImage(name, picture)
    expected = f"a picture ({_PICTURE})" if is_in_list else f"a numpy array, a picture ({_PICTURE}), or a list of pictures in predict"
    raise InputError(f"{name} must be {expected}; got {_name_of_type(picture)}{_fix(picture, name)}")


def _name_of_type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _fix(value: object, name: str) -> str:
    if isinstance(value, np.ndarray):  # in a list, since an array is no picture
        return f" of shape {value.shape} in a list: pass numpy.stack(images), one array of shape (N, C, H, W)"
    if type(value).__module__.partition(".")[0] == "torch":
        return f": pass {name}.detach().cpu().numpy()"
    if isinstance(value, (bytearray, memoryview)):
        return f": pass bytes({name})"
    if hasattr(value, "read"):
        return f": pass {name}.read(), the bytes of the file"
    if hasattr(value, "__array__"):
        return f": pass numpy.asarray({name}, dtype=numpy.float32)"
    if isinstance(value, (int, float, list, tuple)):
        return ": pass numpy.array(images, dtype=numpy.float32), of shape (N, C, H, W), if these are the values of the images"
    if hasattr(value, "__iter__"):
        return f": pass list({name}), or iterate with predict_iter"
    return ""


def _images_from_pictures(pictures: Sequence[EncodedImage], info: ModelInfo, resize: str | None) -> NDArray[np.float32]:
    if resize is not None and accepts_any_size(info):
        raise InputError(f"resize={resize!r:.100} has no size to bring the pictures to: model {info.name!r} takes any size; omit resize")
    what = pictures[0].where if len(pictures) == 1 else f"decoding {len(pictures)} pictures, the first of which is {pictures[0].where},"
    with input_errors():
        preprocessing, _ = choose_preprocessing(info, resize)
        needed = decode_memory_bytes(pictures, info)
        if needed > _SMALL_BYTES:
            check_memory(what, needed, option=None)
    counts = ReadCounts()
    images: NDArray[np.float32] | None = None
    for number, image in decode_for_model(map(load_opened, pictures), info, preprocessing, True, counts):
        if images is None:
            if len(pictures) * image.nbytes > _SMALL_BYTES:
                with input_errors():
                    check_memory(what, len(pictures) * image.nbytes, option=None)
            images = np.empty((len(pictures), *image.shape), np.float32)
        elif image.shape != images.shape[1:]:
            raise InputError(
                f"{pictures[number].where} has the shape {image.shape}, others have {images.shape[1:]}; expected one size per call: "
                f"model {info.name!r} takes any size, so that pictures keep theirs. Resize them, or send those of one size at a time."
            )
        images[number] = image
    if counts.damaged or images is None:
        first = counts.damaged[0]
        others = f", as {len(counts.damaged)} of {len(pictures)} pictures" if len(counts.damaged) > 1 else ""
        raise InputError(f"{first.where} cannot be decoded: {first.reason}{others}. Repair or omit it.") from first
    return images
