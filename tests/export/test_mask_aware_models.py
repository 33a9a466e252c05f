"""Mask-aware members in a repository: their configurations, fused graphs, profiles and checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from defensemble.ensembles import Ensembles
from defensemble_export import (
    ExportOptions,
    OnnxSource,
    ProfileError,
    check_repository,
    export_networks,
    fuse_repository,
    fused_onnx,
    planned_files,
    profile_states,
    write_files,
    write_profile,
)
from defensemble_export.editing.member_info import read_member_info
from defensemble_export.editing.pruning import Prunable, prune_files
from defensemble_export.editing.refreshing import version_copy
from defensemble_export.graphs.mask_aware import is_mask_aware, plain_onnx
from defensemble_export.members.mask_aware import form_problems
from defensemble_ops import DOMAIN, OPERATOR, BuildError
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.names import PROFILES
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config
from defensemble_repository.reader import read_config
from defensemble_repository.target import ANY
from defensemble_repository.transaction import remove_files
from defensemble_repository.view import RepositoryView
from tests.support import masked
from tests.support.facts import assert_facts, raises

LIBRARY = "/opt/defensemble/libdefensemble_ops.so"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of the ensemble of `aware`, which is mask-aware, and `plain`."""
    return masked.write_repository(tmp_path / "repository", {"aware": True, "plain": False})


def stated(repository: Path, model: str) -> dict[str, str]:
    """Return what a configuration states about the forms of its versions."""
    parameters = read_config(repository / model).parameters
    return {key: value.string_value for key, value in parameters.items() if key.startswith("mask_aware.")}


def set_parameter(repository: Path, model: str, key: str, value: str | None) -> None:
    path = repository / model / "config.pbtxt"
    config = config_from_file(path)
    if value is None:
        del config.parameters[key]
    else:
        config.parameters[key].string_value = value
    path.write_bytes(pbtxt_from_config(config))


def info(repository: Path, model: str, version: int = 1) -> bool | None:
    return read_member_info(RepositoryView(repository), Member(model, version), 1.0).mask_aware


def test_a_configuration_states_which_of_its_versions_are_mask_aware(repository: Path) -> None:
    assert stated(repository, "aware") == {"mask_aware.1": OPERATOR}
    assert stated(repository, "plain") == {}
    assert (info(repository, "aware"), info(repository, "plain")) == (True, False)
    masked.write_repository(repository, {"aware": False, "plain": True}, replace=True)
    assert stated(repository, "aware") == {"mask_aware.1": OPERATOR}
    assert stated(repository, "plain") == {"mask_aware.2": OPERATOR}
    assert (info(repository, "aware", 2), info(repository, "plain", 2)) == (False, True)
    new, files = version_copy(repository, "aware", 1)
    write_files(repository, files)
    assert (new, stated(repository, "aware")) == (3, {"mask_aware.1": OPERATOR, "mask_aware.3": OPERATOR})
    pruned = Prunable("aware", 1, "unused", 0, tuple(f"aware/1/{path.name}" for path in sorted((repository / "aware/1").iterdir())))
    writes, removals = prune_files(repository, [pruned])
    remove_files(repository, removals)
    write_files(repository, writes)
    assert stated(repository, "aware") == {"mask_aware.3": OPERATOR}


def test_edits_and_their_rollback_keep_the_form_of_members(repository: Path) -> None:
    ensembles = Ensembles(repository)
    before = (repository / "aware/config.pbtxt").read_bytes()
    ensembles.weight("ensemble", {"aware": 2.0})
    ensembles.rollback(name="ensemble")
    assert (repository / "aware/config.pbtxt").read_bytes() == before
    (state,) = ensembles.show("ensemble")
    assert {member.info.model: member.info.mask_aware for member in state.members} == {"aware": True, "plain": False}


def test_check_compares_the_configuration_with_the_file(repository: Path) -> None:
    assert check_repository(RepositoryView(repository), ANY) == []
    set_parameter(repository, "aware", "mask_aware.1", None)
    set_parameter(repository, "plain", "mask_aware.1", OPERATOR)
    aware, plain = sorted(check_repository(RepositoryView(repository), ANY), key=lambda finding: finding.model)
    assert not aware.is_error
    assert_facts(aware.text, f"mask_aware.1 is missing | {repository / 'aware/1/model.onnx'} | '{OPERATOR}'")
    assert_facts(plain.text, f"mask_aware.1 | {repository / 'plain/1/model.onnx'} | plain graph")
    set_parameter(repository, "aware", "mask_aware.1", "MaskedNetwork_v9")
    assert_facts(str(check_repository(RepositoryView(repository), ANY)[0]), f"MaskedNetwork_v9 | {OPERATOR}")


def test_a_fused_graph_has_an_operator_for_each_mask_aware_member(tmp_path: Path) -> None:
    repository = masked.write_repository(tmp_path / "repository", {"a": True, "b": False, "c": True})
    fuse_repository(repository, "ensemble", "fused", images=masked.images(9))
    stored = onnx.load(repository / "fused/1/model.onnx")
    onnx.checker.check_model(stored, full_check=True)
    nodes = [node for node in stored.graph.node if node.domain == DOMAIN]
    assert [(node.op_type, node.overload) for node in nodes] == [(OPERATOR, "a"), (OPERATOR, "c")]
    assert {(function.domain, function.name, function.overload) for function in stored.functions} == {
        (DOMAIN, OPERATOR, "a"),
        (DOMAIN, OPERATOR, "c"),
    }
    contents = [(repository / name / "1/model.onnx").read_bytes() for name in "abc"]
    plain = onnx.load_model_from_string(fused_onnx(contents, Ensemble("ensemble", tuple(map(Member, "abc")))))
    again = plain_onnx(stored)
    assert {tensor.name for tensor in again.graph.initializer} == {tensor.name for tensor in plain.graph.initializer}
    assert {node.SerializeToString() for node in again.graph.node} == {node.SerializeToString() for node in plain.graph.node}
    onnx.checker.check_model(again, full_check=True)
    assert stated(repository, "fused") == {"mask_aware.1": OPERATOR}
    entry = json.loads((repository / "fused/1/model.onnx.json").read_bytes())["mask_aware"]
    assert (entry["operator"], entry["reason"]) == (OPERATOR, "requested")
    assert max(entry["verification"][path] for path in ("operator", "fallback")) <= 1e-5
    assert check_repository(RepositoryView(repository), ANY) == []


