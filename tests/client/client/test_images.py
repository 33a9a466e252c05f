"""What `predict` accepts: each form of an image gives the same float32 NCHW array, and anything else is an error that names the fix."""

from __future__ import annotations

import io
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from defensemble import Client, DeadlineExceededError, FakeTransport, InputError
from defensemble._client.images import image_from_input, images_from_input
from defensemble._client.model_info import ModelInfo
from defensemble_images import Preprocessing
from tests.support.facts import raises
from tests.support.fakes import member

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
CROP, SQUASH = Preprocessing("crop").to_json(), Preprocessing("squash").to_json()


def model(shape: tuple[int, int, int] = (3, 6, 8), preprocessing: str | None = None) -> ModelInfo:
    return ModelInfo("net", "ensemble", "images", shape, ("probabilities",), 2, ("a", "b"), (), preprocessing)


def colours(height: int = 6, width: int = 8) -> Array:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_decoding_a_batch_ends_with_the_deadline() -> None:
    large = encoded(Image.fromarray(RNG.integers(0, 256, (800, 800), np.uint8)), compress_level=1)
    client = Client("fake", "alpha", transport=FakeTransport({"alpha": member(1, preprocessing=CROP)}))
    assert len(client.predict([large])) == 1
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        list(client.predict_iter([large] * 800, timeout_s=0.05, batch_size=800))  # of 5 ms each
    assert time.monotonic() - started < 3


def test_each_form_of_an_image_gives_the_same_array(tmp_path: pathlib.Path) -> None:
    pixels = colours()
    expected = pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / np.float32(255)
    data = encoded(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    pictures: list[Any] = [data, path, str(path), opened(data), Image.fromarray(pixels)]
    arrays: list[tuple[Array, dict[str, Any]]] = [
        (expected, {}),
        (expected.transpose(0, 2, 3, 1), {"layout": "NHWC"}),
        (pixels[np.newaxis], {"layout": "NHWC", "dtype": "uint8"}),
        (pixels.transpose(2, 0, 1)[np.newaxis], {"dtype": "uint8"}),
    ]
    for images, options in [*((picture, {}) for picture in pictures), *arrays]:
        got = images_from_input(images, model(), **options)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)
        item = images[0] if isinstance(images, np.ndarray) else images
        np.testing.assert_array_equal(image_from_input(item, model(), **options), expected[0])
    for together in (pictures, tuple(pictures)):
        np.testing.assert_array_equal(images_from_input(together, model()), np.repeat(expected, len(pictures), axis=0))
    assert images_from_input(expected, model()) is expected


SHAPES = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)


@settings(max_examples=30)
@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape)), st.booleans())
def test_layouts_and_bytes_equal_numpy(pixels: Array, channels_last: bool) -> None:
    expected = (pixels.transpose(0, 3, 1, 2) if channels_last else pixels).astype(np.float32) / np.float32(255)
    info = model(expected.shape[1:])
    layout = "NHWC" if channels_last else "NCHW"
    np.testing.assert_array_equal(images_from_input(pixels, info, layout=layout, dtype="uint8"), expected)
    floats = pixels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(images_from_input(floats, info, layout=layout), expected)


def oriented(file_format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(colours(5, 7)), file_format, exif=exif.tobytes())


HANDLED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "lazy": lambda picture: picture,
    "loaded": lambda picture: (picture.load(), picture)[1],
    "transposed": ImageOps.exif_transpose,
    "transposed in place": lambda picture: (ImageOps.exif_transpose(picture, in_place=True), picture)[1],
    "converted": lambda picture: picture.convert("RGB"),
}


