"""`probe suite`: each probe has its result, and an interrupted suite goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError
from defensemble.cli.actions import probe_suite
from defensemble.cli.actions.probe import ProbeArguments, run_probe
from defensemble.cli.actions.probe_suite import run_suite
from defensemble.probes import ProbeOutcome
from defensemble.probes.base import Probe
from defensemble.probes.suite import WORST_CASE
from defensemble_training import CheckpointError
from tests.support.facts import raises
from tests.support.fakes import house
from tests.support.tiny import images, logits

pytestmark = pytest.mark.slow


def test_a_suite_goes_on_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = images(12)
    np.savez(tmp_path / "data.npz", images=batch, labels=logits(1, batch).argmax(axis=1))
    transport = house()
    arguments = ProbeArguments(
        "fake", str(tmp_path / "data.npz"), tmp_path / "suite.json", targets=("alpha", "ensemble"), budget=30, transport=transport
    )
    run_suite(arguments, (), steps=10)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"wrote {tmp_path / 'suite.json'}")
    names = ["suite-boundary.json", "suite-noise.json", "suite-square.json"]
    assert sorted(path.name for path in tmp_path.glob("suite-*")) == names
    result = json.loads((tmp_path / "suite.json").read_text())
    assert [condition["name"].partition(":")[0] for condition in result["conditions"]] == ["noise", "square", "boundary", WORST_CASE]
    for target in result["targets"]:
        rates = [entry["accuracy"]["value"] for entry in target["conditions"]]
        assert rates[-1] <= min(rates[:-1])

    assert not list(tmp_path.glob("*.ledger"))
    with raises(InputError, "no unfinished suite | --resume"):
        run_suite(dataclasses.replace(arguments, resume=True), (), steps=10)


def test_a_suite_reads_its_surrogates_before_the_first_query(tmp_path: Path) -> None:
    batch = images(12)
    np.savez(tmp_path / "data.npz", images=batch, labels=logits(1, batch).argmax(axis=1))
    (tmp_path / "other.safetensors").write_bytes(b"other")
    transport = house()
    arguments = ProbeArguments("fake", str(tmp_path / "data.npz"), tmp_path / "suite.json", targets=("alpha",), transport=transport)
    with pytest.raises(CheckpointError):
        run_suite(arguments, (tmp_path / "other.safetensors",), steps=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "other.safetensors"]


def test_an_interrupted_suite_is_resumed_with_the_same_settings_images_and_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(12)
    np.savez(tmp_path / "data.npz", images=batch, labels=logits(1, batch).argmax(axis=1))
    np.savez(tmp_path / "other.npz", images=batch[:8], labels=logits(1, batch[:8]).argmax(axis=1))
    transport = house()
    data = str(tmp_path / "data.npz")
    arguments = ProbeArguments("fake", data, tmp_path / "whole.json", targets=("alpha",), budget=30, transport=transport)
    run_suite(arguments, (), steps=10)
    arguments = dataclasses.replace(arguments, out=tmp_path / "suite.json")

    def interrupted_at_boundary(probe: Probe, *given: Any, **options: Any) -> ProbeOutcome:
        if probe.name == "boundary":
            raise KeyboardInterrupt
        return run_probe(probe, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(probe_suite, "run_probe", interrupted_at_boundary)
        with pytest.raises(KeyboardInterrupt):
            run_suite(arguments, (), steps=10)
    resumed = dataclasses.replace(arguments, resume=True)
    for change in ({"seed": 5}, {"input": "8bit"}, {"targets": ("ensemble",)}, {"source": str(tmp_path / "other.npz")}):
        with raises(InputError, "suite-noise.ledger | other settings"):
            run_suite(dataclasses.replace(resumed, **change), (), steps=10)
    run_suite(resumed, (), steps=10)
    whole, again = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "suite.json"))
    assert again["targets"][0]["per_image"] == whole["targets"][0]["per_image"]
    assert again["targets"][0]["queries"]["counted"] == whole["targets"][0]["queries"]["counted"]
    assert not list(tmp_path.glob("*.ledger"))
