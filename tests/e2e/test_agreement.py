"""Training, `predict` and the probes read a folder alike: the same number of images, classes and accuracy."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from defensemble.cli import cli
from defensemble_server import ServeOptions, serve
from defensemble_training import load_checkpoint, load_dataset
from defensemble_training.evaluation import predict_classes

Picture = NDArray[np.uint8]

NAMES = ("bas", "caf\u00e9", "haut", "10", "9")


def upright(label: int, random: np.random.Generator) -> Picture:
    """Return a picture (H, W, 3) of noise whose central square has one bright corner, or a bright centre."""
    height, width = random.integers(16, 40, 2)
    picture = random.integers(0, 130, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    half = side // 2
    down, across = [(0, 0), (0, half), (half, 0), (half, half), (half // 2, half // 2)][label]
    picture[top + down : top + down + half, left + across : left + across + half] = 190
    return picture


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def oriented(picture: Picture, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {6: 1, 3: 2, 8: 3}[orientation]
    return saved(Image.fromarray(np.ascontiguousarray(np.rot90(picture, turns))), "JPEG", exif=exif, quality=95)


def over_white(picture: Picture) -> bytes:
    """Return an RGBA picture whose alpha shows the bright corner, over white that must not be visible."""
    alpha = np.where(picture[..., :1] == 190, 255, 0).astype(np.uint8)
    return saved(Image.fromarray(np.concatenate([np.where(alpha, picture, 255).astype(np.uint8), alpha], axis=2)), "PNG")


def keyed_palette(picture: Picture) -> bytes:
    """Return a palette picture that is white and transparent except for the bright corner."""
    image = Image.fromarray((picture[..., 0] == 190).astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 190, 190, 190])
    return saved(image, "PNG", transparency=0)


def film(picture: Picture) -> bytes:
    return saved(Image.fromarray(picture), "GIF", save_all=True, append_images=[Image.fromarray(255 - picture)])


KINDS: dict[str, Callable[[Picture], bytes]] = {
    "plain.png": lambda picture: saved(Image.fromarray(picture), "PNG"),
    "six.jpg": lambda picture: oriented(picture, 6),
    "three.jpeg": lambda picture: oriented(picture, 3),
    "eight.JPG": lambda picture: oriented(picture, 8),
    "alpha.png": over_white,
    "palette.png": keyed_palette,
    "deep.png": lambda picture: saved(Image.fromarray(picture[..., 0].astype(np.uint16) * 257), "PNG"),
    "deep.tif": lambda picture: saved(Image.fromarray(picture[..., 1].astype(np.uint16) * 257), "TIFF"),
    "press.tiff": lambda picture: saved(Image.fromarray(picture).convert("CMYK"), "TIFF"),
    "film.gif": film,
    "a.webp": lambda picture: saved(Image.fromarray(picture), "WEBP", quality=90),
    "a.ppm": lambda picture: saved(Image.fromarray(picture), "PPM"),
    "a.pgm": lambda picture: saved(Image.fromarray(picture[..., 0]), "PPM"),
    "a.bmp": lambda picture: saved(Image.fromarray(picture), "BMP"),
    "deeper/nested.png": lambda picture: saved(Image.fromarray(picture), "PNG"),
}


def write_every_kind(folder: Path) -> int:
    """Write train and test parts with every kind of file and with files to skip; return the number of test images."""
    random = np.random.default_rng(0)
    for split, copies in (("train", 3), ("test", 1)):
        for label, name in enumerate(NAMES):
            place = folder / split / (unicodedata.normalize("NFD", name) if split == "test" else name)
            for copy in range(copies):
                for kind, encode in KINDS.items():
                    path = place / f"{copy}" / kind
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode(upright(label, random)))
            (place / ".DS_Store").write_bytes(b"\x00")
            (place / "._plain.png").write_bytes(b"of macOS")
            (place / "Thumbs.db").write_bytes(b"of Windows")
        (folder / split / "__MACOSX" / NAMES[0]).mkdir(parents=True)
        (folder / split / "__MACOSX" / NAMES[0] / "._plain.png").write_bytes(b"of macOS")
        (folder / split / "README.txt").write_text("words")
    return len(NAMES) * len(KINDS)


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_train_predict_and_probe_read_every_kind_of_file_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, checkpoint, repository = tmp_path / "data", tmp_path / "net.safetensors", tmp_path / "repository"
    n = write_every_kind(data)
    cache = str(tmp_path / "cache")
    with monkeypatch.context() as until_served:
        until_served.setenv("XDG_CACHE_HOME", cache)
        small = ("--width", "4", "--epochs", "3", "--batch-size", "16", "--keep", "0.7", "--no-flip", "--threads", "1")
        trained = run("train", "--dataset", data, "--size", "16", *small, checkpoint)
        module, _, record = load_checkpoint(checkpoint)
        assert record.n_test == n
        assert record.accuracy > 0.9, "images that are read otherwise are then recognised less often"
        assert f"{round(record.accuracy * n)} of {n} images" in trained
        run("export", checkpoint, "--dataset", data, "--repository", repository)
        report = json.loads((repository / "net/1/model.onnx.json").read_text())["verification"]["accuracy"]
        assert report == pytest.approx(record.accuracy)

        dataset = load_dataset("folder", 16, data_dir=data)
        expected = [dataset.class_names[label] for label in predict_classes(module, dataset.test.images())]

    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)  # not earlier: the server would build its backend again
        for model in ("net", "ensemble"):
            output = json.loads(run("predict", "--url", server.http_url, "--labelled", data / "test", "--model", model, "--json"))
            assert output["accuracy"]["n"] == n
            assert output["accuracy"]["value"] == pytest.approx(record.accuracy)
            assert [row["label"] for row in output["predictions"]] == expected
        for number, source in enumerate((str(data / "test"), f"folder={data}")):
            out = tmp_path / f"noise{number}.json"
            run("probe", "noise", server.grpc_url, "--dataset", source, "--sigmas", "1", "--out", out)
            for target in json.loads(out.read_text())["targets"]:
                assert target["clean"]["n"] == n
                assert target["clean"]["value"] == pytest.approx(record.accuracy)
