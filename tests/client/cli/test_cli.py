from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from defensemble import (
    Client,
    ConnectionFailedError,
    FakeTransport,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    wilson,
)
from defensemble.cli import cli
from defensemble.cli.actions.predict import predict_files
from defensemble.cli.actions.probe import probe_noise_and_report
from tests.support.fakes import ensemble, ensemble_answer, house, member
from tests.support.scripted import free_port
from tests.support.tiny import CLASSES, SHAPE, images

Array = np.ndarray[Any, Any]


def fake(transport: FakeTransport | None = None) -> Client:
    return Client("fake", transport=transport or house())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def write_pictures(folder: Path, count: int = 12) -> Array:
    """A labelled folder; the first picture of each class is labelled wrongly. Answers the pictures' values in the order of the files."""
    grey = (images(count) * 255).astype(np.uint8)
    best = ensemble_answer(grey.astype(np.float32) / np.float32(255))["probabilities"].argmax(axis=1)
    for index, picture in enumerate(grey):
        place = folder / CLASSES[best[index] if index >= 2 else (best[index] + 1) % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(place / f"{index:02d}.png")
    values: Array = grey.astype(np.float32) / np.float32(255)
    return values


def test_predict_prints_json_with_all_that_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", images(11))
    transport = house()
    predict_files(fake(transport), [tmp_path / "x.npy"], ["entropy", "mutual_information", "member_probabilities"], top=2, as_json=True)
    told = json.loads(capsys.readouterr().out)
    expected = ensemble_answer(images(11))
    assert (told["schema"], told["model"], told["accuracy"]) == ("defensemble.predict/1", "ensemble", None)
    assert len(told["predictions"]) == 11
    for index, row in enumerate(told["predictions"]):
        order = np.argsort(-expected["probabilities"][index])
        assert row["file"] == f"{tmp_path / 'x.npy'}[{index}]"
        assert (row["label"], row["index"]) == (CLASSES[order[0]], order[0])
        assert [one["index"] for one in row["top"]] == order[:2].tolist()
        assert row["probability"] == pytest.approx(expected["probabilities"][index].max())
        assert row["entropy"] == pytest.approx(expected["entropy"][index, 0])
        assert row["mutual_information"] == pytest.approx(expected["mutual_information"][index, 0])
        assert np.shape(row["member_probabilities"]) == (2, 3)
    assert [len_ for len_ in transport.calls.values()] == [1 + 2]


def test_predict_prints_the_accuracy_of_a_labelled_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures")
    np.save(tmp_path / "x.npy", images(3))
    predict_files(fake(), [tmp_path / "x.npy"], ["probabilities"], tmp_path / "pictures", batch_size=5, as_json=True)
    told = json.loads(capsys.readouterr().out)
    low, high = wilson(10, 12)
    accuracy = {
        "folder": str(tmp_path / "pictures"),
        "model": "ensemble",
        "value": 10 / 12,
        "successes": 10,
        "n": 12,
        "low": low,
        "high": high,
    }
    assert told["accuracy"] == accuracy
    assert ["truth" in row for row in told["predictions"]] == [False] * 3 + [True] * 12
    predict_files(fake(), [], ["probabilities"], tmp_path / "pictures")
    table = capsys.readouterr().out
    assert f"accuracy 0.8333, Wilson 95 % interval {low:.4f} to {high:.4f}, n = 12" in table
    assert "entropy (nats)" in table


def test_predict_over_both_protocols(triton: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(11))
    told = []
    for url in (triton.grpc_url, triton.http_url):
        done = run("predict", url, str(tmp_path / "x.npy"), "--json", "--top", "3", "--outputs", "entropy, mutual_information")
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.output))
    for one, other in zip(told[0]["predictions"], told[1]["predictions"], strict=True):
        assert one == other
    table = run("predict", triton.http_url, str(tmp_path / "x.npy"), "--model", "alpha", "--outputs", "probabilities,entropy")
    assert table.exit_code == 0
    assert "alpha: 11 images" in table.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["localhost:8001", "x.npy"], "Error: the URL 'localhost:8001' has no scheme"),
        (["URL", "missing.npy"], "Error: No such file or directory: missing.npy"),
        (["URL", "x.npy", "--model", "nope"], "serves no model 'nope', only alpha"),
        (["URL", "x.npy", "--outputs", "logits"], "unknown outputs logits"),
        (["URL", "wide.png"], "wide.png is 9 x 4 pixels"),
        (["URL", "wide.png"], "--resize crop"),
        (["URL", "wide.png", "--resize"], "'crop', 'squash'"),
        (["URL", "--resize", "wide.png"], "'crop', 'squash'"),
        (["URL", "x.npy", "--max-memory", "much"], "4G"),
        (["URL", "x.npy", "--max-memory", "0"], "4G"),
        (["URL", "x.npy", "--max-memory", "9" * 400], "4G"),
        (["URL", "x.npy", "--max-memory", "100"], "x.npy would take"),
        (["URL", "wide.png", "--max-memory", "0.5K", "--resize", "crop"], "wide.png would take"),
        (["URL", "bright.npy"], "image 0 of bright.npy must lie in [0, 1], got values from 7 to 7"),
        (["URL", "--labelled", "nowhere"], "nowhere is not a folder"),
        (["URL"], "Give files of images, or --labelled FOLDER."),
    ],
)
def test_predict_says_what_is_wrong(triton: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", images(1))
    np.save("bright.npy", np.full((1, *SHAPE), 7, np.float32))
    Image.fromarray(np.zeros((4, 9), np.uint8)).save("wide.png")
    done = run("predict", *(triton.http_url if one == "URL" else one for one in arguments))
    assert done.exit_code in (1, 2)
    assert told in done.output
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(1))
    for scheme in ("grpc", "http"):
        done = run("predict", f"{scheme}://127.0.0.1:{free_port()}", str(tmp_path / "x.npy"))
        assert done.exit_code == 1
        assert done.output.startswith(f"Error: {scheme}://127.0.0.1:")
        assert "Is the server up" in done.output
        assert len(done.output.splitlines()) == 1


