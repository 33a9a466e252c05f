"""The tables that probes print."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from defensemble.cli.actions.probe_table import result_table
from defensemble.cli.progress import progress_bar


def suite(names: list[str]) -> dict[str, Any]:
    rate = {"value": 0.5, "successes": 1, "n": 2, "low": 0.1, "high": 0.9}
    conditions = [{"name": name, "accuracy_on_common": rate} for name in names]
    target = {"name": "ensemble", "clean": rate, "conditions": conditions, "attack": None}
    return {"conditions": [{"name": name, "group": ""} for name in names], "targets": [target]}


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
