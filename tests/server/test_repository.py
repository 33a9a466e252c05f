"""Reading a repository for a server: the models that can be served, the problems of the others, and threads per member."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from defensemble_export import fuse_repository, write_profile
from defensemble_repository.averaging import members_of, read_averaging, read_fused_averaging
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.target import EMBEDDED
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.two_models import write_old_repository


@pytest.mark.parametrize(("members", "cores", "threads"), [(5, 2, 1), (5, 16, 3), (2, 16, 8), (1, 4, 4), (5, 64, 12)])
def test_members_of_the_largest_ensemble_share_the_machine(tmp_path: Path, members: int, cores: int, threads: int) -> None:
    tiny.write_repository(tmp_path / "r", {f"m{index}": index for index in range(members)})
    assert read_repository(tmp_path / "r").threads_per_member(cores) == threads


def test_without_an_ensemble_a_model_uses_all_cores(tmp_path: Path) -> None:
    tiny.write_repository(tmp_path / "r", ensemble=None)
    assert read_repository(tmp_path / "r").threads_per_member(16) == 16


def test_members_and_averaging_are_read_from_the_configurations(tmp_path: Path) -> None:
    repository = read_repository(tiny.write_repository(tmp_path / "r", weight={"beta": 3.0}, average="logits"))
    (ensemble,) = repository.ensembles
    assert ensemble.members == [("alpha", 1), ("beta", 1)]
    assert read_averaging(ensemble.config, repository.configs) == ("logits", [1.0, 3.0])
    assert repository.models["alpha"].is_classifier
    assert not ensemble.is_classifier


def test_ensembles_with_two_averaging_models_are_read(tmp_path: Path) -> None:
    repository = read_repository(write_old_repository(tmp_path / "old"))
    assert repository.problems == {}
    assert repository.two_averaging_models == ["ensemble", "trimmed"]
    assert [read_averaging(model.config, repository.configs) for model in repository.ensembles] == [
        ("probabilities", [2.0, 1.0, 0.5]),
        ("logits", [1.0, 1.0]),
        ("probabilities", [1.0, 3.0]),
    ]
    assert read_repository(tiny.write_repository(tmp_path / "new")).two_averaging_models == []


def edited(repository: Path, name: str, old: str, new: str) -> None:
    path = repository / name / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ('name: "alpha"', 'name: "other"', "name: \"other\" | folder | 'alpha'"),
        ('backend: "onnxruntime"', 'backend: "python"', "'python' | embedded runtime"),
        ("max_batch_size: 8", "max_batch_size: eight", "max_batch_size"),
    ],
)
def test_invalid_edits_are_reported(tmp_path: Path, old: str, new: str, facts: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    edited(folder, "alpha", old, new)
    repository = read_repository(folder, target=EMBEDDED)
    assert list(repository.problems) == ["alpha", "ensemble"]
    assert_facts(repository.problems["alpha"], facts)


def test_valid_edits_are_accepted(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    edited(folder, "alpha", 'name: "alpha"', "# a comment, and no name: Triton uses that of the folder")
    assert read_repository(folder).problems == {}


def test_a_missing_version_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    (folder / "alpha/1").rename(folder / "alpha/2")
    problems = read_repository(folder).problems
    assert_facts(problems["ensemble"], "step 1 | alpha | model_version: 1 | 2")


def test_a_missing_model_file_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    (folder / "alpha/1/model.onnx").unlink()
    assert_facts(read_repository(folder).problems["alpha"], f"{folder}/alpha/1/model.onnx: | version 1 | model file")


def test_a_damaged_newer_version_is_reported_for_the_model_and_its_ensemble(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    tiny.write_second_version(folder, "alpha", 7)
    (folder / "alpha/2/model.onnx").write_bytes(b"damaged")
    problems = read_repository(folder).problems
    assert list(problems) == ["alpha", "ensemble"]
    assert_facts(problems["alpha"], f"{folder}/alpha/2/model.onnx: | version 2 | SHA-256")
    assert f"or move {folder}/alpha/2 away" in problems["alpha"]
    assert_facts(problems["ensemble"], f"'alpha' | {problems['alpha']}")
    (folder / "alpha/2").rename(tmp_path / "out")
    assert read_repository(folder).problems == {}


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ("specific { versions: 1 }", ""),
        ("all { }", "version 2: "),
        ("latest { num_versions: 2 }", "version 2: "),
        ("latest { num_versions: 1 }", "version 2: "),
    ],
)
def test_versions_outside_the_policy_are_not_checked(tmp_path: Path, policy: str, problem: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    tiny.write_second_version(folder, "alpha", 7)
    (folder / "alpha/2/model.onnx").write_bytes(b"damaged")
    config = text_format.Parse((folder / "alpha/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    config.ClearField("version_policy")
    (folder / "alpha/config.pbtxt").write_text(f"{text_format.MessageToString(config)}version_policy {{ {policy} }}\n")
    problems = read_repository(folder).problems
    assert problem in problems.get("alpha", "")
    assert bool(problems) == bool(problem)


def test_an_ensemble_of_a_version_outside_the_policy_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    tiny.write_second_version(folder, "alpha", 7)
    config = text_format.Parse((folder / "alpha/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    config.ClearField("version_policy")
    (folder / "alpha/config.pbtxt").write_text(text_format.MessageToString(config))
    problems = read_repository(folder).problems
    assert list(problems) == ["ensemble"]
    assert_facts(problems["ensemble"], "version 1 | version_policy | 2")


@pytest.mark.parametrize(
    "weights",
    ["junk", "5", "null", "[null, 1]", "[1.0, 1.0, 1.0]", "[]", "{}", "[1, -1]", "[1, NaN]", "[true, 1]", f"[{10**400}, 1]"],
)
def test_invalid_weights_are_reported(tmp_path: Path, weights: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    name = next(path.name for path in folder.iterdir() if path.name.startswith("average_"))
    edited(folder, name, '"[1.0, 1.0]"', f'"{weights}"')
    repository = read_repository(folder)
    assert list(repository.problems) == ["ensemble"]
    assert f"{folder}/{name}/config.pbtxt:" in repository.problems["ensemble"]
    assert "weight" in repository.problems["ensemble"]


def test_weights_follow_the_numbers_of_logits_in_any_step_order(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r", weight={"alpha": 1.0, "beta": 3.0})
    configs = read_repository(folder).configs
    configs["ensemble"].ensemble_scheduling.step.sort(key=lambda step: step.model_name, reverse=True)
    assert members_of(configs["ensemble"]) == [("beta", 1), ("alpha", 1)]
    assert read_averaging(configs["ensemble"], configs) == ("probabilities", [3.0, 1.0])


def test_an_unknown_average_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    name = next(path.name for path in folder.iterdir() if path.name.startswith("average_"))
    edited(folder, name, '"probabilities"\n  }', '"median"\n  }')
    problems = read_repository(folder).problems
    assert list(problems) == ["ensemble"]
    assert f"{folder}/{name}/config.pbtxt:" in problems["ensemble"]
    assert "median" in problems["ensemble"]


@pytest.mark.parametrize("name", ["my model", "*", "a?b", ".git", "a\nb"])
def test_invalid_folder_names_are_reported(tmp_path: Path, name: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    (folder / "alpha").rename(folder / name)
    assert "Rename it" in read_repository(folder).problems[name]


def test_invalid_entries_do_not_affect_other_models(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r", {"alpha": 1, "beta": 2, "gamma": 3}, ensemble=None)
    (folder / "alpha/1").rename(folder / "alpha/9223372036854775808")
    (folder / "beta/config.pbtxt").unlink()
    (folder / "beta/config.pbtxt").mkdir()
    repository = read_repository(folder)
    assert list(repository.models) == ["gamma"]
    assert set(repository.problems) == {"alpha", "beta"}


@pytest.mark.parametrize("key", ["average", "weights", "members"])
def test_a_fused_graph_is_recognised_by_its_interface_and_parameters(tmp_path: Path, key: str) -> None:
    folder = tiny.write_repository(tmp_path / "r", weight={"beta": 3.0})
    fuse_repository(folder, "ensemble", "fused")
    repository = read_repository(folder)
    model = repository.models["fused"]
    assert model.is_fused
    assert not model.is_ensemble
    assert not model.is_classifier
    assert [name for name, other in repository.models.items() if other.is_fused] == ["fused"], "neither an averaging model nor a member"
    assert read_fused_averaging(model.name, model.config) == ("probabilities", [1.0, 3.0], [("alpha", 1), ("beta", 1)])
    assert repository.threads_per_member(4) == 2, "a fused graph does not change the threads of members"
    del model.config.parameters[key]
    assert not model.is_fused


@pytest.mark.parametrize("key", ["weights", "members", "member_digests"])
def test_deeply_nested_parameters_are_reported(tmp_path: Path, key: str) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    fuse_repository(folder, "ensemble", "fused")
    path = folder / "fused/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "fused")
    config.parameters[key].string_value = "[" * 200_000
    path.write_bytes(pbtxt_from_config(config))
    repository = read_repository(folder)
    assert f"parameter {key} of 'fused'" in repository.problems["fused"]
    assert "ensemble" in repository.models


def test_a_wrong_digest_in_a_profile_is_reported_for_the_profile(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    write_profile(folder, "cpu")
    path = folder / "alpha/configs/cpu.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    config.parameters["sha256.1"].string_value = "0" * 64
    path.write_bytes(pbtxt_from_config(config))
    assert_facts(read_repository(folder, profile="cpu").problems["alpha"], f"sha256.1 | {path} | 0000000000000000...")
    assert read_repository(folder).problems == {}


@pytest.mark.parametrize("file", ["/etc/passwd", "../1/model.onnx", ".."])
def test_a_model_file_outside_the_version_folder_is_reported(tmp_path: Path, file: str) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    path = folder / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    config.default_model_filename = file
    path.write_bytes(pbtxt_from_config(config))
    assert_facts(read_repository(folder).problems["alpha"], "plain name | version's folder")