def write_npz(folder: Path, count: int = 30) -> Path:
    batch = images(count)
    np.savez(folder / "data.npz", images=batch, labels=ensemble_answer(batch)["probabilities"].argmax(axis=1))
    return folder / "data.npz"


@contextmanager
def quiet_console() -> Iterator[Console]:
    with Path("/dev/null").open("w") as nowhere:
        yield Console(record=True, width=200, file=nowhere)


def test_probe_noise_measures_ensemble_members_and_the_rest(tmp_path: Path) -> None:
    out, transport = tmp_path / "new" / "noise.json", house()
    with quiet_console() as console:
        failures = probe_noise_and_report(fake(transport), str(write_npz(tmp_path)), out, sigmas=(8, 128), seed=4, console=console)
        shown = console.export_text()
    told = json.loads(out.read_text())
    assert failures == {}
    assert [(target["name"], target["role"]) for target in told["targets"]] == [
        ("ensemble", "ensemble"),
        ("alpha", "member"),
        ("beta", "member"),
        ("standard", "other"),
    ]
    assert told["targets"][0]["members"] == ["alpha", "beta"]
    assert (told["seed"], told["data"]["n"], told["data"]["name"], told["batch_size"]) == (4, 30, str(tmp_path / "data.npz"), 8)
    assert told["server"] == {"name": "fake", "version": "0"}
    assert {"hardware", "versions", "git_commit", "measured_at", "class_names"} <= set(told)
    assert told["targets"][0]["clean"]["value"] == 1
    assert all(target["queries"] == 90 for target in told["targets"])
    assert "4 models x 30 images x 3 settings (clean and 2 sigmas) = 360 queries" in shown
    assert shown.rstrip().endswith(str(out))
    for word in ("model", "clean", "128", "standard", f"the {told['data']['n_common']} images that all models get right when clean"):
        assert word in " ".join(shown.split())


class Dying(FakeTransport):
    """Serves a number of inferences, then is gone."""

    def __init__(self, calls: int) -> None:
        super().__init__(house()._models)
        self._left = calls

    def infer(self, model: str, inputs: Any, outputs: Any, timeout_s: float, version: int | None = None) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConnectionFailedError("it is gone")
        return super().infer(model, inputs, outputs, timeout_s, version)


def test_a_server_that_dies_leaves_null_and_a_list_of_failures(tmp_path: Path) -> None:
    with quiet_console() as console:
        failures = probe_noise_and_report(
            fake(Dying(2 + 8 + 1)), str(write_npz(tmp_path)), tmp_path / "noise.json", ["alpha", "beta"], sigmas=[8], console=console
        )
    told = json.loads((tmp_path / "noise.json").read_text())
    assert set(failures) == {"alpha", "beta"}
    assert [target["noise"][0]["accuracy"] for target in told["targets"]] == [None, None]
    assert all(target["clean"]["n"] == 30 for target in told["targets"])
    assert "it is gone" in told["targets"][0]["failure"]


class Sick(FakeTransport):
    """Its model `beta` answers NaN for the last image of every batch."""

    def __init__(self) -> None:
        super().__init__(house()._models)

    def infer(self, model: str, inputs: Any, outputs: Any, timeout_s: float, version: int | None = None) -> Any:
        answer = super().infer(model, inputs, outputs, timeout_s, version)
        if model == "beta" and not outputs[0].class_count:
            answer["logits"][-1] = np.nan
        return answer


def test_a_model_that_answers_nan_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._client.client.transport_from_url", lambda url, admin_key: Sick())
    data, out = write_npz(tmp_path), tmp_path / "noise.json"
    done = run("probe", "noise", "fake", "--data", str(data), "--target", "alpha", "--target", "beta", "--sigmas", "8", "--out", str(out))
    assert done.exit_code == 1
    assert "1 of the models failed, their rates are null from there on: beta: ServerFailedError: fake://server, asked to run" in done.output
    good, sick = json.loads(out.read_text())["targets"]
    assert good["noise"][0]["accuracy"]["n"] == 30
    assert (sick["clean"], sick["noise"][0]["accuracy"], sick["queries"]) == (None, None, 0)
    assert "it answered values that are not finite for 1 of 8 images in output 'logits'" in sick["failure"]
    np.save(tmp_path / "x.npy", images(3))
    asked = run("predict", "fake", str(tmp_path / "x.npy"), "--model", "beta", "--json")
    assert asked.exit_code == 1
    assert asked.stdout == ""
    assert "model 'beta': it answered values that are not finite for 1 of 3 images" in asked.stderr


