"""`defensemble predict`: which images an argument stands for, which server is called, and what is printed when."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from defensemble import Client, ConnectionFailedError, FakeTransport, InputError, ModelMetadata, RetryPolicy, TensorMetadata
from defensemble._image_files import ReadOptions
from defensemble.cli import cli
from defensemble.cli.actions import image_sources, predict as action, prediction_output
from defensemble.cli.actions.predict import predict_files
from defensemble_server.process.state import ServerState, process_start, write_state
from tests.client.cli.test_cli import fake, write_pictures
from tests.support.command_line import environment, start
from tests.support.facts import assert_facts, raises
from tests.support.fakes import ensemble, ensemble_answer, house, member
from tests.support.tiny import CLASSES, images

URL = ("--url", "http://fake")


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTransport:
    """The server of every URL; the current folder is empty."""
    made = house()
    monkeypatch.setattr(made, "close", lambda: None)  # it serves several commands
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFENSEMBLE_URL", raising=False)
    monkeypatch.setattr("defensemble._client.client.transport_from_url", lambda url, options: made)
    return made


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["predict", *arguments], input=stdin)


def rows(*arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
    done = run(*arguments, *URL, "--jsonl", stdin=stdin)
    assert done.exit_code == 0, done.output
    return list(map(json.loads, done.stdout.splitlines()))


def files(*arguments: str) -> list[str]:
    return [row["file"] for row in rows(*arguments)]


def write_image(path: Path | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


# Arguments


def test_each_form_of_an_image_has_the_same_prediction(transport: FakeTransport) -> None:
    picture = (images(1)[0, 0] * 255).astype(np.uint8)
    Path("photos").mkdir()
    Image.fromarray(picture).save("photos/a.png")
    np.save("a.npy", picture[np.newaxis])
    forms = [rows(argument)[0] for argument in ("photos/a.png", "photos", "ph*/*.png", "a.npy", "*.npy")]
    forms += [rows("-", stdin=Path(name).read_bytes())[0] for name in ("photos/a.png", "a.npy")]
    assert {form.pop("file") for form in forms} == {"photos/a.png", "a.npy", "standard input"}
    assert all(form == forms[0] for form in forms)


def test_a_folder_stands_for_its_images_and_a_pattern_for_what_it_matches(transport: FakeTransport) -> None:
    for name in ("photos/b.png", "photos/a/c.PNG", "photos/.hidden/d.png", "photos/._b.png", "a.png"):
        write_image(name)
    np.save("photos/x.npy", images(2))
    Path("photos/notes.txt").touch()
    in_folder = ["photos/a/c.PNG", "photos/b.png"]
    assert files("photos") == in_folder
    assert files("photos", "a.png", "photos/b.png") == [*in_folder, "a.png", "photos/b.png"]
    assert files("photos/*") == [*in_folder, "photos/x.npy[0]", "photos/x.npy[1]"]
    assert sorted(files("photos/**")) == [*in_folder, "photos/x.npy[0]", "photos/x.npy[1]"], "each file once"
    assert files("**/*.png") == ["a.png", "photos/b.png"]
    assert_facts(run("photos", *URL).stderr, "2 hidden | 2 files")
    assert json.loads(run("photos/*", *URL, "--json").stdout)["skipped"] == {"hidden": 0, "not_images": 1, "damaged": 0}


def test_a_name_with_brackets_and_a_file_named_dash_are_no_patterns(transport: FakeTransport) -> None:
    write_image("a[1].png")
    np.save("-.npy", images(1))
    assert files("a[1].png", "./-.npy") == ["a[1].png", "-.npy"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "facts"),
    [
        (["photos/*.pgn"], b"", "'photos/*.pgn' | .png | .npy"),
        (["*.txt"], b"", "'*.txt' | 1 file that is not an image"),
        (["empty"], b"", "empty has no images | nothing | .png"),
        (["texts"], b"", "texts has no images | 1 file that is not an image"),
        (["texts/notes.txt"], b"", "texts/notes.txt | .png | .npy"),
        (["-"], b"", "standard input | empty"),
        (["-", "-"], b"x", "standard input | 2 times"),
        (["-"], b"\x93NUMPY broken", "standard input | format"),
        (["-"], b"GIF89a broken", "standard input | decoded"),
        (["x.npy", "--json", "--csv"], b"", "--json | --jsonl | --csv"),
        (["grpc://10.0.0.1:1", "x.npy"], b"", "grpc://10.0.0.1:1 | --url grpc://10.0.0.1:1"),
        (["x.npy", "--key-file", "x.npy"], b"", "--key-file | --cert-file"),
        (["x.npy", "--ca-file", "x.npy"], b"", "--ca-file | https:// | http://fake"),
        (["x.npy", "--contact-sheet", "empty"], b"", "Is a directory | empty"),
        (["x.npy", "--contact-sheet", "x.npy/a.html"], b"", "Not a directory | x.npy/a.html"),
    ],
)
def test_a_mistake_is_found_before_the_first_request(transport: FakeTransport, arguments: list[str], stdin: bytes, facts: str) -> None:
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/notes.txt").touch()
    Path("notes.txt").touch()
    np.save("x.npy", images(1))
    done = run(*arguments, *URL, stdin=stdin)
    assert done.exit_code in (1, 2)
    assert_facts(done.stderr, facts)
    assert done.stdout == ""
    assert not [request for request in transport.requests if not request[1][0].class_count], "only its class names"


# Servers


def write_server(http_port: int) -> None:
    started = process_start(os.getpid())
    assert started is not None
    write_state(
        ServerState(os.getpid(), started, "path", "127.0.0.1", http_port, http_port + 1, http_port + 2, f"/models/{http_port}", "k", "l")
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The URLs that clients are created for; there is an image `x.npy`, and no server."""
    urls: list[str] = []

    def make(url: str, options: Any) -> FakeTransport:
        urls.append(url)
        return FakeTransport(house()._models, url)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DEFENSEMBLE_URL", raising=False)
    monkeypatch.setattr("defensemble._client.client.transport_from_url", make)
    np.save("x.npy", images(1))
    return urls


