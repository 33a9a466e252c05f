"""`defensemble export-report`: the table, JSON, and models without a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble.cli.actions.reports import summary
from defensemble_export.entries.members import ExportedMember
from tests.support import foreign_models, tiny
from tests.support.facts import assert_facts


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of `net`, which was imported, and of `alpha` and `beta`, which have no report."""
    folder = tiny.write_repository(tmp_path_factory.mktemp("reports") / "repository")
    file = foreign_models.write(folder.parent, foreign_models.classifier())
    done = run("import-onnx", file, "--name", "net", "--no-ensemble", "--repository", folder)
    assert done.exit_code == 0, done.output
    assert "ensemble: " not in done.stdout
    assert done.stdout.endswith(f"serve --repository {folder}\n")
    return folder


def test_the_table_and_the_json_output_have_the_same_models(repository: Path) -> None:
    shown = run("export-report", "--repository", repository)
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines() if "@1 " in line] == ["alpha@1", "beta@1", "net@1"]
    assert [line.split(":")[0] for line in shown.stdout.splitlines() if ": no report: " in line] == ["alpha@1", "beta@1"]
    output = json.loads(run("export-report", "--repository", repository, "--json").stdout)
    assert [(entry["model"], entry["version"]) for entry in output] == [("alpha", 1), ("beta", 1), ("net", 1)]
    assert output[2]["report"]["schema"] == "defensemble.export/1"
    assert (output[0]["report"], output[2]["problem"]) == (None, None)
    assert "model.onnx.json" in output[0]["problem"]


def test_models_may_be_named(repository: Path) -> None:
    output = json.loads(run("export-report", "net", "--repository", repository, "--json").stdout)
    assert [entry["model"] for entry in output] == ["net"]
    unknown = run("export-report", "net", "nothing", "--repository", repository)
    assert unknown.exit_code == 1
    assert_facts(unknown.stderr, f"{repository} | nothing | alpha | beta | net")


def test_the_summary_of_an_export_states_that_the_images_are_some_of_those_that_it_names() -> None:
    values = {"agreement": 1.0, "n": 67, "largest_probability_difference": 1e-7, "images": "the first 1000 test images of digits"}
    member = ExportedMember("net", b"", (1, 8, 8), 1, ("a",), None, report=json.dumps({"verification": values}).encode())
    assert_facts(summary(member), "fp32 | 100.00 % of 67 images | 1e-07 | taken from the first 1000")


def test_quiet_prints_results_only(repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(repository, tmp_path / "repository")
    done = run("fuse", "fused", "--quiet", "--repository", folder)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "fused" in done.stdout
