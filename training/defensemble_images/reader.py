"""Decode one image of any format to pixels, by the rules that training, export, `predict` and the probes share.

- EXIF orientation is applied, also if it is stored in XMP.
- Transparent pixels are composited over black: alpha channels, transparent palette entries, and the colour key of a PNG (which Pillow
  finds at 8 bits, and in grey at 16).
- 8-bit channels are divided by 255, 16-bit grey by 65,535. Pillow keeps the upper 8 bits of 16-bit colour.
- Pillow converts CMYK, YCbCr and palettes to RGB, and colour to grey (ITU-R 601-2 weights).
- Modes I and F (32 bits per pixel) have no known range and are rejected.
- Only the first frame of an animation is read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedImageError, ImagesError, ImageSizeError
from .preprocessing import Preprocessing
from .regular_files import irregular_file_kind

if TYPE_CHECKING:
    from PIL import Image

RULES = "2"
"""Version of these rules and of those in `preprocessing`. Cached images are decoded again when it changes."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# Not every format of Pillow: some start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000
"""Largest accepted image. A file of a few kilobytes can claim more pixels, and decoding it would need gigabytes."""
MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "La", "I")

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImage:
    """An image before it is decoded.

    Example:
        >>> decode_image(EncodedImage("cat.png", Path("cat.png")), 3, None).pixels.shape
    """

    where: str  # its name in error messages: a path, or a file and a row
    data: bytes | Path | Image.Image | None  # encoded bytes, an image file, or what Pillow opened; None if the bytes are missing


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The pixels of an image."""

    pixels: Pixels  # (C, H, W): uint8 in 0 to 255, or float32 in [0, 1] if the image has 16 bits per pixel
    format: str  # Pillow's name, such as `JPEG`
    animated: bool  # whether the file has more frames, which were not read

    @property
    def floats(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1]."""
        return floats_from_pixels(self.pixels)


def floats_from_pixels(pixels: Pixels) -> NDArray[np.float32]:
    """Convert pixels of any shape to float32 in [0, 1]: uint8 divided by 255, float32 unchanged."""
    if pixels.dtype == np.uint8:
        scaled: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
        return scaled
    return pixels.astype(np.float32, copy=False)