def test_a_place_that_cannot_be_written_is_found_before_the_first_query(tmp_path: Path) -> None:
    transport = house()
    with quiet_console() as console, pytest.raises(IsADirectoryError):
        probe_noise_and_report(fake(transport), str(write_npz(tmp_path)), tmp_path, console=console)
    assert transport.requests == []


def test_what_was_measured_is_shown_even_where_it_cannot_be_written_any_more(tmp_path: Path) -> None:
    class Blocking(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, timeout_s: float, version: int | None = None) -> Any:
            (tmp_path / "noise.json").mkdir(exist_ok=True)
            return super().infer(model, inputs, outputs, timeout_s, version)

    client = fake(Blocking({"ensemble": ensemble()}))
    with quiet_console() as console:
        with pytest.raises(IsADirectoryError) as caught:
            probe_noise_and_report(client, str(write_npz(tmp_path)), tmp_path / "noise.json", sigmas=[8], limit=1, console=console)
        shown = console.export_text()
    assert caught.value.filename == str(tmp_path / "noise.json")
    assert "1 model x 1 image x 2 settings (clean and 1 sigma) = 2 queries" in shown
    assert "clean: all 1 images" in shown
    assert str(tmp_path) not in shown


def test_probe_noise_at_the_command_line(triton: Any, tmp_path: Path) -> None:
    told: list[Any] = []
    for url in (triton.grpc_url, triton.http_url):
        out = tmp_path / "noise.json"
        data = str(write_npz(tmp_path))
        done = run("probe", "noise", url, "--data", data, "--sigmas", "8,64", "--limit", "20", "--seed", "2", "--out", str(out))
        assert done.exit_code == 0, done.output
        assert str(out) in done.output.replace("\n", "")
        told.append(json.loads(out.read_text()))
    assert told[0]["data"] == told[1]["data"]
    assert told[0]["data"]["n"] == 20
    assert [target["name"] for target in told[0]["targets"]] == ["ensemble", "alpha", "beta"]
    assert told[0]["targets"] == told[1]["targets"]
    assert told[0]["server"]["name"] == "triton"


def test_failures_end_with_a_status_that_is_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._client.client.transport_from_url", lambda url, admin_key: Dying(2 + 8 + 1))
    done = run(
        "probe", "noise", "fake", "--data", str(write_npz(tmp_path)), "--target", "alpha", "--target", "beta", "--out", str(tmp_path / "n")
    )
    assert done.exit_code == 1
    assert "2 of the models failed, their rates are null from there on: alpha: ConnectionFailedError: it is gone" in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"source": "nothing.npz"}, "nothing.npz"),
        ({"source": "some/where"}, "neither a folder nor a .npz file"),
        ({"names": ["alpha", "alpha"]}, "named twice"),
        ({"names": ["gamma"]}, "serves no model 'gamma'"),
        ({"sigmas": [0]}, "sigmas must be positive"),
        ({"sigmas": [1e308]}, "sigmas must be positive and at most 2550"),
    ],
)
def test_probe_noise_says_what_is_wrong(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    arguments = {"source": str(write_npz(tmp_path)), **options}
    with quiet_console() as console, pytest.raises((InputError, ModelNotFoundError, FileNotFoundError), match=told):
        probe_noise_and_report(fake(), out=tmp_path / "noise.json", console=console, **arguments)
    assert "queries" not in console.export_text()
    assert not (tmp_path / "noise.json").exists()


def test_models_that_do_not_belong_together_are_not_compared(tmp_path: Path) -> None:
    transport = FakeTransport({"ensemble": ensemble(), "other": member(1, class_names=("x", "y", "z"))})
    with quiet_console() as console, pytest.raises(InputError, match="'ensemble' and 'other' differ in image shape or classes"):
        probe_noise_and_report(fake(transport), str(write_npz(tmp_path)), tmp_path / "noise.json", console=console)
    with quiet_console() as console, pytest.raises(ModelNotFoundError, match="serves no model that classifies images, only none at all"):
        probe_noise_and_report(fake(FakeTransport({})), "digits", tmp_path / "noise.json", console=console)


def test_a_failure_that_is_not_the_server_s_is_not_hidden(tmp_path: Path) -> None:
    class Buggy(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, timeout_s: float, version: int | None = None) -> Any:
            raise NotReadyError("loading") if not outputs[0].class_count else ZeroDivisionError

    with quiet_console() as console, pytest.raises(ZeroDivisionError):
        probe_noise_and_report(fake(Buggy(house()._models)), str(write_npz(tmp_path)), tmp_path / "noise.json", console=console)
