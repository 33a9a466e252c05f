"""The tables that probes print."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any
from unittest.mock import ANY

import numpy as np
from rich.console import Console
from rich.table import Table

from defensemble.cli.actions.probe_table import caption, result_table
from defensemble.cli.progress import progress_bar
from defensemble.probes.adaptive import Adaptive
from tests.support.facts import assert_facts
from tests.support.outcomes import outcome, target


def suite(names: list[str]) -> dict[str, Any]:
    rate = {"value": 0.5, "successes": 1, "n": 2, "low": 0.1, "high": 0.9}
    conditions = [{"name": name, "accuracy": rate} for name in names]
    target = {"name": "ensemble", "clean": rate, "conditions": conditions, "attack": None, "details": {}}
    return {"conditions": [{"name": name, "group": ""} for name in names], "targets": [target], "data": {"n": 2}}


def printed(table: Table) -> list[list[str]]:
    """The words of each line."""
    output = StringIO()
    Console(width=80, file=output).print(table)
    return [line.split() for line in output.getvalue().splitlines() if line.strip()]


def test_all_columns_are_the_accuracy_of_all_images() -> None:
    """Not of those that all models classify correctly when clean: noise would seem to raise the accuracy of the weaker one."""
    labels = np.zeros(40, np.int64)
    weak, strong = (np.where(np.arange(40) < count, 0, 1) for count in (30, 40))
    models = [replace(target(name, labels, ["sigma 8", "sigma 32"]), name=name) for name in ("weak", "strong")]
    models = [
        replace(one, predicted={"clean": clean, "sigma 8": clean, "sigma 32": clean})
        for one, clean in zip(models, (weak, strong), strict=True)
    ]
    report = replace(outcome(40, tuple(models)), labels=labels).json()
    assert printed(result_table(report))[2:] == [["weak", "75.0", "75.0", "75.0"], ["strong", "100", "100", "100"]]
    assert_facts(caption(report), "accuracy: of all 40 images | Wilson 95 % | 13.0 points")


def test_an_adaptive_probe_has_the_rate_of_its_verdict() -> None:
    labels = np.zeros(200, np.int64)
    predicted = {name: np.where(np.arange(200) < count, 0, 1) for name, count in (("clean", 190), ("pgd16", 138))}
    details = Adaptive.summary({}, labels, labels, predicted)
    report = suite(["pgd16"])
    report["targets"] = [{**report["targets"][0], "details": details}, {**report["targets"][0], "name": "failed"}]
    assert printed(result_table(report)) == [
        ["model", "clean", "pgd16", "worst", "case"],
        ANY,
        ["ensemble", "50.0", "50.0", "69.0"],
        ["failed", "50.0", "50.0", "-"],
    ]
    assert_facts(details["text"], "weakens | 95.0 % | -> 69.0 % | 200 images")


def test_the_table_of_a_suite_fits_into_80_columns() -> None:
    names = ["noise: sigma 8", "transfer: table2-pgd", "square: linf 0.03137", "boundary: l2 0.5", "worst case"]
    output = StringIO()
    Console(width=80, file=output).print(result_table(suite(names)))
    printed = output.getvalue()
    assert [word for word in ("ensemble", "noise", "transfer", "square", "boundary", "worst case") if word not in printed] == []


def test_a_table_that_is_too_wide_has_a_row_per_condition() -> None:
    names = [f"corruption {number} of severity {number}" for number in range(6)]
    output = StringIO()
    Console(width=80, file=output).print(result_table(suite(names)))
    lines = [line.split() for line in output.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["condition", "ensemble"]
    assert lines[2] == ["clean", "50.0"]
    assert [line[-1] for line in lines[3:]] == ["50.0"] * 6


def test_names_of_models_are_neither_markup_nor_commands_of_the_terminal() -> None:
    output = StringIO()
    report = suite(["noise: sigma 8"])
    report["targets"][0]["name"] = "[/x]\x1b[31m"
    Console(width=80, file=output).print(result_table(report))
    assert r"[/x]\x1b[31m" in output.getvalue()
    bar = progress_bar(Console(file=output))
    bar.add_task("[/x]", total=1)
    Console(file=output).print(bar.get_renderable())
    assert "[/x] " in output.getvalue().splitlines()[-1]
