"""The benchmark of the probes, and the page of the zoo's robustness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from benchmarks import robustness
from benchmarks.common.figures import exit_status
from benchmarks.common.servers import write_ensemble_repository
from benchmarks.probes import Sizes, compute_figures, measure, page
from benchmarks.probing.directions import directions_text
from benchmarks.robustness import AVERAGE, MIXED, RESULTS, RUNS, STEPS, TARGETS, Step, collect, run_step
from benchmarks.zoo.plan import FOLDER as ZOO, PLAN
from defensemble.cli.commands.probe import command
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.outcomes import outcome, random_labels, target

GOOD = {"base_share": 0.01, "boundary_per_bare": 0.5, "noise_per_plain": 1.1, "attack_throughput": 0.9, "plain_images_per_s": 400.0}


@pytest.mark.slow
def test_all_is_measured_on_a_served_ensemble(tmp_path: Path) -> None:
    repository = write_ensemble_repository(tmp_path / "repository", [tiny.member("alpha", 1), tiny.member("beta", 2)])
    result = measure(repository, tiny.images(40), Sizes(1, 40, 3, 10, 4, 5))
    assert result["members"] == 2
    assert set(result["figures"]) == set(compute_figures([GOOD]))
    assert all(value > 0 for value in result["rounds"][0].values())
    text = page({**result, "quick": True, "note": "A note."}, "x.json")
    assert "A note." in text
    assert "too short" in text


@pytest.mark.parametrize("miss", [{"base_share": 0.03}, {"boundary_per_bare": 1.2}, {"noise_per_plain": 1.3}, {"attack_throughput": 0.7}])
def test_figures_are_medians_with_goals(miss: dict[str, float]) -> None:
    assert exit_status(compute_figures([GOOD, GOOD, {**GOOD, **miss}])) == 0
    assert exit_status(compute_figures([GOOD, {**GOOD, **miss}, {**GOOD, **miss}])) == 1


def noise(standard: float, defective: float) -> dict[str, Any]:
    whole = outcome(2000)
    targets = [
        replace(target("standard", whole.labels, ["sigma 16"], standard)),
        replace(target("keep0.5", whole.labels, ["sigma 16"], defective)),
    ]
    conditions = (replace(whole.conditions[0], name="sigma 16"),)
    return json.loads(json.dumps(replace(whole, targets=tuple(targets), conditions=conditions).json()))  # type: ignore[no-any-return]


def test_directions_hold_are_reversed_or_are_not_shown() -> None:
    lines = {
        line.split(" | ")[0].strip("| "): line
        for line in directions_text({name: noise(0.9, 0.5) for name in ("noise", "transfer-standard")}).splitlines()
    }
    clean, noisy = lines["a defective network is less accurate on clean images"], lines["... and under noise of sigma 16/255"]
    assert clean.endswith("| yes |")
    assert "n = 2,000" in clean
    assert noisy.endswith("| **no, the reverse** |")
    assert lines["the average of one keep gains on its member keep0.5, clean"].endswith("| not run |")
    alike = directions_text({"transfer-standard": noise(0.7, 0.7)})
    assert_facts(alike.splitlines()[0], "Of 9 claims | 0 held")
    assert_facts(alike, "Of 6 comparisons | 6 not measured")
    assert "| no difference shown |" in alike


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_command_line_accepts_each_probe_of_the_zoo(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {network.name for network in PLAN}
    for name in step.surrogates:
        assert name in names
        (ZOO / f"{name}.safetensors").parent.mkdir(parents=True, exist_ok=True)
        (ZOO / f"{name}.safetensors").touch()
    arguments = step.arguments("http://localhost:1", "cifar10", ["mixed"], Path("x.json"))
    verb = command.commands[arguments[1]]
    assert arguments[0] == "probe"
    assert verb.make_context(arguments[1], arguments[2:]).params["targets"] == ("mixed",)


def test_only_targets_that_a_result_lacks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = next(step for step in STEPS if step.name == "noise")
    labels, measured, is_broken = random_labels(40), [], False
    (tmp_path / RESULTS).mkdir(parents=True)
    (tmp_path / RUNS).mkdir(parents=True)
    run_for_real = robustness._run

    def run(arguments: list[str], *hint: str) -> None:
        if arguments[1] == "merge":
            return run_for_real(arguments, *hint)
        verb = command.commands[arguments[1]]
        values = verb.make_context(arguments[1], arguments[2:]).params
        measured.append((*values["targets"], values["resume"]))
        out = tmp_path / values["out"]
        ledger = out.with_suffix(".ledger")
        targets = [target(name, labels, ["sigma 8", "sigma 32"]) for name in values["targets"]]
        if is_broken:  # as a target that failed: the result exists, and can be continued
            targets = [replace(one, failure="gone") for one in targets]
            ledger.mkdir()
        elif ledger.exists():
            ledger.rmdir()
        out.write_text(json.dumps(outcome(targets=targets).json()))
        if is_broken:
            raise click.ClickException("a target failed")

    monkeypatch.setattr(robustness, "ROOT", tmp_path)
    monkeypatch.setattr(robustness, "_run", run)
    for targets in (["standard"], ["standard"], ["standard", "keep0.5"]):
        run_step(step, "http://localhost:1", "cifar10", targets)
    collect(step)
    assert measured == [("standard", False), ("keep0.5", False)]
    assert step.measured() == ["standard", "keep0.5"]
    is_broken = True
    with pytest.raises(click.ClickException):
        run_step(step, "http://localhost:1", "cifar10", ["mixed"])
    collect(step)
    assert step.measured() == ["standard", "keep0.5"]
    is_broken = False
    run_step(step, "http://localhost:1", "cifar10", ["mixed", "adversarial"])
    collect(step)
    assert measured[3:] == [("mixed", True), ("adversarial", False)]
    assert step.measured() == ["standard", "keep0.5", "mixed", "adversarial"]
    assert {json.loads((tmp_path / step.result).read_text())["targets"][2]["failure"]} == {None}


def test_the_page_has_the_first_table_of_each_result_and_the_checks_that_did_not_pass() -> None:
    checks = "## Sanity checks\n\n- **WARN** a: b\n- **PASS** c: d\n- **PASS** e: f\n"
    head, text = robustness._main_parts(
        f"head\n\n{checks}\n## Overview\n\nall\n\n## Noise\n\nthreat\n\n### First\n\n1\n\n### Second\n\n2\n"
    )
    assert head == "head"
    assert text == "## Sanity checks\n\n2 passed.\n\n- **WARN** a: b\n\n## Overview\n\nall\n\n## Noise\n\n### First\n\n1\n"


def test_surrogates_are_members_of_no_target() -> None:
    used = {name for step in STEPS for name in step.surrogates}
    assert used.isdisjoint({*AVERAGE, *MIXED, *TARGETS})
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert np.all([step.probe in {"transfer", "adaptive"} for step in STEPS if step.surrogates])
