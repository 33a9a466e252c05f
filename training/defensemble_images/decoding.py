"""Decode many images to one shape with a thread pool.

Threads suffice because Pillow releases the GIL while it decodes and resizes. Measured on 2 cores of x86-64 (Pillow 13.0, 20,000 JPEG
images of 32x32, once each): 2.7 s with 1 thread, 2.3 s with 2, 1.9 s with 4, 0.8 s with 2 processes; 300 images of 500x375: 1.0 s with
1 thread, 0.6 s with 2. Processes would save seconds once, but every caller's script would have to be safe for their start method.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedImageError
from .preprocessing import Preprocessing
from .reader import DecodedImage, EncodedImage, Pixels, decode_image, floats_from_pixels, read_header

MAX_CHUNK_IMAGES = 64
_CHUNK_BYTES = 16 << 20  # decoded pixels per thread; large images come in chunks of fewer than 64
# Pillow keeps 4 bytes per pixel and copies an image for its orientation, transparency and mode. Measured on images of 36 million pixels
# (Pillow 13.0): 8 bytes for JPEG, 9 for PNG with a palette, 12 with alpha, 14 for 16 bits, 16 for WebP.
_BYTES_PER_PIXEL = 16

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """A chunk of decoded images, in input order."""

    pixels: Pixels  # (n, C, H, W) of the decoded images: uint8 in 0 to 255, or float32 in [0, 1] if one of them has 16 bits per pixel
    kept: NDArray[np.bool_]  # for each input image, whether it could be decoded
    damage: tuple[DamagedImageError, ...]  # one error for each image that could not
    formats: Counter[str]  # number of images per format
    animations: tuple[str, ...]  # images of which only the first frame was read

    @property
    def floats(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1]."""
        return floats_from_pixels(self.pixels)


@dataclass(eq=False)
class Survey:
    """Summary of image headers: the number of images per (width, height), and whether all are grey."""

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
) -> Iterator[DecodedBatch]:
    """Decode images to one shape, in chunks of at most 64 images, fewer for large images.

    Args:
        images: Files or encoded bytes.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) of the result.
        preprocessing: How images are resized. None requires that all have this size.
        skip_damaged: Skip images that cannot be decoded and report them in `DecodedBatch.damage`, instead of raising the first error.
        check: Called before an image is decoded, with its name and the memory in bytes that decoding needs if every thread decodes an
            image of this size. It may raise.

    Raises:
        DamagedImageError, ImageSizeError, OSError: See `decode_image`.

    Example:
        >>> images = [EncodedImage(str(path), path) for path in paths]
        >>> for batch in decode_images(images, 3, (32, 32), Preprocessing("crop")):
        ...     print(batch.floats.shape)
    """
    threads = _threads()

    def decode_chunk(chunk: list[EncodedImage]) -> DecodedBatch:
        return _decode_chunk(chunk, lambda image: decode_image(image, channels, size, preprocessing, on_pixels(image)), (channels, *size))

    def on_pixels(image: EncodedImage) -> Callable[[int], None] | None:
        return None if check is None else lambda pixels: check(image.where, threads * pixels * _BYTES_PER_PIXEL)

    for batch in _map_chunks(decode_chunk, images, _images_per_chunk(channels, size)):
        if batch.damage and not skip_damaged:
            raise batch.damage[0]
        yield batch


def survey(images: Iterable[EncodedImage]) -> Survey:
    """Summarise the headers of images, skipping damaged ones."""
    total = Survey()
    for part in _map_chunks(_survey_chunk, images, MAX_CHUNK_IMAGES):
        total.sizes += part.sizes
        total.all_grey &= part.all_grey
    return total


def memory_to_decode(images: Sequence[EncodedImage], channels: int, size: tuple[int, int] | None) -> int:
    """Return the peak memory that decoding needs, in bytes, without the results that the caller keeps. Reads all headers.

    Args:
        images: Files or encoded bytes.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) that `decode_images` resizes to. None: images are decoded at their own size, one after the other.

    Raises:
        OSError: A file cannot be read.
    """
    largest = max((width * height for width, height in survey(images).sizes), default=0)
    if size is None:
        return largest * (_BYTES_PER_PIXEL + 4 * channels)  # plus the result as float32
    chunk_images, threads = _images_per_chunk(channels, size), _threads()
    queued = min(len(images), chunk_images * (2 * threads + 2)) * channels * math.prod(size)
    return queued + min(threads, -(-len(images) // chunk_images)) * largest * _BYTES_PER_PIXEL


def _images_per_chunk(channels: int, size: tuple[int, int]) -> int:
    return min(MAX_CHUNK_IMAGES, max(1, _CHUNK_BYTES // (channels * math.prod(size))))


def _threads() -> int:
    """Return 2 to 4. Each thread may hold one of the largest images, and more threads gain little (see the top of this file)."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


def _map_chunks(work: Callable[[list[EncodedImage]], Result], images: Iterable[EncodedImage], chunk_images: int) -> Iterator[Result]:
    """Apply a function to chunks of images with a thread pool. Yield results in order and read ahead only as far as the threads need."""
    threads = _threads()
    iterator = iter(images)
    chunk = list(islice(iterator, chunk_images))
    if len(chunk) < chunk_images:  # the only one: starting threads takes longer than decoding a small image
        if chunk:
            yield work(chunk)
        return
    iterator = chain(chunk, iterator)
    queue: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(iterator, chunk_images)):
                queue.append(pool.submit(work, chunk))
                if len(queue) > 2 * threads:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _decode_chunk(
    chunk: list[EncodedImage], decode: Callable[[EncodedImage], DecodedImage], image_shape: tuple[int, int, int]
) -> DecodedBatch:
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
            pixels = floats_from_pixels(pixels)  # the first 16-bit image of this chunk
        pixels[number] = decoded.pixels if pixels.dtype == np.uint8 else decoded.floats
        kept[number] = True
        formats[decoded.format] += 1
        if decoded.animated:
            animations.append(image.where)
    return DecodedBatch(pixels if kept.all() else pixels[kept], kept, tuple(damage), formats, tuple(animations))


def _survey_chunk(chunk: list[EncodedImage]) -> Survey:
    result = Survey()
    for image in chunk:
        try:
            size, is_grey = read_header(image)
        except DamagedImageError:  # reported when it is decoded
            continue
        result.sizes[size] += 1
        result.all_grey &= is_grey
    return result
