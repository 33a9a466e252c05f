"""`probe compare`, `probe merge` and `--fail-under`, on result files and a server in this process."""

from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from rich.console import Console

from defensemble import FakeModel, FakeTransport
from defensemble.cli import cli
from defensemble.cli.actions.probe import ProbeArguments, finish, run_probe
from defensemble.probes.noise import Noise
from defensemble.probes.outcome import ProbeOutcome
from defensemble.probes.outcome_reader import read_outcome
from defensemble.results import write_result
from tests.support.facts import assert_facts
from tests.support.outcomes import attack_outcome, outcome, split, target


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], terminal_width=120)


def written(folder: Path, name: str, one: ProbeOutcome) -> Path:
    path = folder / name
    write_result(path, one.json())
    return path


def test_two_results_are_compared_as_tables_and_as_json(tmp_path: Path) -> None:
    whole = outcome(50)
    after = replace(whole, seed=4, targets=(replace(target("alpha2", whole.labels, ["sigma 8", "sigma 32"]), name="alpha"),))
    a, b = written(tmp_path, "a.json", whole), written(tmp_path, "b.json", after)
    assert_facts(run("probe", "compare", a, written(tmp_path, "c.json", replace(whole, shard=(1, 2)))).stdout, "shard: none (A), 1/2 (B)")
    shown = run("probe", "compare", a, b)
    assert shown.exit_code == 0, shown.output
    assert_facts(shown.stdout, f"{a} | {b} | seed: 3 (A), 4 (B) | alpha | digest | clean | sigma 8 | defense rate | B - A | p")
    assert "95 % interval" not in shown.stdout
    values = json.loads(run("probe", "compare", a, b, "--json").stdout)
    assert (values["schema"], values["n_same"]) == ("defensemble.probe-comparison/1", 50)
    [found] = values["targets"]
    clean = found["rates"][0]
    assert f"{100 * clean['a']['value']:.1f}" in shown.stdout
    assert f"{clean['test']['p']:.2g}" in shown.stdout
    named = run("probe", "compare", a, b, "--target", "beta=alpha", "--json")
    assert [(one["a"], one["b"]) for one in json.loads(named.stdout)["targets"]] == [("beta", "alpha")]


def test_results_on_other_images_are_compared_with_intervals(tmp_path: Path) -> None:
    whole = attack_outcome(30)
    a, b = written(tmp_path, "a.json", whole), written(tmp_path, "b.json", replace(whole, rows=whole.rows + 100))
    shown = run("probe", "compare", a, b)
    assert shown.exit_code == 0, shown.output
    assert_facts(shown.stdout, "95 % interval | l2 1")
    assert_facts(shown.stderr, "note: | no image in common")


def test_shards_are_merged_and_an_earlier_result_is_kept(tmp_path: Path) -> None:
    whole = outcome(30)
    files = [written(tmp_path, f"s{number}.json", shard) for number, shard in enumerate(split(whole, 4), 1)]
    out = tmp_path / "all.json"
    out.write_text("earlier")
    done = run("probe", "merge", *reversed(files), "--out", out)
    assert done.exit_code == 0, done.output
    assert_facts(done.stdout, f"{out} | 30 images | 4 shards | all.1.json")
    assert (tmp_path / "all.1.json").read_text() == "earlier"
    merged = read_outcome(out)
    assert merged.shard is None
    assert merged.json()["targets"] == whole.json()["targets"]
    refused = run("probe", "merge", *files[:3], "--out", out)
    assert refused.exit_code == 1
    assert_facts(refused.stderr, "3 of 4 | 4")
    twice = run("probe", "merge", *files, files[0], "--out", out)
    assert_facts(twice.stderr, f"1/4 | {files[0]}")


@pytest.mark.parametrize("verb", ["compare", "merge"])
def test_files_that_are_no_results_are_errors(verb: str, tmp_path: Path) -> None:
    good = written(tmp_path, "good.json", outcome(5))
    old = tmp_path / "old.json"
    old.write_text('{"schema": "defensemble.probe.noise/1"}')
    bad = tmp_path / "bad.json"
    bad.write_text("not JSON")
    options = ["--out", tmp_path / "out.json"] if verb == "merge" else []
    for path, facts in ((old, "older | defensemble probe noise"), (bad, "not JSON")):
        done = run("probe", verb, good, path, *options)
        assert done.exit_code == 1
        assert_facts(done.stderr, f"Error: {path} | {facts}")
    missing = run("probe", verb, good, tmp_path / "goood.json", *options)
    assert missing.exit_code == 2
    assert_facts(missing.stderr, "goood.json | good.json")


def test_a_limit_that_is_no_limit_is_a_wrong_option() -> None:
    done = run("probe", "noise", "http://127.0.0.1:1", "--dataset", "digits", "--fail-under", "defense_rate=70")
    assert done.exit_code == 2
    assert_facts(done.stderr, "--fail-under | defense_rate | 70")


def bright_or_dark(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    bright = images.mean(axis=(1, 2, 3))
    return {"probabilities": np.stack([1 - bright, bright], axis=1)}


def grey_arguments(folder: Path, **values: Any) -> ProbeArguments:
    """The arguments for a probe of one model, which is right about 20 images."""
    images = np.full((20, 1, 4, 4), 0.2, np.float32)
    images[::2] = 0.8
    np.savez(folder / "images.npz", images=images, labels=(np.arange(20) % 2 == 0).astype(np.int64))
    transport = FakeTransport({"grey": FakeModel(bright_or_dark, (1, 4, 4), ("dark", "bright"))})
    return ProbeArguments("http://127.0.0.1:1", str(folder / "images.npz"), folder / "noise.json", transport=transport, **values)


class Broken(io.StringIO):
    """A terminal that takes the cost preview, and not the table."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        if "accuracy" in text:
            raise OSError(self._number, os.strerror(self._number))
        return super().write(text)


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, OSError), (errno.EPIPE, SystemExit)])
def test_a_result_is_written_even_if_it_cannot_be_printed(number: int, raised: type[BaseException], tmp_path: Path) -> None:
    arguments = grey_arguments(tmp_path)
    with pytest.raises(raised) as caught:
        run_probe(Noise((8.0,)), arguments, console=Console(file=Broken(number)))
    assert getattr(caught.value, "filename", "standard output") == "standard output"
    assert read_outcome(arguments.out).targets[0].name == "grey"
    assert not arguments.ledger.exists()


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    done = run("probe", "noise", "http://127.0.0.1:1", "--dataset", "x\x1b]0;y\x07")
    assert done.exit_code != 0
    assert "\\x1b]0;y\\x07" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("limits", "facts"),
    [({"clean": 1.0, "accuracy": 0.4}, None), ({"clean": 1.0, "accuracy": 0.99}, "grey | accuracy | sigma 2550 | 0.99 | n = 20")],
)
def test_a_rate_below_its_limit_is_status_1_after_the_result_was_written(
    limits: dict[str, float], facts: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = grey_arguments(tmp_path, fail_under=limits)
    if facts is None:
        finish(run_probe(Noise((1.0, 2550.0)), arguments), arguments)
    else:
        with pytest.raises(click.exceptions.Exit) as ended:
            finish(run_probe(Noise((1.0, 2550.0)), arguments), arguments)
        assert ended.value.exit_code == 1
    assert read_outcome(arguments.out).targets[0].name == "grey"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--fail-under")]
    assert len(lines) == (facts is not None)
    if facts is not None:
        assert_facts(lines[0], facts)