def test_the_only_server_of_this_machine_is_called(called: list[str]) -> None:
    for verb in ("predict x.npy", "status"):
        done = CliRunner().invoke(cli, verb.split())
        assert done.exit_code == 1
        assert_facts(done.stderr, "defensemble serve | http://localhost:8000 | DEFENSEMBLE_URL")
    assert_facts(run("x.npy").stderr, "--url")
    write_server(4100)
    assert run("x.npy").exit_code == 0
    assert called == ["http://127.0.0.1:4100"]
    write_server(4200)
    assert_facts(run("x.npy").stderr, "2 servers | http://127.0.0.1:4100 (/models/4100) | http://127.0.0.1:4200 (/models/4200) | --url")
    assert run("x.npy", "--url", "http://127.0.0.1:4200").exit_code == 0
    assert called[1:] == ["http://127.0.0.1:4200"]


@pytest.mark.parametrize("text", ["http://a:1,grpc://b:2", " http://a:1  grpc://b:2 ", "http://a:1, grpc://b:2,"])
def test_the_environment_names_servers(called: list[str], monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DEFENSEMBLE_URL", text)
    assert run("x.npy").exit_code == 0
    assert called == ["http://a:1", "grpc://b:2"]
    assert run("x.npy", "--url", "http://c:3", "--url", "http://d:4").exit_code == 0
    assert called[2:] == ["http://c:3", "http://d:4"]


@pytest.mark.parametrize("text", ["localhost:8000", "http://a:1,x.npy", "http://a:b", "ftp://a:1"])
@pytest.mark.parametrize("verb", ["predict x.npy", "status"])
def test_a_bad_url_in_the_environment_is_named(called: list[str], monkeypatch: pytest.MonkeyPatch, verb: str, text: str) -> None:
    monkeypatch.setenv("DEFENSEMBLE_URL", text)
    done = CliRunner().invoke(cli, verb.split())
    assert done.exit_code == 2
    assert_facts(done.stderr, f"DEFENSEMBLE_URL | {text.split(',')[-1]} | http://localhost:8000")
    assert called == []


# What is printed


def test_csv_keeps_names_and_numbers(transport: FakeTransport) -> None:
    names = ['a, "b"', "two\nlines", "r\rn", "plain"]
    for name in names:
        write_image(f"photos/{name}.png")
    done = run("photos", *URL, "--csv", "--top", "5", "--outputs", "mutual_information,member_probabilities")
    table = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [row["file"] for row in table] == sorted(f"photos/{name}.png" for name in names)
    expected = ensemble_answer(np.zeros((1, 1, 4, 4), np.float32))
    order = np.argsort(-expected["probabilities"][0])
    for row in table:
        assert [row["label"], row["label_2"], row["label_3"]] == [CLASSES[index] for index in order]
        assert [float(row[f"probability{end}"]) for end in ("", "_2", "_3")] == pytest.approx(expected["probabilities"][0][order])
        assert float(row["mutual_information"]) == pytest.approx(expected["mutual_information"][0, 0])
        np.testing.assert_allclose(json.loads(row["member_probabilities"]), expected["member_probabilities"][0], rtol=1e-6)


def test_all_forms_have_the_same_predictions(transport: FakeTransport) -> None:
    write_pictures(Path("pictures"))
    arguments = ("--labelled", "pictures", *URL)
    lines = run(*arguments, "--jsonl")
    predictions = list(map(json.loads, lines.stdout.splitlines()))
    assert predictions == json.loads(run(*arguments, "--json").stdout)["predictions"]
    table = run(*arguments, "--csv")
    assert [(row["file"], row["label"], row["truth"], float(row["probability"])) for row in csv.DictReader(io.StringIO(table.stdout))] == [
        (row["file"], row["label"], row["truth"], row["probability"]) for row in predictions
    ]
    for done in (lines, table):
        assert_facts(done.stderr, "accuracy 0.8333 | n = 12")


def test_a_long_table_ends_with_the_number_of_other_images(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_output, "_TABLE_ROWS", 5)
    np.save("x.npy", images(12))
    shown = run("x.npy", *URL).stdout
    assert_facts(shown, "12 images | x.npy[4] | and 7 more images | --csv")
    assert "x.npy[5]" not in shown


@pytest.mark.parametrize(("form", "count"), [("jsonl", 16), ("csv", 17), ("json", 0), ("table", 0)])
def test_what_was_printed_before_a_damaged_image_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, count: int
) -> None:
    np.save(tmp_path / "x.npy", images(16))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = [str(tmp_path / name) for name in ("x.npy", "cut.png")]
    with raises(InputError, "cut.png"):
        predict_files(fake(), names, ["probabilities"], form=form)
    assert len(capsys.readouterr().out.splitlines()) == count
    predict_files(fake(), [*names, names[0]], ["probabilities"], form="jsonl", options=ReadOptions(skip_damaged=True))
    assert len(capsys.readouterr().out.splitlines()) == 32


