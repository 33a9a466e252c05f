"""What `predict` and `probe noise` print about the files that they read, and about their measurements."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import FakeTransport, InputError
from defensemble._image_files import ReadOptions
from defensemble.cli.actions.predict import predict_files
from defensemble.cli.notes import log_records_on_stderr
from defensemble_images import Preprocessing
from tests.client.cli.test_cli import fake, probe, quiet_console, run, write_npz, write_pictures
from tests.support.command_line import run as run_command
from tests.support.facts import raises
from tests.support.fakes import ensemble, house, member
from tests.support.tiny import SHAPE, images

CROP, SQUASH = (Preprocessing(resize).to_json() for resize in ("crop", "squash"))


@pytest.fixture(autouse=True)
def notes_on_stderr() -> Iterator[None]:
    with log_records_on_stderr(logging.INFO):
        yield


def add_files_to_skip(folder: Path) -> None:
    """Add skipped files, an animation and a damaged image to class folders."""
    class_folder = sorted(path for path in folder.iterdir() if path.is_dir())[0]
    for name in ("._00.png", ".DS_Store", "notes.txt"):
        (class_folder / name).write_bytes(b"\x00")
    (folder / "__MACOSX").mkdir()
    frames = [Image.new("L", SHAPE[1:], value) for value in (10, 20)]
    (class_folder / "below").mkdir()
    frames[0].save(class_folder / "below/film.gif", save_all=True, append_images=frames[1:])
    (class_folder / "cut.png").write_bytes(sorted(folder.rglob("[0-9]*.png"))[0].read_bytes()[:50])


def test_predict_counts_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures")
    add_files_to_skip(tmp_path / "pictures")
    with pytest.raises(InputError, match=r"cut\.png"):
        predict_files(fake(), [], ["probabilities"], tmp_path / "pictures", form="json")
    predict_files(fake(), [], ["probabilities"], tmp_path / "pictures", options=ReadOptions(skip_damaged=True), form="json")
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (len(result["predictions"]), result["accuracy"]["n"], result["animations"]) == (13, 13, 1)
    assert result["skipped"] == {"hidden": 3, "not_images": 1, "damaged": 1}
    assert result["preprocessing"] is None
    for line, words in zip(
        err.splitlines(), (["3 hidden", "1 file"], ["1 damaged", "cut.png"], ["1", "animation", "film.gif"]), strict=True
    ):
        assert [word for word in words if word not in line] == []
    cut = next((tmp_path / "pictures").rglob("cut.png"))
    with raises(InputError, "none of the 1 images | cut.png"):
        predict_files(fake(), [str(cut)], ["probabilities"], options=ReadOptions(skip_damaged=True))


def test_predict_resizes_as_the_model_records_and_notes_an_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = (images(1)[0, 0] * 255).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, 4:8]).save(tmp_path / "middle.png")
    client = fake(FakeTransport({"ensemble": ensemble(preprocessing=CROP)}))

    def predicted(name: str, resize: str | None = None) -> tuple[Any, str]:
        predict_files(client, [str(tmp_path / name)], ["probabilities"], options=ReadOptions(resize), form="json")
        out, err = capsys.readouterr()
        return json.loads(out), err

    cropped, no_note = predicted("wide.png")
    assert cropped["predictions"][0]["top"] == predicted("middle.png")[0]["predictions"][0]["top"]
    assert (cropped["preprocessing"], no_note) == (json.loads(CROP), "")
    squashed, note = predicted("wide.png", "squash")
    assert squashed["predictions"][0]["top"] != cropped["predictions"][0]["top"]
    assert squashed["preprocessing"] == json.loads(SQUASH)
    assert "squash" in note
    assert CROP in note


def test_predict_sends_batches_of_one_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = write_pictures(tmp_path / "pictures")
    names = [str(file) for file in sorted((tmp_path / "pictures").rglob("*.png"))]
    np.save(tmp_path / "f.npy", np.asfortranarray(values[:5]))
    transport = house()
    predict_files(fake(transport), [*names[:2], str(tmp_path / "f.npy"), *names[2:]], ["probabilities"], batch_size=4, form="json")
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["file"] for row in rows] == [*names[:2], *(f"{tmp_path / 'f.npy'}[{index}]" for index in range(5)), *names[2:]]
    assert transport.calls["ensemble"] == 1 + 5


def test_predict_refuses_files_that_are_no_images_before_the_first_request(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3))
    (tmp_path / "a.txt").touch()
    transport = house()
    with raises(InputError, "a.txt | .png"):
        predict_files(fake(transport), [str(tmp_path / "x.npy"), str(tmp_path / "a.txt")], ["probabilities"])
    assert not transport.requests


def test_predict_ignores_a_corrupt_exif_block(triton: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + bytes(30))
    done = run_command("predict", "--url", triton.http_url, "a.jpg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def probed(transport: FakeTransport, source: str | Path, out: Path, *names: str, **options: Any) -> str:
    with quiet_console() as console:
        probe(transport, source, out, targets=names, sigmas=[8], console=console, **options)
        return " ".join(console.export_text().split())


def test_earlier_results_are_kept(tmp_path: Path) -> None:
    data, out, transport = write_npz(tmp_path), tmp_path / "noise.json", house()
    for text in ("first", "second"):
        out.write_text(text)
        assert "earlier result" in probed(transport, data, out, "alpha")
        assert json.loads(out.read_text())["data"]["n"] == 30
    assert [(tmp_path / f"noise.{number}.json").read_text() for number in (1, 2)] == ["first", "second"]


def test_probe_counts_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures")
    add_files_to_skip(tmp_path / "pictures")
    probed(house(), tmp_path / "pictures", tmp_path / "noise.json", reading=ReadOptions(skip_damaged=True))
    data = json.loads((tmp_path / "noise.json").read_text())["data"]
    assert (data["n"], data["n_available"], data["animations"]) == (13, 14, 1)
    assert data["skipped"] == {"hidden": 3, "not_images": 1, "damaged": 1}
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_probe_refuses_models_that_resize_differently_without_resize(tmp_path: Path) -> None:
    transport = FakeTransport(
        {"ensemble": ensemble(preprocessing=CROP), "alpha": member(1), "beta": member(2, preprocessing=SQUASH), "gamma": member(3)}
    )
    data = write_npz(tmp_path)
    with raises(InputError, "'ensemble' | 'beta' | --resize"):
        probed(transport, data, tmp_path / "a.json")
    probed(transport, data, tmp_path / "b.json", reading=ReadOptions("crop"))
    reordered = json.dumps(dict(reversed(json.loads(CROP).items())))
    alike = FakeTransport({"alpha": member(1, preprocessing=CROP), "beta": member(2, preprocessing=reordered)})
    probed(alike, data, tmp_path / "alike.json", "alpha", "beta")
    Image.new("L", (8, 4)).save(tmp_path / "wide.png")
    for label in ("pictures/" + name for name in transport._models["alpha"].class_names):
        (tmp_path / label).mkdir(parents=True)
        (tmp_path / label / "wide.png").write_bytes((tmp_path / "wide.png").read_bytes())
    probed(transport, tmp_path / "pictures", tmp_path / "c.json", "alpha", "ensemble")
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["data"]["preprocessing"] == json.loads(CROP), "alpha follows its ensemble"
    for names in (("gamma", "ensemble"), ("ensemble", "gamma"), ("alpha",)):  # no ensemble records how to resize for these
        with raises(InputError, "8 x 4 | 4 x 4 | --resize crop"):
            probed(transport, tmp_path / "pictures", tmp_path / "d.json", *names)


def test_probe_compares_preprocessing_as_values(tmp_path: Path) -> None:
    spelling = json.dumps(dict(reversed(json.loads(CROP).items())))
    transport = FakeTransport({"alpha": member(1, preprocessing=CROP), "beta": member(2, preprocessing=spelling)})
    probed(transport, write_npz(tmp_path), tmp_path / "a.json", "alpha", "beta")


def shifted(seed: int) -> Any:
    """Return a member that is wrong wherever `member(seed)` is correct."""
    correct = member(seed)
    return type(correct)(lambda batch: {"logits": np.roll(correct.answer(batch)["logits"], 1, axis=1)}, SHAPE, correct.class_names, 8)


@pytest.mark.parametrize(
    ("models", "count", "texts"),
    [
        ({"alpha": member(1), "bad": shifted(1)}, 40, ["only 0 of 40 images", "all 2 models", "bad: 0", "--target alpha"]),
        ({"bad": shifted(1)}, 40, ["only 0 of 40 images", "by bad"]),
        ({"alpha": member(1)}, 12, ["only 12 images"]),
        ({"alpha": member(1)}, 40, []),
    ],
)
def test_probe_explains_few_common_images(tmp_path: Path, models: dict[str, Any], count: int, texts: list[str]) -> None:
    batch = images(count)
    labels = member(1).answer(batch)["logits"]
    np.savez(tmp_path / "data.npz", images=batch, labels=np.asarray(labels).argmax(axis=1))
    shown = probed(FakeTransport(models), tmp_path / "data.npz", tmp_path / "noise.json")
    assert [text for text in texts if text not in shown] == []
    assert ("only" in shown) is bool(texts)


def test_probe_refuses_bad_options(triton: Any, tmp_path: Path) -> None:
    data = str(write_npz(tmp_path))
    for options, text in (
        (["--out", str(tmp_path / "a.json"), "--max-memory", "1K"], "data.npz would take"),
        (["--out", str(tmp_path / "a.json"), "--resize"], "'crop', 'squash'"),
    ):
        done = run("probe", "noise", triton.http_url, "--dataset", data, *options)
        assert done.exit_code in (1, 2)
        assert text in done.output
    assert not (tmp_path / "a.json").exists()
