"""`--mask-aware`, and what `export`, `export-report`, `ensemble show` and `profile write` print about mask-aware files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble.cli.actions.mask_aware_reports import form_notes
from tests.support import masked
from tests.support.facts import assert_each, assert_facts


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of `aware`, exported with `--mask-aware on`, and `plain`, exported with `off`."""
    folder = tmp_path_factory.mktemp("mask_aware")
    for name, mode in (("aware", "on"), ("plain", "off")):
        onnx.save(masked.masked_onnx(), folder / f"{name}.onnx")
        words = ["--name", name, "--mask-aware", mode, "--replace", "--repository", folder / "repository"]
        result = done("import-onnx", folder / f"{name}.onnx", *words)
        assert (": fp32, mask-aware," in result.stderr) == (name == "aware")
    return folder / "repository"


def test_the_report_states_the_form_why_and_what_it_saves(repository: Path) -> None:
    aware, plain = ([line for line in done("export-report", "--repository", repository).stdout.splitlines() if f"{name}@1: " in line]
                    for name in ("aware", "plain"))  # fmt: skip
    assert_each(aware, "MaskedNetwork_v1 | requested", "dense | without padding | kept | at 16 | at 1", "operator | without it")
    assert_each(plain, "plain file | --mask-aware off")


def test_the_layers_are_shown_and_in_json(repository: Path) -> None:
    shown = done("export-report", "--layers", "--repository", repository).stdout
    table = shown.partition("aware@1, multiplications per image")[2]
    assert_each([line for line in table.splitlines() if line.split()[:1] in (["first"], ["second"])], "first | 0.01 M", "second | 0.04 M")
    values = {
        entry["model"]: entry["report"]["mask_aware"]
        for entry in json.loads(done("export-report", "--json", "--repository", repository).stdout)
    }
    assert [layer["name"] for layer in values["aware"]["layers"]][:2] == ["first", "second"]
    assert (values["plain"]["operator"], values["plain"]["reason"]) == (None, "--mask-aware off")


def test_only_the_first_nodes_at_which_masks_are_lost_are_listed(repository: Path) -> None:
    entry = json.loads((repository / "aware/1/model.onnx.json").read_bytes())["mask_aware"]
    stops = [{"node": f"node_{number}", "reason": "unknown"} for number in range(5)]
    lines = form_notes("net@1", {**entry, "stopped_at": stops, "verification": None})[2:]
    assert_each(lines, "node_0 | unknown", "node_1", "node_2", "2 other nodes | --json")


def test_the_members_of_an_ensemble_show_their_form(repository: Path) -> None:
    shown = done("ensemble", "show", "--repository", repository)
    rows = [line for line in shown.stdout.splitlines() if "@1" in line]
    assert ["mask-aware" in row for row in rows] == [True, False]
    document = json.loads(done("ensemble", "show", "--format", "json", "--repository", repository).stdout)
    members = (document if isinstance(document, dict) else document[0])["members"]
    assert {member["model"]: member["mask_aware"] for member in members} == {"aware": True, "plain": False}


def test_a_network_without_masks_or_in_another_precision_is_refused(tmp_path: Path) -> None:
    onnx.save(masked.masked_onnx(has_masks=False), tmp_path / "net.onnx")
    words = ("import-onnx", tmp_path / "net.onnx", "--name", "net", "--mask-aware", "on", "--repository", tmp_path / "repository")
    refused = run(*words)
    assert refused.exit_code == 1
    assert_facts(refused.stderr, "net.onnx | no masks | --mask-aware off")
    refused = run(*words, "--precision", "fp16")
    assert refused.exit_code == 2
    assert_facts(refused.stderr, "--mask-aware on | fp32 | fp16")
    assert not (tmp_path / "repository").exists()
    refused = run("fuse", "fused", "--mask-aware", "off", "--repository", tmp_path)
    assert refused.exit_code == 2
    assert_facts(refused.stderr, "--mask-aware | CHECKPOINTs")


def test_the_library_of_the_operator_is_for_the_profile_cpu(repository: Path, tmp_path: Path) -> None:
    refused = run("profile", "write", "gpu", "--op-library", "/opt/ops.so", "--repository", repository)
    assert refused.exit_code == 2
    assert_facts(refused.stderr, "--op-library | cpu")
    folder = masked.write_repository(tmp_path / "repository", {"aware": True})
    written = done("profile", "write", "cpu", "--op-library", "/opt/ops.so", "--repository", folder)
    assert written.stdout.endswith("--profile cpu --runtime docker\n")
    assert 'op_library_filename: "/opt/ops.so"' in (folder / "aware/configs/cpu.pbtxt").read_text()
