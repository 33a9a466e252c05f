"""`defensemble probe noise`: its table, its files, its errors, and what it leaves to resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import (
    ConnectionFailedError,
    FakeTransport,
    InputError,
    ModelNotFoundError,
    NotReadyError,
)
from defensemble.cli.actions.probe import ProbeArguments, _RunBars, run_probe
from defensemble.cli.progress import progress_bar
from defensemble.probes.noise import Noise
from defensemble.probes.options import Preview
from tests.client.cli.test_cli import probe, quiet_console, run, write_npz
from tests.support.facts import assert_facts, raises
from tests.support.fakes import ensemble, house, member
from tests.support.tiny import SHAPE, images


def test_probe_measures_ensembles_members_and_other_models(tmp_path: Path) -> None:
    out, transport = tmp_path / "new" / "noise.json", house()
    with quiet_console() as console:
        outcome = probe(transport, write_npz(tmp_path), out, sigmas=(8, 128), seed=4, console=console)
        shown = console.export_text()
    output = json.loads(out.read_text())
    assert outcome.failures == {}
    assert output == outcome.json()
    assert [path.name for path in out.parent.iterdir()] == ["noise.json"], "the ledger is removed"
    assert [(target["name"], target["role"]) for target in output["targets"]] == [
        ("ensemble", "ensemble"),
        ("alpha", "member"),
        ("beta", "member"),
        ("standard", "other"),
    ]
    assert output["targets"][0]["members"] == ["alpha", "beta"]
    assert (output["seed"], output["data"]["n"], output["data"]["name"]) == (4, 30, str(tmp_path / "data.npz"))
    assert output["server"] == {"name": "fake", "version": "0"}
    assert {"hardware", "versions", "git_commit", "measured_at", "class_names"} <= set(output)
    assert output["targets"][0]["clean"]["value"] == 1
    for target in output["targets"]:
        # Of the sanity checks: a look-up, a batch of 8, each of them by itself, and a batch of the largest noise.
        assert target["queries"] == {
            **{"sent": 90 + 25, "counted": 90, "sanity": 25, "verification": 0, "retried": 0, "repeated": 0},
        }
        assert transport.images[target["name"]] == target["queries"]["sent"]
    assert_facts(shown, "4 models | 360 queries | images/s | Gaussian noise: accuracy, %")
    assert shown.rstrip().endswith(str(out))
    for word in (
        "model",
        "clean",
        "128",
        "standard",
        "accuracy: of all 30 images",
    ):
        assert word in " ".join(shown.split())


class CrashingTransport(FakeTransport):
    """Fails for images that are not those of `images(30)`."""

    def __init__(self, **models: Any) -> None:
        super().__init__({**house()._models, **models})
        self._known = {image.tobytes() for image in [*images(30), np.zeros(SHAPE, np.float32)]}
        self.is_well = False

    def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        if not self.is_well and any(image.tobytes() not in self._known for image in inputs["images"]):
            error = ConnectionFailedError("the server crashed")
            error.is_retryable = False  # so that nothing waits
            raise error
        return super().infer(model, inputs, outputs, *rest, **options)


def test_probe_reports_null_and_failures_after_a_server_crash(tmp_path: Path) -> None:
    transport, data, out = CrashingTransport(), write_npz(tmp_path), tmp_path / "noise.json"
    with quiet_console() as console:
        outcome = probe(transport, data, out, targets=["alpha", "beta"], sigmas=[8], console=console)
        shown = console.export_text()
    output = json.loads(out.read_text())
    assert set(outcome.failures) == {"alpha", "beta"}
    assert [target["conditions"][0]["accuracy"] for target in output["targets"]] == [None, None]
    assert all(target["clean"]["n"] == 30 for target in output["targets"])
    assert "the server crashed" in output["targets"][0]["failure"]
    assert_facts(" ".join(shown.split()), f"FAIL: target responds: alpha | {tmp_path / 'noise.ledger'} | --resume")
    transport.is_well = True
    with quiet_console() as console, raises(InputError, f"{tmp_path / 'noise.ledger'} | --resume"):
        probe(transport, data, out, targets=["alpha", "beta"], sigmas=[8], console=console)
    before = transport.images["alpha"]
    with quiet_console() as console:
        resumed = probe(transport, data, out, targets=["alpha", "beta"], sigmas=[8], resume=True, console=console)
    assert resumed.failures == {}
    assert transport.images["alpha"] - before == 1 + 8 + 8 + 30 + 8, "clean images are not sent again"
    assert resumed.targets[0].queries.counted == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "noise.1.json", "noise.json"]


class NanTransport(FakeTransport):
    """Its model `beta` returns NaN for the last image of every batch."""

    def __init__(self) -> None:
        super().__init__(house()._models)

    def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
        response = super().infer(model, inputs, outputs, *rest, **options)
        if model == "beta" and not outputs[0].class_count:
            response["logits"][-1] = np.nan
        return response


def test_a_model_that_returns_nan_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("defensemble._client.client", "defensemble.probes.targets"):
        monkeypatch.setattr(f"{module}.transport_from_url", lambda url, options: NanTransport())
    data, out = write_npz(tmp_path), tmp_path / "noise.json"
    done = run(
        "probe", "noise", "http://fake", "--dataset", str(data), "--target", "alpha", "--target", "beta", "--sigmas", "8", "--out", str(out)
    )
    assert done.exit_code == 1
    assert_facts(done.output, "1 of the models | null | beta | ServerFailedError | fake://server")
    good, failed = json.loads(out.read_text())["targets"]
    assert good["conditions"][0]["accuracy"]["n"] == 30
    assert (failed["clean"], failed["conditions"][0]["accuracy"], failed["queries"]["counted"]) == (None, None, 0)
    assert_facts(failed["failure"], "not finite | 1 of 1 images | 'logits'")
    np.save(tmp_path / "x.npy", images(3))
    predicted = run("predict", "--url", "http://fake", str(tmp_path / "x.npy"), "--model", "beta", "--json")
    assert predicted.exit_code == 1
    assert predicted.stdout == ""
    assert_facts(predicted.stderr, "'beta' | not finite | 1 of 3 images")


def test_probe_checks_the_output_file_before_the_first_request(tmp_path: Path) -> None:
    transport = house()
    with quiet_console() as console, pytest.raises(IsADirectoryError):
        probe(transport, write_npz(tmp_path), tmp_path, console=console)
    assert transport.requests == []


def test_probe_prints_the_table_even_if_the_result_cannot_be_written(tmp_path: Path) -> None:
    class Blocking(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
            (tmp_path / "noise.json").mkdir(exist_ok=True)
            return super().infer(model, inputs, outputs, *rest, **options)

    data = write_npz(tmp_path)
    with quiet_console() as console:
        with pytest.raises(IsADirectoryError) as caught:
            probe(Blocking({"ensemble": ensemble()}), data, tmp_path / "noise.json", sigmas=[8], limit=1, console=console)
        shown = console.export_text()
    assert caught.value.filename == str(tmp_path / "noise.json")
    assert_facts(shown, "1 model | 2 queries")
    assert_facts(shown, "accuracy: of all 1 image")
    assert str(tmp_path) not in shown
    (tmp_path / "noise.json").rmdir()
    transport = FakeTransport({"ensemble": ensemble()})
    with quiet_console() as console:
        outcome = probe(transport, data, tmp_path / "noise.json", sigmas=[8], limit=1, resume=True, console=console)
        assert_facts(console.export_text(), "1 model | nothing left to ask")
    assert outcome.targets[0].queries.counted == 2
    assert json.loads((tmp_path / "noise.json").read_text()) == outcome.json()
    assert not (tmp_path / "noise.ledger").exists()


def test_probe_measures_the_same_over_both_protocols(triton: Any, tmp_path: Path) -> None:
    results: list[Any] = []
    for url in (triton.grpc_url, triton.http_url):
        out = tmp_path / "noise.json"
        data = str(write_npz(tmp_path))
        done = run("probe", "noise", url, "--dataset", data, "--sigmas", "8,64", "--limit", "20", "--seed", "2", "--out", str(out))
        assert done.exit_code == 0, done.output
        assert str(out) in done.output.replace("\n", "")
        results.append(json.loads(out.read_text()))
    assert results[0]["data"] == results[1]["data"]
    assert results[0]["data"]["n"] == 20
    assert [target["name"] for target in results[0]["targets"]] == ["ensemble", "alpha", "beta"]
    for other, one in zip(results[0]["targets"], results[1]["targets"], strict=True):
        assert other == one
    assert results[0]["server"]["name"] == "triton"


def test_probe_prints_its_result_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: house())
    out = tmp_path / "noise.json"
    done = run("probe", "noise", "http://fake", "--dataset", str(write_npz(tmp_path)), "--sigmas", "8", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(out.read_text())


def test_quiet_leaves_the_result_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: house())
    monkeypatch.setattr("defensemble.cli.actions.probe._LINE_S", 0)
    words = ("probe", "noise", "http://fake", "--dataset", str(write_npz(tmp_path, 20)), "--sigmas", "8", "--limit", "50")
    done = run(*words, "--out", str(tmp_path / "a.json"))
    assert_facts(done.stdout, "queries | only | wrote")
    assert_facts(done.stderr, "note: | 20 images | --limit 50 | ensemble: 40 of 40")
    quiet = run(*words, "--out", str(tmp_path / "b.json"), "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert_facts(quiet.stdout, "Gaussian noise: accuracy | wrote")
    assert [word for word in ("queries", "only") if word in quiet.stdout] == []


def test_what_takes_long_is_printed_before_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    class Crafting(Noise):
        def cost_of_preparing(self, rows: Any) -> str:
            return f"crafting {len(rows)} examples"

        def prepare(self, *arguments: Any) -> Any:
            seen.extend(caplog.messages)
            return super().prepare(*arguments)

    caplog.set_level("INFO", "defensemble.cli")
    arguments = ProbeArguments("fake", str(write_npz(tmp_path)), tmp_path / "noise.json", transport=house())
    with quiet_console() as console:
        run_probe(Crafting((8.0,)), arguments, console=console)
    assert seen == ["crafting 30 examples"]


def test_the_preview_of_an_attack_is_that_of_the_responses_only(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_console() as console:
        bars = _RunBars(progress_bar(console), print)
        bars.on_preview(Preview({"ensemble": 5000}, {"ensemble": 100.0}, is_limit=True))
        bars.on_preview(Preview({"ensemble": 5000}, {"ensemble": 100.0}, is_limit=False))
    attack, noise = capsys.readouterr().out.splitlines()
    assert_facts(attack, "at most 5,000 queries | responses take at most about 50 s | the attack's own computation")
    assert_facts(noise, "1 model, 5,000 queries | : about 50 s")


def test_probe_exits_with_status_1_if_a_model_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: CrashingTransport())
    done = run(
        "probe",
        "noise",
        "http://fake",
        "--dataset",
        str(write_npz(tmp_path)),
        "--target",
        "alpha",
        "--target",
        "beta",
        "--out",
        str(tmp_path / "n"),
    )
    assert done.exit_code == 1
    assert_facts(done.output, "2 of the models | null | alpha | ConnectionFailedError | the server crashed")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"source": "nothing.npz"}, "nothing.npz"),
        ({"source": "some/where"}, "some/where | folder | .npz"),
        ({"targets": ["alpha", "alpha"]}, "alpha | twice"),
        ({"targets": ["gamma"]}, "'gamma' | alpha"),
        ({"resume": True}, "noise.ledger | no unfinished run | --resume"),
        ({"out": Path("results.ledger")}, "--out | results.ledger | results.json"),
        ({"limit": 2, "shard": (3, 3)}, "2 images | 3 shards"),
        ({"sigmas": [0]}, "sigmas | positive"),
        ({"sigmas": [1e308]}, "sigmas | positive | 2550"),
    ],
)
def test_probe_refuses_bad_values(tmp_path: Path, options: dict[str, Any], facts: str) -> None:
    arguments = {"source": write_npz(tmp_path), **options}
    arguments["out"] = tmp_path / arguments.get("out", "noise.json")
    with quiet_console() as console, raises((InputError, ModelNotFoundError, FileNotFoundError), facts):
        probe(house(), console=console, **arguments)
    assert "queries" not in console.export_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz"]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--shard", "0/3"], "--shard | K/N | '0/3'"),
        (["--shard", "4/3"], "--shard | K/N | '4/3'"),
        (["--shard", "1of3"], "--shard | K/N | '1of3'"),
        (["--shard", "2/3", "--limit", "2"], "2 images | 3 shards"),
        (["--answers", "logits"], "--answers | 'top-1'"),
        (["--input", "uint8"], "--input | '8bit'"),
        (["--kind", "pink"], "--kind | 'salt-and-pepper'"),
        (["--seed", "-1"], "--seed | -1"),
        (["--resume"], "noise.ledger | no unfinished run"),
        (["--out", "data.npz/noise.json"], "data.npz"),
        (["--out", "/proc/noise.json"], "/proc/noise.json"),
    ],
)
def test_probe_refuses_bad_options_before_the_first_counted_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], facts: str
) -> None:
    transport = house()
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: transport)
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path)
    done = run("probe", "noise", "http://fake", "--dataset", "data.npz", *options)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert_facts(done.output, facts)
    assert all(count == 1 for count in transport.images.values()), "look-ups only"
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("answers", ["labels", "top-1"])
def test_probe_names_what_models_respond_with_and_receive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    transport = house()
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: transport)
    monkeypatch.chdir(tmp_path)
    data = write_npz(tmp_path)
    options = ("--answers", answers, "--input", "8bit", "--sigmas", "8", "--shard", "2/3", "--kind", "uniform", "--json")
    done = run("probe", "noise", "http://fake", "--dataset", str(data), *options)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["answers"], result["input"], result["shard"], result["data"]["n"]) == (answers, "8bit", [2, 3], 10)
    assert "uniform" in result["threat_model"]
    assert result["targets"][0]["uncertainty"] == {}
    assert transport._is_closed


def test_probe_refuses_models_that_differ_in_shape_or_classes(tmp_path: Path) -> None:
    transport = FakeTransport({"ensemble": ensemble(), "other": member(1, class_names=("x", "y", "z"))})
    with quiet_console() as console, raises(InputError, "'ensemble' | 'other' | image shape | classes"):
        probe(transport, write_npz(tmp_path), tmp_path / "noise.json", console=console)
    with quiet_console() as console, raises(ModelNotFoundError, "classifier | none"):
        probe(FakeTransport({}), "digits", tmp_path / "noise.json", console=console)


def test_probe_does_not_hide_bugs(tmp_path: Path) -> None:
    class Buggy(FakeTransport):
        def infer(self, model: str, inputs: Any, outputs: Any, *rest: Any, **options: Any) -> Any:
            raise NotReadyError("loading") if not outputs[0].class_count else ZeroDivisionError

    with quiet_console() as console, pytest.raises(ZeroDivisionError):
        probe(Buggy(house()._models), write_npz(tmp_path), tmp_path / "noise.json", console=console)