def decode_image(
    image: EncodedImage,
    channels: int,
    size: tuple[int, int] | None,
    preprocessing: Preprocessing | None = None,
    on_pixels: Callable[[int], None] | None = None,
) -> DecodedImage:
    """Decode an image.

    Args:
        image: A file, encoded bytes, or an image that Pillow opened, which stays as it is.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) of the result. None keeps the image's size.
        preprocessing: How to resize the image to `size`. None requires that it has this size.
        on_pixels: Called before decoding with the number of pixels that the header states. It may raise an `ImagesError`.

    Raises:
        DamagedImageError: The image cannot be decoded, its mode has no known range, or it has more than `MAX_PIXELS` pixels.
        ImageSizeError: The image has another size and `preprocessing` is None.
        OSError: The file cannot be read. The error names the file.

    Example:
        >>> image = decode_image(EncodedImage("cat.png", Path("cat.png")), 3, (32, 32), Preprocessing("crop"))
        >>> image.floats.shape
        (3, 32, 32)
    """
    from PIL import Image, ImageOps

    with _open_image(image) as opened:
        animated = opened.format != "MPO" and bool(getattr(opened, "is_animated", False))
        if on_pixels is not None:
            on_pixels(opened.width * opened.height)
        opened.load()
        image_format = opened.format or "unknown"
        if opened is image.data:
            opened = opened.copy()
        try:
            ImageOps.exif_transpose(opened, in_place=True)
        except MemoryError:
            raise
        except Exception:  # the pixels are intact; like other programs, ignore unreadable EXIF data
            pass
        flat = _flatten(opened, channels, image_format)
        if size is not None and flat.size != size[::-1]:
            if preprocessing is None:
                raise ImageSizeError(
                    f"{image.where} is {flat.width} x {flat.height} pixels (width x height); expected {size[1]} x {size[0]}, the model's "
                    'input size, because the model does not state how its images are resized. Pass resize="crop" (scale, then crop the '
                    'centre) or resize="squash" (scale height and width separately), whichever the network was trained with; on the '
                    "command line, --resize crop or --resize squash."
                )
            flat = preprocessing.fit(flat, size[1], size[0])
        if flat.mode == "RGBa":
            flat = Image.merge("RGB", flat.split()[:3]).convert(MODES[channels])
        values = np.asarray(flat)
    if values.dtype == np.float32:
        values = np.clip(values, 0, 1)  # bicubic resampling overshoots; Pillow clips 8-bit values itself
    pixels = values[np.newaxis] if values.ndim == 2 else values.transpose(2, 0, 1)
    return DecodedImage(np.ascontiguousarray(np.repeat(pixels, channels // len(pixels), axis=0)), image_format, animated)


def read_header(image: EncodedImage) -> tuple[tuple[int, int], bool]:
    """Return (width, height) of an image, before orientation, and whether it is grey. Raises the same errors as `decode_image`."""
    with _open_image(image) as opened:
        return opened.size, opened.mode in _GREY_MODES or opened.mode.startswith("I;16")


def load_opened(image: EncodedImage) -> EncodedImage:
    """Load the pixels of an image that Pillow opened, and return the argument.

    Pillow opens images lazily, and two threads cannot load one at the same time: call this before several may decode the same image.
    Errors are raised when it is decoded.
    """
    if not isinstance(image.data, (bytes, Path, type(None))):
        with suppress(DamagedImageError), _open_image(image) as opened:
            opened.load()
    return image


@contextmanager
def _open_image(image: EncodedImage) -> Iterator[Image.Image]:
    """Open an image after a check of its size, and raise every error of Pillow as a `DamagedImageError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with ExitStack() as stack:
            if isinstance(image.data, Image.Image):
                opened = image.data
            else:
                stream = stack.enter_context(_stream(image.where, image.data))
                opened = stack.enter_context(Image.open(stream, formats=FORMATS))
            if opened.width * opened.height > MAX_PIXELS:
                raise DamagedImageError(
                    image.where, f"it has {opened.width} x {opened.height} pixels; expected at most {MAX_PIXELS:,} in total"
                )
            yield opened
    except (ImagesError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # Pillow's message only names an object in memory
        raise DamagedImageError(image.where, f"its format is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's readers raise errors of many classes for damaged files
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                error.filename = image.where
            raise
        raise DamagedImageError(image.where, str(error).partition("\n")[0] or type(error).__name__) from error


def _stream(where: str, data: bytes | Path | None) -> IO[bytes]:
    if data is None:
        raise DamagedImageError(where, "it has no bytes")
    if isinstance(data, bytes):
        return io.BytesIO(data)
    kind = irregular_file_kind(data.stat().st_mode)
    if kind is not None:
        raise DamagedImageError(where, f"it is {kind}, not a regular file")
    return data.open("rb")


def _flatten(image: Image.Image, channels: int, image_format: str) -> Image.Image:
    """Convert an image to mode L or RGB, to mode RGBa if it has transparency, or to mode F in [0, 1] if it is 16-bit grey.

    RGBa colours are premultiplied by alpha, which equals compositing over black.
    """
    from PIL import Image

    # Pillow scales a PGM file of more than 8 bits to 16 bits in mode I, whatever its largest value.
    if image.mode.startswith("I;16") or (image.mode == "I" and image_format == "PPM"):
        values = np.asarray(image).astype(np.float32)
        if isinstance(key := image.info.get("transparency"), int):
            values[values == key] = 0
        return Image.fromarray(values / np.float32(65535))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} (32 bits per pixel) has no known range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        return image if image.mode == "RGBa" else image.convert("RGBA").convert("RGBa")
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])