def test_images_before_a_bad_one_are_predicted_though_all_are_read_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = images(10)
    values[7, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", values)
    folder = tmp_path / "photos"
    for number in range(10):
        write_image(folder / f"{number}.png")
    (folder / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, facts in (("x.npy", "image 7 | NaN"), ("photos", "7.png")):
        with raises(InputError, facts):
            predict_files(fake(), [str(tmp_path / name)], ["probabilities"], form="jsonl")
        assert len(capsys.readouterr().out.splitlines()) == 7


def test_control_characters_do_not_reach_the_terminal(transport: FakeTransport) -> None:
    name = "a\x1b[31m\n.png"
    write_image(name)
    done = run(name, *URL)
    assert "\x1b" not in done.stdout
    assert_facts(done.stdout, "a\\x1b[31m\\n.png")
    assert files(name) == [name]


class Dying(FakeTransport):
    """A server that is gone after some requests with images, and counts the images until then."""

    def __init__(self, requests: int) -> None:
        super().__init__({"ensemble": ensemble()})
        self.left = requests

    def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        if not outputs[0].class_count:
            self.left -= 1
            if self.left < 0:
                raise ConnectionFailedError(f"{self.url} is gone")
        return super().infer(model, inputs, outputs, *rest, **options)


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_a_server_that_dies_leaves_complete_lines_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    np.save(tmp_path / "x.npy", images(800))
    with raises(ConnectionFailedError, "gone"):
        predict_files(_without_retries(Dying(20)), [str(tmp_path / "x.npy")], ["probabilities"], form=form)
    lines = capsys.readouterr().out.splitlines()
    if form == "json":
        assert lines == []
        return
    parsed = list(map(json.loads, lines)) if form == "jsonl" else list(csv.DictReader(lines))
    assert 8 <= len(parsed) <= 160
    assert [row["file"] for row in parsed] == [f"{tmp_path / 'x.npy'}[{number}]" for number in range(len(parsed))]


def _without_retries(transport: FakeTransport) -> Client:
    return Client("fake", transport=transport, retry=RetryPolicy(max_retries=0))


def test_images_are_read_as_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = printed = 0
    most = 0
    read_images = image_sources.read_images

    def counted(*arguments: Any) -> Any:
        nonlocal read
        for image in read_images(*arguments):
            read += 1
            yield image

    def count_row(output: Any, row: Any) -> None:
        nonlocal printed, most
        printed += 1
        most = max(most, read - printed)

    monkeypatch.setattr(action, "read_images", counted)
    monkeypatch.setattr(prediction_output.JsonLinesOutput, "add", count_row)
    np.save(tmp_path / "x.npy", images(400))
    predict_files(fake(), [str(tmp_path / "x.npy")], ["probabilities"], form="jsonl")
    assert (read, printed) == (400, 400)
    assert most < 5 * 8, "four batches of 8 under way, and the one that is read"


class AnySize(FakeTransport):
    """A model that takes images of any height and width, and the shapes of its batches."""

    def __init__(self) -> None:
        super().__init__({"m": member(1)})
        self.shapes: list[tuple[int, ...]] = []

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        return replace(super().model_metadata(model, timeout_s), inputs=(TensorMetadata("images", "FP32", (-1, 1, -1, -1)),))

    def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        batch = inputs["images"]
        if not outputs[0].class_count:
            self.shapes.append(batch.shape)
        return super().infer(model, {"images": batch[:, :, :4, :4]}, outputs, *rest, **options)


def test_images_of_several_sizes_are_sent_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, side in enumerate((4, 4, 6, 4)):
        Image.fromarray(np.full((side, side), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    transport = AnySize()
    predict_files(Client("fake", "m", transport=transport), [str(tmp_path)], ["probabilities"], form="jsonl")
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert transport.shapes == [(2, 1, 4, 4), (1, 1, 6, 6), (1, 1, 4, 4)]


# The contact sheet


def test_the_contact_sheet_shows_the_most_uncertain_images(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action, "_SHEET_IMAGES", 3)
    values = images(40)
    np.save("x.npy", values)
    Path("sheet.html").write_text("earlier")
    done = run("x.npy", *URL, "--contact-sheet", "sheet.html", "--csv")
    assert done.exit_code == 0, done.output
    assert_facts(done.stderr, "wrote sheet.html | sheet.1.html")
    assert Path("sheet.1.html").read_text() == "earlier"
    page = Path("sheet.html").read_text()
    most_uncertain = np.argsort(-ensemble_answer(values)["entropy"][:, 0])[:3]
    places = [page.index(f'title="x.npy[{number}]"') for number in most_uncertain]
    assert places == sorted(places)
    assert page.count("<img ") == 3
    assert_facts(page, "3 most uncertain of 40 images")


def test_the_contact_sheet_is_not_written_after_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(800))
    sheet = tmp_path / "sheet.html"
    with pytest.raises(ConnectionFailedError):
        predict_files(_without_retries(Dying(20)), [str(tmp_path / "x.npy")], ["probabilities"], form="csv", contact_sheet=sheet)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


# Processes


@pytest.mark.slow
def test_twenty_thousand_images_need_no_more_memory_than_one(triton: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for number in range(20_000):
        (folder / f"{number:05d}.png").write_bytes(data)
    peaks = []
    for name, count in (("a.png", 1), ("photos", 20_000)):
        with start("predict", name, "--url", triton.http_url, "--jsonl", cwd=tmp_path) as process:
            assert process.stdout is not None
            assert sum(1 for _ in process.stdout) == count
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss >> 10)
    assert peaks[1] - peaks[0] < 50, f"{peaks} MB"


@pytest.mark.slow
def test_a_reader_that_ends_is_no_error(triton: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(5000))
    for form in ("--jsonl", "--csv"):
        with start("predict", "x.npy", "--url", triton.http_url, form, cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1


@pytest.mark.slow
def test_standard_output_is_complete_while_the_bar_is_drawn_on_a_terminal(triton: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3000))
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "defensemble", "predict", "x.npy", "--url", triton.http_url, "--csv"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        out, _ = process.communicate(timeout=60)
        drawn = b""
        while chunk := _read_terminal(ours):
            drawn += chunk
    os.close(ours)
    assert process.returncode == 0
    assert len(out.splitlines()) == 3001
    assert b"images/s" in drawn
    assert b"x.npy[" not in drawn


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other side is closed
        return b""
