"""One image, whatever its format, as pixels: the rule that training, export, `predict` and the probes share.

- EXIF orientation is followed, also where it is kept in XMP.
- Transparent pixels are shown over black: alpha channels, transparent palette entries, and the colour key of a PNG (which Pillow
  finds at 8 bits, and in grey at 16).
- A channel of 8 bits is divided by 255, a grey one of 16 bits by 65,535. Pillow keeps the upper 8 bits of 16-bit colour.
- CMYK, YCbCr and palettes become RGB as Pillow converts them; colours become grey by its weights (ITU-R 601-2).
- Modes I and F (32 bits a pixel) have no known range and are refused.
- Of an animation, the first frame is read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedImageError, ImagesError, ImageSizeError
from .preprocessing import Preprocessing
from .regular_files import irregular

if TYPE_CHECKING:
    from PIL import Image

RULES = "2"
"""Version of these rules and of those in `preprocessing`; a change makes cached images be decoded again."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# Not all that Pillow knows: some of its formats start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
LARGEST_IMAGE = 64_000_000
"""Pixels; a file of a few kilobytes can claim more, and would take gigabytes when it is decoded."""
MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "La", "I")

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImage:
    """One image before it is decoded."""

    where: str  # how an error names it: a path, or a file with a row
    data: bytes | Path | None  # the encoded bytes, or the file that holds nothing else; None where there are none


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The pixels of an image."""

    pixels: Pixels  # (C, H, W): uint8 in 0 to 255, or float32 in [0, 1] where the image has 16 bits a pixel
    format: str  # Pillow's name, such as `JPEG`
    animated: bool  # whether the file holds more frames, which were not read

    @property
    def floats(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1]."""
        return floats_from_pixels(self.pixels)


def floats_from_pixels(pixels: Pixels) -> NDArray[np.float32]:
    """Return pixels of any shape as float32 in [0, 1]: uint8 divided by 255, float32 as it is."""
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
        image: a file or encoded bytes.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) that the network takes; None: as the image has it.
        preprocessing: how to bring the image to `size`; None: it must have that size.
        on_pixels: called with the number of pixels that the header states, before they are decoded; it may raise an `ImagesError`.

    Raises:
        DamagedImageError: it cannot be decoded, has a mode without a known range, or more than `LARGEST_IMAGE` pixels.
        ImageSizeError: it has another size, and there is no `preprocessing`.
        OSError: the file cannot be read; names the file.
    """
    from PIL import Image, ImageOps

    with _opened(image) as opened:
        animated = opened.format != "MPO" and bool(getattr(opened, "is_animated", False))
        if on_pixels is not None:
            on_pixels(opened.width * opened.height)
        opened.load()
        try:
            ImageOps.exif_transpose(opened, in_place=True)
        except MemoryError:
            raise
        except Exception:  # unreadable EXIF data names no orientation, as for other programs; the pixels are intact
            pass
        kind = opened.format or "unknown"
        flat = _flattened(opened, channels, kind)
        if size is not None and flat.size != size[::-1]:
            if preprocessing is None:
                raise ImageSizeError(
                    f"{image.where} is {flat.width} x {flat.height} pixels (width x height), the model takes {size[1]} x {size[0]}, and no "
                    "rule is known by which its images are resized: pass --resize crop (scale, then cut out the centre) or --resize squash "
                    "(scale height and width separately), whichever the network was trained with"
                )
            flat = preprocessing.fit(flat, size[1], size[0])
        if flat.mode == "RGBa":
            flat = Image.merge("RGB", flat.split()[:3]).convert(MODES[channels])
        values = np.asarray(flat)
    if values.dtype == np.float32:
        values = np.clip(values, 0, 1)  # bicubic overshoots; of 8 bits, Pillow clips by itself
    pixels = values[np.newaxis] if values.ndim == 2 else values.transpose(2, 0, 1)
    return DecodedImage(np.ascontiguousarray(np.repeat(pixels, channels // len(pixels), axis=0)), kind, animated)


def read_header(image: EncodedImage) -> tuple[tuple[int, int], bool]:
    """Read (width, height) of an image, before its orientation is followed, and whether it is grey; raises as `decode_image`."""
    with _opened(image) as opened:
        return opened.size, opened.mode in _GREY_MODES or opened.mode.startswith("I;16")


@contextmanager
def _opened(image: EncodedImage) -> Iterator[Image.Image]:
    """Open an image whose size is acceptable; whatever Pillow raises while it is decoded becomes a `DamagedImageError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _stream(image) as stream, Image.open(stream, formats=FORMATS) as opened:
            if opened.width * opened.height > LARGEST_IMAGE:
                raise DamagedImageError(
                    image.where,
                    f"it has {opened.width} x {opened.height} pixels, expected at most {LARGEST_IMAGE:,} in all",
                )
            yield opened
    except (ImagesError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # Pillow's text names an object in memory
        raise DamagedImageError(image.where, f"it is not one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                error.filename = image.where
            raise
        raise DamagedImageError(image.where, str(error).partition("\n")[0] or type(error).__name__) from error


def _stream(image: EncodedImage) -> IO[bytes]:
    if image.data is None:
        raise DamagedImageError(image.where, "there are no bytes")
    if isinstance(image.data, bytes):
        return io.BytesIO(image.data)
    kind = irregular(image.data.stat().st_mode)
    if kind is not None:
        raise DamagedImageError(image.where, f"it is not a regular file but {kind}")
    return image.data.open("rb")


def _flattened(image: Image.Image, channels: int, kind: str) -> Image.Image:
    """Return an image of mode L or RGB, of mode RGBa where there is transparency, or of mode F in [0, 1] for a grey image of 16 bits.

    The colours of RGBa are multiplied by its alpha: they are what is seen over black.
    """
    from PIL import Image

    # Pillow scales a PGM file of more than 8 bits, whatever its largest value, to 16 bits in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        values = np.asarray(image).astype(np.float32)
        if isinstance(key := image.info.get("transparency"), int):
            values[values == key] = 0
        return Image.fromarray(values / np.float32(65535))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} (32 bits a pixel) has no known range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        return image if image.mode == "RGBa" else image.convert("RGBA").convert("RGBa")
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])