@pytest.mark.parametrize("handled", HANDLED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_that_pillow_opened_equals_its_file(file_format: str, handled: str) -> None:
    for orientation in (1, 3, 6, 7):
        data = oriented(file_format, orientation)
        expected = images_from_input(data, model((3, -1, -1)))
        assert expected.shape == ((1, 3, 7, 5) if orientation >= 5 else (1, 3, 5, 7))
        np.testing.assert_array_equal(images_from_input(HANDLED[handled](opened(data)), model((3, -1, -1))), expected)


def pictures_of_all_modes() -> dict[str, bytes]:
    pixels = Image.fromarray(colours())
    alpha = Image.fromarray(RNG.integers(0, 256, (6, 8, 4), np.uint8))
    palette = pixels.quantize(8)
    deep = RNG.integers(0, 1 << 16, (6, 8), np.uint16)
    return {
        "L": encoded(pixels.convert("L")),
        "1": encoded(pixels.convert("1")),
        "LA": encoded(alpha.convert("LA")),
        "RGBA": encoded(alpha),
        "P": encoded(palette),
        "transparent palette": encoded(palette, transparency=3),
        "CMYK": encoded(pixels.convert("CMYK"), "JPEG"),
        "I;16": encoded(Image.fromarray(deep)),
        "16-bit PGM": b"P5 8 6 65535\n" + deep.astype(">u2").tobytes(),
    }


@pytest.mark.parametrize("mode", list(pictures_of_all_modes()))
@pytest.mark.parametrize("channels", [1, 3])
def test_an_opened_picture_of_any_mode_equals_its_file_and_stays_as_it_is(mode: str, channels: int) -> None:
    data = pictures_of_all_modes()[mode]
    picture = opened(data)
    before = (picture.mode, picture.size, picture.info)
    for resize in (None, "crop"):
        info = model((channels, 6, 8) if resize is None else (channels, 4, 4))
        expected = images_from_input(data, info, resize=resize)
        np.testing.assert_array_equal(images_from_input(picture, info, resize=resize), expected)
        np.testing.assert_array_equal(images_from_input(picture, info, resize=resize), expected)
    assert (picture.mode, picture.size, picture.info) == before


def test_one_lazy_picture_may_come_many_times() -> None:
    pixels = colours()  # more than a chunk, so that several threads decode it
    got = images_from_input([opened(encoded(Image.fromarray(pixels)))] * 200, model())
    np.testing.assert_array_equal(got, np.repeat(images_from_input(Image.fromarray(pixels), model()), 200, axis=0))


def test_pictures_are_brought_to_size_by_the_model_s_rule_or_the_caller_s() -> None:
    picture = Image.fromarray(colours(6, 16))
    crop, squash = (images_from_input(picture, model(preprocessing=rule)) for rule in (CROP, SQUASH))
    assert crop.shape == squash.shape == (1, 3, 6, 8)
    assert not np.array_equal(crop, squash)
    np.testing.assert_array_equal(images_from_input(picture, model(), resize="crop"), crop)
    np.testing.assert_array_equal(image_from_input(picture, model(preprocessing=CROP), resize="squash"), squash[0])
    np.testing.assert_array_equal(images_from_input(picture, model(preprocessing="later"), resize="squash"), squash)
    with raises(InputError, 'images | 16 x 6 | 8 x 6 | resize="crop" | resize="squash"'):
        images_from_input(picture, model())
    with raises(InputError, "later | net"):
        images_from_input(picture, model(preprocessing="later"))
    with raises(InputError, "wide | crop | squash"):
        images_from_input(picture, model(), resize="wide")


def test_a_model_of_any_size_takes_pictures_of_one_size() -> None:
    info = model((3, -1, -1), CROP)
    pictures = [Image.fromarray(colours(6, 16)), Image.fromarray(colours(6, 16)), Image.fromarray(colours(6, 8))]
    assert images_from_input(pictures[:2], info).shape == (2, 3, 6, 16)
    with raises(InputError, "images[2] | (3, 6, 8) | (3, 6, 16)"):
        images_from_input(pictures, info)
    with raises(InputError, "resize | crop | net"):
        images_from_input(pictures[:2], info, resize="crop")


class Tensor:
    """What a tensor of torch looks like."""

    __module__ = "torch"


FLOATS = np.full((2, 3, 6, 8), 0.5, np.float32)
BYTES = np.full((2, 3, 6, 8), 9, np.uint8)
PICTURE = Image.fromarray(colours())


@pytest.mark.parametrize(
    ("images", "options", "facts"),
    [
        (BYTES, {}, 'uint8 | float32 | dtype="uint8"'),
        (FLOATS, {"dtype": "uint8"}, 'uint8 | float32 | omit dtype="uint8"'),
        (BYTES.astype(np.int64), {"dtype": "uint8"}, "int64 | astype(numpy.uint8)"),
        (FLOATS.astype(np.float64), {}, "float64 | images.astype(numpy.float32)"),
        (FLOATS.astype(">f4"), {}, ">f4 | images.astype(numpy.float32)"),
        (FLOATS.transpose(0, 2, 3, 1), {}, '(N, 3, 6, 8) | (2, 6, 8, 3) | layout="NHWC"'),
        (FLOATS, {"layout": "NHWC"}, '(N, 6, 8, 3) | (2, 3, 6, 8) | layout="NCHW"'),
        (FLOATS[0], {}, "(3, 6, 8) | images[numpy.newaxis]"),
        (FLOATS[0].transpose(1, 2, 0), {}, '(6, 8, 3) | images[numpy.newaxis] | layout="NHWC"'),
        (FLOATS[:, :, :5], {}, "(N, 3, 6, 8) | (2, 3, 5, 8) | net"),
        (FLOATS[:0], {}, "(0, 3, 6, 8) | one image"),
        (FLOATS * 255, {}, "127.5 | divide by 255"),
        (FLOATS * np.nan, {}, "288 | NaN"),
        (np.ma.masked_array(FLOATS, FLOATS > 0), {}, "masked"),
        (np.array([PICTURE, None], dtype=object), {}, "object | list(images) | numpy.stack"),
        (FLOATS, {"resize": "crop"}, "resize | crop | array"),
        (FLOATS, {"layout": "HWC"}, "layout | NCHW | NHWC | HWC"),
        (BYTES, {"dtype": np.uint8}, "dtype | float32 | uint8 | numpy.uint8"),
        ([], {}, "empty list"),
        ((), {}, "empty tuple"),
        (list(FLOATS), {}, "images[0] | numpy.ndarray | (3, 6, 8) | numpy.stack(images)"),
        ([PICTURE, FLOATS[0]], {}, "images[1] | numpy.ndarray | numpy.stack(images)"),
        ([PICTURE, None], {}, "images[1] | NoneType"),
        ("https://example.org/cat.png", {}, "images | https://example.org/cat.png | bytes"),
        (["http://example.org/cat.png"], {}, "images[0] | http://example.org/cat.png | bytes"),
        (FLOATS.tolist(), {}, "images[0] | list | numpy.array(images, dtype=numpy.float32)"),
        (Tensor(), {}, "torch.Tensor | images.detach().cpu().numpy()"),
        (0.5, {}, "images | float | numpy.array"),
        (None, {}, "images | NoneType"),
        (bytearray(b"x"), {}, "bytearray | bytes(images)"),
        (io.BytesIO(b"x"), {}, "BytesIO | images.read()"),
        (iter([PICTURE]), {}, "list_iterator | list(images) | predict_iter"),
        (PICTURE, {"layout": "NHWC"}, 'layout="NHWC" | omit layout'),
        ([PICTURE], {"dtype": "uint8"}, 'images[0] | dtype="uint8" | omit dtype'),
        (b"no picture", {}, "images | PNG | JPEG"),
        ([encoded(PICTURE), b"", encoded(PICTURE)[:70]], {}, "images[1] | 2 of 3"),
    ],
)
def test_nothing_is_guessed(images: Any, options: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        images_from_input(images, model(), **options)


@pytest.mark.parametrize(
    ("image", "options", "facts"),
    [
        (FLOATS, {}, "images[7] | (2, 3, 6, 8) | predict_iter(array)"),
        (FLOATS[0].transpose(1, 2, 0), {}, 'images[7] | (3, 6, 8) | (6, 8, 3) | layout="NHWC"'),
        (BYTES[0], {}, 'images[7] | dtype="uint8"'),
        (FLOATS[0] * 3, {}, "images[7] | 1.5"),
        ([PICTURE], {}, "images[7] | list"),
        (b"no picture", {}, "images[7] | PNG"),
        (PICTURE, {"layout": "NHWC"}, "images[7] | omit layout"),
    ],
)
def test_an_item_of_an_iterable_is_named(image: Any, options: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        image_from_input(image, model(), name="images[7]", **options)


def test_a_picture_that_cannot_be_loaded_is_damaged_and_a_missing_file_is_an_os_error(tmp_path: pathlib.Path) -> None:
    cut = opened(encoded(Image.fromarray(colours(60, 80)), "JPEG")[:-300])
    for _ in range(2):
        with raises(InputError, "images[1] | truncated"):
            images_from_input([PICTURE, cut], model())
    stream = io.BytesIO(encoded(PICTURE))
    closed = Image.open(stream)
    stream.close()
    with raises(InputError, "images"):
        images_from_input(closed, model())
    with raises(InputError, f"images[1] | folder {tmp_path} | predict_iter"):
        images_from_input([PICTURE, tmp_path], model())
    for path in (tmp_path / "none.png", str(tmp_path / "none.png")):
        with raises(FileNotFoundError, "none.png"):
            images_from_input(path, model())


def test_subclasses_are_converted() -> None:
    class Named(np.ndarray[Any, Any]):
        pass

    assert type(images_from_input(FLOATS.view(Named), model())) is np.ndarray


def test_images_that_need_too_much_memory_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_images.memory.free_memory", lambda: 100 << 20)
    large = encoded(Image.new("1", (3000, 2000)))  # 6 million pixels, 16 bytes each while they are decoded
    assert images_from_input(encoded(Image.new("1", (300, 200))), model(), resize="crop").shape == (1, 3, 6, 8)
    for images in (large, opened(large), [large, large]):
        with raises(InputError, "91.6 MiB | 50.0 MiB" if isinstance(images, (bytes, Image.Image)) else "MiB"):
            images_from_input(images, model(), resize="crop")
    with raises(InputError, "images as float32 | 68.7 MiB | 50.0 MiB"):
        images_from_input(np.zeros((2, 3, 2000, 1500), np.uint8), model((3, -1, -1)), dtype="uint8")
