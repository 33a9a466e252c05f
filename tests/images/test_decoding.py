"""Decoding images: sizes, modes, orientation, and invalid files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defensemble_images import DamagedImageError, EncodedImage, ImageSizeError, Preprocessing, decode_image, decode_images
from tests.support.facts import raises

RNG = np.random.default_rng(0)
Array = NDArray[np.uint8]


def png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def decode(data: bytes, channels: int = 3, size: tuple[int, int] | None = None, rule: str = "crop") -> NDArray[Any]:
    return decode_image(EncodedImage("an image", data), channels, size, Preprocessing(rule)).pixels


def colours(height: int, width: int) -> Array:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(20, 10), (10, 20), (31, 10), (10, 33), (1000, 10), (10, 1001)])
def test_crop_keeps_the_centre_square(width: int, height: int) -> None:
    picture = colours(height, width)
    left, top = (width - 10) // 2, (height - 10) // 2
    expected = picture[top : top + 10, left : left + 10].transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(png(Image.fromarray(picture)), 3, (10, 10)), expected)


def test_downscaling_is_antialiased() -> None:
    columns = np.arange(64) % 2 * 255
    stripes = Image.fromarray(np.broadcast_to(columns[None, :, None], (64, 64, 3)).astype(np.uint8))
    np.testing.assert_allclose(decode(png(stripes), 3, (16, 16))[:, 1:-1, 1:-1], 127.5, atol=3)
    constant = png(Image.fromarray(np.full((50, 70, 3), 77, np.uint8)))
    assert np.unique(decode(constant, 3, (24, 24))).tolist() == [77]
    assert decode(constant, 3, (224, 112)).shape == (3, 224, 112)


def test_squash_keeps_the_complete_image() -> None:
    halves = np.zeros((16, 48), np.uint8)
    halves[:, 24:] = 255
    data = png(Image.fromarray(halves))
    squashed = decode(data, 1, (16, 16), "squash")[0]
    assert squashed[:, :6].max() == 0
    assert squashed[:, 10:].min() == 255


@pytest.mark.parametrize(("width", "height"), [(60_000_000, 1), (1, 1_000_000), (3000, 8)])
def test_thin_image_is_cropped_before_scaling(width: int, height: int) -> None:
    data = png(Image.new("1", (width, height), 1))
    assert decode(data, 1, (16, 16)).tolist() == np.full((1, 16, 16), 255).tolist()


def test_crop_of_a_thin_image_equals_the_crop_of_the_scaled_image() -> None:
    picture = Image.fromarray(RNG.integers(100, 120, (8, 400), dtype=np.uint8))
    expected = np.asarray(picture.resize((800, 16), Image.Resampling.BICUBIC))[:, 392:408]
    np.testing.assert_allclose(decode(png(picture), 1, (16, 16))[0], expected, atol=1)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_converts_to_rgb_or_grey(mode: str) -> None:
    grey = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    image = Image.fromarray(grey).convert("RGB" if mode in ("P", "CMYK") else "L").convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    rgb, single = decode(stream.getvalue(), 3), decode(stream.getvalue(), 1)
    assert (rgb.shape, single.shape) == ((3, 64, 64), (1, 64, 64))
    if mode != "1":
        # Pillow's default palette has 6 levels per channel, dithered.
        np.testing.assert_allclose(single[0].astype(float).mean(axis=0), grey[0], atol=52 if mode == "P" else 1)
    np.testing.assert_allclose(rgb[0].astype(float), single[0].astype(float), atol=1 if mode != "P" else 60)


def test_transparency_is_composited_over_black() -> None:
    rgba = RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    expected = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)).transpose(2, 0, 1)
    np.testing.assert_allclose(decode(png(Image.fromarray(rgba))).astype(float), expected, atol=1)
    grey = rgba[..., [0, 3]]
    np.testing.assert_allclose(decode(png(Image.fromarray(grey, "LA")), 1)[0].astype(float), grey[..., 0] * (grey[..., 1] / 255), atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_is_black(mode: str) -> None:
    image = Image.new(mode, (4, 4), 0 if mode == "P" else 200 if mode == "L" else (200, 10, 90))
    if mode == "P":
        image.putpalette([200, 10, 90, 1, 2, 3])
    key = {"P": 0, "L": 200, "RGB": (200, 10, 90)}[mode]
    assert decode(png(image)).max() == 200
    assert decode(png(image, transparency=key)).max() == 0


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_divided_by_65535(suffix: str) -> None:
    values = RNG.integers(0, 65536, (12, 10), dtype=np.uint16)
    values[0, :2] = 0, 65535
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, suffix)
    np.testing.assert_array_equal(decode(stream.getvalue(), 1)[0], values / np.float32(65535))
    np.testing.assert_array_equal(decode(stream.getvalue(), 3)[2], values / np.float32(65535))
    small = decode(stream.getvalue(), 1, (5, 5))
    assert small.dtype == np.float32
    assert 0 <= small.min() <= small.max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_known_range(mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (4, 4)).save(stream, "TIFF")
    with raises(DamagedImageError, f"mode {mode}"):
        decode(stream.getvalue())


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(suffix: str, orientation: int) -> None:
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:12, :8] = 250  # one corner is bright
    # What a camera stores by the definition of the tag (EXIF 2.3, 4.6.4): the inverse of what a reader must do.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(stream, suffix, exif=exif, **({"quality": 95} if suffix != "PNG" else {}))
    pixels = decode(stream.getvalue(), 3).astype(int)
    assert pixels.shape == (3, 24, 16)
    np.testing.assert_allclose(pixels[:, [4, 20, 4, 20], [3, 3, 12, 12]], [[250, 0, 0, 0]] * 3, atol=12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated")
def test_unreadable_exif_data_is_ignored() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(stream, "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff garbage")
    assert decode(stream.getvalue()).shape == (3, 6, 8)


@pytest.mark.parametrize("suffix", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_read(suffix: str) -> None:
    stream = io.BytesIO()
    options = {"lossless": True} if suffix == "WEBP" else {}
    Image.new("RGB", (8, 8), "red").save(stream, suffix, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")], **options)
    image = decode_image(EncodedImage("film", stream.getvalue()), 3, None)
    assert image.animated
    assert image.pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_other_size_without_resize_rule_is_rejected() -> None:
    image = EncodedImage("wide.png", png(Image.new("L", (48, 16))))
    with raises(ImageSizeError, "wide.png | 48 x 16 | 16 x 16 | --resize crop | --resize squash"):
        decode_image(image, 1, (16, 16))
    assert decode_image(image, 1, (16, 48)).pixels.shape == (1, 16, 48)


def test_formats_that_start_other_programs_are_not_decoded() -> None:
    image = EncodedImage("a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    (batch,) = decode_images([image], 3, (8, 8), None, skip_damaged=True)
    assert ["JPEG" in damage.reason for damage in batch.damage] == [True]
    with pytest.raises(DamagedImageError, match=r"^a\b"):
        list(decode_images([image], 3, (8, 8), None))


@pytest.mark.parametrize(("width", "height"), [(10**6, 10**6), (64_000_001, 1), (8001, 8000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_with_too_many_pixels_is_rejected_by_its_header(width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with pytest.raises(DamagedImageError, match=rf"thin\.png .*(64,000,000|{width * height})"):
        decode_image(EncodedImage("thin.png", bomb), 3, (8, 8), Preprocessing())


def test_unreadable_file_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        decode_image(EncodedImage("gone.png", tmp_path / "gone.png"), 3, None)
    assert caught.value.filename == str(tmp_path / "gone.png")


def test_threads_keep_the_order() -> None:
    images = RNG.integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    batches = list(decode_images((EncodedImage(str(n), png(Image.fromarray(image))) for n, image in enumerate(images)), 3, (8, 8), None))
    assert len(batches) > 5
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), images.transpose(0, 3, 1, 2))


def test_one_16_bit_image_makes_its_chunk_float32() -> None:
    shallow = RNG.integers(0, 256, (4, 4), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (4, 4), dtype=np.uint16)
    arrays: list[NDArray[Any]] = [shallow, deep, shallow]
    files = [EncodedImage(str(n), png(Image.fromarray(image))) for n, image in enumerate(arrays)]
    (batch,) = decode_images(files, 1, (4, 4), None)
    expected = [shallow / np.float32(255), deep / np.float32(65535), shallow / np.float32(255)]
    np.testing.assert_array_equal(batch.pixels[:, 0], np.stack(expected))
