"""From encoded images to pixels: sizes, modes, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defensemble_training import DataError, load_dataset
from defensemble_training.decoding import decoded
from defensemble_training.sources import Encoded

from .written import Pixels, pictures, png, write_split


def one(data: bytes, channels: int, size: int) -> Pixels:
    (some,) = decoded([Encoded("an image", data)], channels, size)
    assert some.damage == ()
    return np.asarray(some.pixels[0])


@pytest.mark.parametrize(("width", "height"), [(20, 10), (10, 20), (31, 10), (10, 33)])
def test_the_middle_of_the_short_side_s_square_is_kept(width: int, height: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = (width - 10) // 2, (height - 10) // 2
    np.testing.assert_array_equal(one(png(picture), 3, 10), picture[top : top + 10, left : left + 10].transpose(2, 0, 1))


def test_larger_images_are_scaled_without_aliasing() -> None:
    columns = np.arange(64) % 2 * 255
    stripes = np.broadcast_to(columns[None, :, None], (64, 64, 3)).astype(np.uint8)
    np.testing.assert_allclose(one(png(stripes), 3, 16)[:, 1:-1, 1:-1], 127.5, atol=3)
    constant = np.full((50, 70, 3), 77, np.uint8)
    assert np.unique(one(png(constant), 3, 24)).tolist() == [77]
    assert one(png(constant), 3, 224).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB" if mode in ("P", "CMYK") else "L").convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    image.save(path)
    rgb, single = one(path.read_bytes(), 3, 64), one(path.read_bytes(), 1, 64)
    assert (rgb.shape, single.shape) == ((3, 64, 64), (1, 64, 64))
    if mode != "1":
        # A palette of Pillow's has 6 steps a channel, dithered.
        tolerance = 52 if mode == "P" else 1
        np.testing.assert_allclose(single[0].mean(axis=0), grey[0], atol=tolerance)
    np.testing.assert_allclose(rgb[0].astype(int), single[0], atol=1 if mode != "P" else 60)


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_split(tmp_path)
    Image.fromarray(pictures(1, 12)[0]).save(tmp_path / "test/ant/other.png")
    with pytest.raises(
        DataError, match=r"have 2 sizes \(width x height\), 8x8, 12x12; expected one for all, square, from 8 to 1024; pass a"
    ):
        load_dataset("folder", data_dir=tmp_path)
    assert load_dataset("folder", 10, data_dir=tmp_path).input_shape == (3, 10, 10)


def test_images_that_are_not_square_need_a_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (16, 8)).save(tmp_path / split / name / "a.png")
    with pytest.raises(DataError, match=r"have 1 size \(width x height\), 16x8; expected one for all, square"):
        load_dataset("folder", data_dir=tmp_path)
    assert load_dataset("folder", 8, data_dir=tmp_path).input_shape == (1, 8, 8)


def test_formats_that_start_other_programs_are_not_decoded() -> None:
    (some,) = decoded([Encoded("a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")], 3, 8)
    assert [damage.reason for damage in some.damage] == ["it is of no such format"]


def test_an_image_that_would_fill_the_memory_is_damage() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    (some,) = decoded([Encoded("a", bomb)], 3, 8)
    assert "exceeds limit" in some.damage[0].reason


def test_order_and_labels_survive_many_threads() -> None:
    images = pictures(500, 8)
    some = list(decoded((Encoded(str(n), png(image)) for n, image in enumerate(images)), 3, 8))
    assert len(some) > 5
    np.testing.assert_array_equal(np.concatenate([chunk.pixels for chunk in some]), images.transpose(0, 3, 1, 2))