def test_a_fused_graph_of_plain_members_or_of_mixed_precisions_stays_plain(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = masked.write_repository(tmp_path / "plain", {"a": False, "b": False})
    fuse_repository(plain, "ensemble", "fused", images=masked.images(2))
    onnx.save(masked.masked_onnx(3), tmp_path / "half.onnx")
    half, sample = OnnxSource(tmp_path / "half.onnx", "half", class_names=masked.CLASSES), masked.images(20)
    export_networks([half], repository, replace=True, options=ExportOptions("fp16"), images=sample)
    lines: list[str] = []
    fuse_repository(repository, "ensemble", "mixed", images=masked.images(2), on_progress=lines.append)
    assert lines == []

    def fails(on_progress: object = None) -> Path:
        raise BuildError("no C++ compiler was found")

    monkeypatch.setattr("defensemble_export.members.mask_aware.library_path", fails)
    other = masked.write_repository(tmp_path / "other", {"a": True, "b": True})
    fuse_repository(other, "ensemble", "fused", images=masked.images(2), on_progress=lines.append)
    assert_facts("".join(lines), "fused@1 | plain | no C++ compiler")
    for folder, name in ((plain, "fused"), (repository, "mixed"), (other, "fused")):
        assert not is_mask_aware(onnx.load(folder / name / "1/model.onnx"))
        assert stated(folder, name) == {}
        entry = json.loads((folder / name / "1/model.onnx.json").read_bytes())["mask_aware"]
        assert entry["operator"] is None
        assert entry["reason"]


def test_versions_without_the_form_that_was_wanted_are_reported() -> None:
    report = json.dumps({"mask_aware": {"operator": None, "reason": "no compiler", "problem": "no compiler"}}).encode()
    files = {"net/1/model.onnx": b"", "net/1/model.onnx.json": report, "net/config.pbtxt": b"", "old/2/model.onnx.json": b"{}"}
    (line,) = form_problems(files)
    assert_facts(line, "net@1 | no compiler")


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_registers_the_library_unless_it_is_asked_for(repository: Path, profile: str) -> None:
    for name in ("aware", "plain"):
        (repository / name / "1/model.plan").write_bytes(b"plan")
    write_profile(repository, profile)
    for name in ("aware", "plain"):
        config = config_from_file(repository / name / f"configs/{profile}.pbtxt")
        assert not config.HasField("model_operations")
        serves_aware = name == "aware" and profile != "gpu-tensorrt"
        assert ("mask_aware.1" in config.parameters) == serves_aware, "it describes the file that is served"


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "cpu"])
def test_profiles_of_gpus_never_register_the_library(repository: Path, profile: str) -> None:
    for name in ("aware", "plain"):
        (repository / name / "1/model.plan").write_bytes(b"plan")
    path = repository / "aware/config.pbtxt"
    config = config_from_file(path)
    config.model_operations.op_library_filename.extend([LIBRARY, "/opt/other.so"])
    path.write_bytes(pbtxt_from_config(config))
    write_profile(repository, profile)
    written = config_from_file(repository / f"aware/configs/{profile}.pbtxt")
    assert list(written.model_operations.op_library_filename) == ["/opt/other.so"], "libraries of users stay"
    with raises(ProfileError, f"cpu | '{profile}'"):
        write_profile(repository, profile, op_library=LIBRARY)


def test_the_profile_of_cpus_registers_the_library_for_mask_aware_networks(repository: Path, tmp_path: Path) -> None:
    write_profile(repository, "cpu", op_library=LIBRARY)
    configs = {name: config_from_file(repository / name / "configs/cpu.pbtxt") for name in ("aware", "plain")}
    assert list(configs["aware"].model_operations.op_library_filename) == [LIBRARY]
    assert not configs["plain"].HasField("model_operations")
    assert {state.state for state in profile_states(repository) if state.profile == "cpu"} == {"written"}
    assert write_profile(repository, "cpu", op_library=LIBRARY) == []
    assert write_profile(repository, "cpu") == ["aware/configs/cpu.pbtxt"], "without the option, the library is left out again"
    with raises(ProfileError, "'ops.so' | absolute"):
        write_profile(repository, "cpu", op_library="ops.so")
    plain = masked.write_repository(tmp_path / "plain", {"a": False})
    with raises(ProfileError, f"{plain} | mask-aware | --op-library"):
        write_profile(plain, "cpu", op_library=LIBRARY)


def test_answers_are_those_of_the_plain_members(repository: Path) -> None:
    sample = masked.images(6)
    content = (repository / "aware/1/model.onnx").read_bytes()
    np.testing.assert_array_equal(masked.logits(content, sample), masked.logits(masked.serialised(masked.masked_onnx(1)), sample))
    assert planned_files(repository, [masked.member("aware")], ensemble=None, replace=True)
