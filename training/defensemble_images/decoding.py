"""Many images of one shape, decoded by several threads.

Threads and not processes: Pillow releases the interpreter's lock while it decodes and resizes. Measured on 2 cores of x86-64 (Pillow 13.0,
20,000 JPEG images of 32x32, once each): 2.7 s on one thread, 2.3 s on 2, 1.9 s on 4, 0.8 s in 2 processes; 300 of 500x375: 1.0 s on one
thread, 0.6 s on 2. Processes would save seconds, once, and cost a start method that every caller's script must be safe for.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedImageError
from .preprocessing import Preprocessing
from .reader import DecodedImage, EncodedImage, Pixels, decode_image, floats_from_pixels, read_header

AT_ONCE = 64
_CHUNK = 16 << 20  # bytes of decoded pixels that a thread works on; fewer than 64 images where they are large
# Pillow keeps 4 bytes a pixel, and copies an image for its orientation, its transparency and its mode. Measured on images of 36 million
# pixels (Pillow 13.0): 8 bytes for JPEG, 9 for PNG with a palette, 12 with alpha, 14 for 16 bits, 16 for WebP.
_BYTES_A_PIXEL = 16

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Decoded:
    """A few images in their order.

    `pixels` (n, C, H, W) are of those that could be decoded: uint8 in 0 to 255, or float32 in [0, 1] where one of them has 16 bits a pixel.
    """

    pixels: Pixels
    kept: NDArray[np.bool_]  # whether it was decoded, for each image that was read, in order
    damage: tuple[DamagedImageError, ...]  # of those that were not
    formats: Counter[str]  # how many images had which format
    animations: tuple[str, ...]  # where the images are of which only the first frame was read

    @property
    def floats(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1]."""
        return floats_from_pixels(self.pixels)


@dataclass(eq=False)
class Survey:
    """What the headers of images state: how many have which (width, height), and whether all are grey."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    all_grey: bool = True


def decode_images(
    images: Iterable[EncodedImage],
    channels: int,
    size: tuple[int, int],
    preprocessing: Preprocessing | None,
    *,
    skip_damaged: bool = False,
    check: Callable[[str, int], None] | None = None,
) -> Iterator[Decoded]:
    """Decode images of one shape, at most 64 at a time, and fewer where they are large.

    Args:
        images: files or encoded bytes.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) that all are brought to.
        preprocessing: how; None: all must have that size.
        skip_damaged: leave out what cannot be decoded and report it in `Decoded.damage`, instead of raising the first.
        check: called with where an image is and the bytes that images of its size take, one on each thread, before it is decoded; may
            raise.

    Raises:
        DamagedImageError, ImageSizeError, OSError: see `decode_image`.
    """
    threads = _threads()

    def work(chunk: list[EncodedImage]) -> Decoded:
        return _decode_chunk(chunk, lambda image: decode_image(image, channels, size, preprocessing, on_pixels(image)), (channels, *size))

    def on_pixels(image: EncodedImage) -> Callable[[int], None] | None:
        return None if check is None else lambda pixels: check(image.where, threads * pixels * _BYTES_A_PIXEL)

    for some in _on_threads(work, images, _at_once(channels, size)):
        if some.damage and not skip_damaged:
            raise some.damage[0]
        yield some


def survey(images: Iterable[EncodedImage]) -> Survey:
    """Read the headers of images; damaged ones are skipped."""
    found = Survey()
    for one in _on_threads(_survey_chunk, images, AT_ONCE):
        found.sizes += one.sizes
        found.all_grey &= one.all_grey
    return found


def memory_to_decode(images: Sequence[EncodedImage], channels: int, size: tuple[int, int] | None) -> int:
    """Return how many bytes decoding takes at its peak, without what the caller keeps; reads the headers of all images.

    `size` is (height, width) that all are brought to by `decode_images`; None: each is decoded as it is, one after the other.

    Raises:
        OSError: a file cannot be read.
    """
    largest = max((width * height for width, height in survey(images).sizes), default=0)
    if size is None:
        return largest * (_BYTES_A_PIXEL + 4 * channels)  # and the result as float32
    at_once, threads = _at_once(channels, size), _threads()
    waiting = min(len(images), at_once * (2 * threads + 2)) * channels * math.prod(size)
    return waiting + min(threads, -(-len(images) // at_once)) * largest * _BYTES_A_PIXEL


def _at_once(channels: int, size: tuple[int, int]) -> int:
    return min(AT_ONCE, max(1, _CHUNK // (channels * math.prod(size))))


def _threads() -> int:
    """Return 2 to 4: each may hold one of the largest images, and more of them gain little (see the top of this file)."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


def _on_threads(work: Callable[[list[EncodedImage]], Result], images: Iterable[EncodedImage], at_once: int) -> Iterator[Result]:
    """Return results in order, with no more images in memory than the threads need."""
    threads = _threads()
    iterator = iter(images)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(iterator, at_once)):
                waiting.append(pool.submit(work, chunk))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_chunk(chunk: list[EncodedImage], decode: Callable[[EncodedImage], DecodedImage], image_shape: tuple[int, int, int]) -> Decoded:
    pixels: Pixels = np.empty((len(chunk), *image_shape), np.uint8)
    kept = np.zeros(len(chunk), np.bool_)
    damage: list[DamagedImageError] = []
    formats: Counter[str] = Counter()
    animations: list[str] = []
    for number, image in enumerate(chunk):
        try:
            decoded = decode(image)
        except DamagedImageError as error:
            damage.append(error)
            continue
        if decoded.pixels.dtype == np.float32:
            pixels = floats_from_pixels(pixels)  # the first image of 16 bits among others
        pixels[number] = decoded.pixels if pixels.dtype == np.uint8 else decoded.floats
        kept[number] = True
        formats[decoded.format] += 1
        if decoded.animated:
            animations.append(image.where)
    return Decoded(pixels if kept.all() else pixels[kept], kept, tuple(damage), formats, tuple(animations))


def _survey_chunk(chunk: list[EncodedImage]) -> Survey:
    found = Survey()
    for image in chunk:
        try:
            size, grey = read_header(image)
        except DamagedImageError:  # decoding reports it
            continue
        found.sizes[size] += 1
        found.all_grey &= grey
    return found
