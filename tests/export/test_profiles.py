"""Profiles on disk: their content, transactions, removal without a trace, and rejections."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import (
    EngineCacheOptions,
    ProfileError,
    fuse_repository,
    planned_files,
    profile_states,
    remove_profile,
    write_files,
    write_profile,
)
from defensemble_export.profiles import find_networks
from defensemble_repository.errors import ConfigError
from defensemble_repository.names import PROFILES
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import served_versions
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.broken import content, fill, small_disk
from tests.support.facts import assert_facts, raises
from tests.support.killing import killed_at_each_rename

GPU = schema.ModelInstanceGroup.KIND_GPU


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny.write_repository(tmp_path / "place" / "repository")


def config(path: Path) -> schema.ModelConfig:
    return config_from_pbtxt(path.read_text(), str(path))


def edit(path: Path, **fields: object) -> None:
    changed = config(path)
    changed.MergeFrom(schema.ModelConfig(**fields))
    path.write_bytes(pbtxt_from_config(changed))


def write_plans(repository: Path, version: int = 1, names: tuple[str, ...] = ("alpha", "beta")) -> None:
    for name in names:
        (repository / name / str(version) / "model.plan").write_bytes(f"plan of {name} {version}".encode())


def states(repository: Path, profile: str) -> dict[str, str]:
    return {one.model: one.state for one in profile_states(repository) if one.profile == profile}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_written_and_removed_without_a_trace(repository: Path, profile: str) -> None:
    write_plans(repository)
    before = content(repository.parent)
    written = write_profile(repository, profile)
    assert written == [f"alpha/configs/{profile}.pbtxt", f"beta/configs/{profile}.pbtxt"]
    after = content(repository.parent)
    assert {path for path in after if path not in before} == {
        f"repository/{path}" for path in (*written, "alpha/configs", "beta/configs")
    }, "averaging models and ensembles have none"
    assert {path: after[path] for path in before} == before
    assert states(repository, profile) == {"alpha": "written", "beta": "written"}
    assert write_profile(repository, profile) == [], "files that did not change are not touched"
    assert remove_profile(repository, profile) == written
    assert content(repository.parent) == before


def test_removing_one_profile_keeps_the_others(repository: Path) -> None:
    write_profile(repository, "cpu")
    before = content(repository.parent)
    write_profile(repository, "gpu")
    remove_profile(repository, "gpu")
    assert content(repository.parent) == before


ZEROS = schema.ModelWarmup.Input(data_type=schema.TYPE_FP32, dims=tiny.SHAPE, zero_data=True)
WARMUP = schema.ModelWarmup(name="mine", batch_size=1, inputs={"images": ZEROS})


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_keep_the_interface_and_the_parameters(repository: Path, profile: str) -> None:
    write_plans(repository)
    edit(repository / "alpha/config.pbtxt", model_warmup=[WARMUP], max_batch_size=5)
    write_profile(repository, profile)
    plain, derived = (config(repository / f"alpha/{name}.pbtxt") for name in ("config", f"configs/{profile}"))
    assert [(what, getattr(plain, what) == getattr(derived, what)) for what in FIELDS_THAT_STAY] == [
        (what, True) for what in FIELDS_THAT_STAY
    ]
    assert derived.max_batch_size == 5
    expected = {key: value.string_value for key, value in plain.parameters.items()}
    got = {key: value.string_value for key, value in derived.parameters.items()}
    assert len(got.pop("profile.sha256")) == 64
    if profile == "gpu-tensorrt":
        expected["sha256.1"] = hashlib.sha256(b"plan of alpha 1").hexdigest()
    assert got == expected


FIELDS_THAT_STAY = ("name", "input", "output", "max_batch_size", "version_policy", "dynamic_batching", "model_warmup")


def test_each_profile_sets_device_and_backend(repository: Path) -> None:
    write_plans(repository)
    for profile in PROFILES:
        write_profile(repository, profile, EngineCacheOptions("/engines", 512))
    derived = {profile: config(repository / f"alpha/configs/{profile}.pbtxt") for profile in PROFILES}
    kinds = {profile: [group.kind for group in one.instance_group] for profile, one in derived.items()}
    assert kinds == {"cpu": [schema.ModelInstanceGroup.KIND_CPU], "gpu": [GPU], "gpu-ort-tensorrt": [GPU], "gpu-tensorrt": [GPU]}
    assert {profile: (one.backend, one.default_model_filename) for profile, one in derived.items()} == {
        "cpu": ("onnxruntime", ""),
        "gpu": ("onnxruntime", ""),
        "gpu-ort-tensorrt": ("onnxruntime", ""),
        "gpu-tensorrt": ("tensorrt", "model.plan"),
    }
    accelerators = {profile: one.optimization.execution_accelerators.gpu_execution_accelerator for profile, one in derived.items()}
    assert [profile for profile, found in accelerators.items() if found] == ["gpu-ort-tensorrt"]
    (engines,) = accelerators["gpu-ort-tensorrt"]
    digest = hashlib.sha256(tiny.linear_onnx(1)).hexdigest()
    assert (engines.name, dict(engines.parameters)) == (
        "tensorrt",
        {
            "max_workspace_size_bytes": str(512 * 1024 * 1024),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": f"/engines/alpha-{digest[:16]}",
            "trt_profile_min_shapes": "images:1x1x4x4",
            "trt_profile_opt_shapes": "images:8x1x4x4",
            "trt_profile_max_shapes": "images:8x1x4x4",
        },
    )


def test_the_profile_cpu_removes_gpus_of_config_pbtxt(repository: Path) -> None:
    groups = [schema.ModelInstanceGroup(count=2, kind=GPU, gpus=[0, 1])]
    optimization = schema.ModelOptimizationPolicy()
    optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    edit(repository / "alpha/config.pbtxt", instance_group=groups, optimization=optimization)
    write_profile(repository, "cpu")
    derived = config(repository / "alpha/configs/cpu.pbtxt")
    assert list(derived.instance_group) == [schema.ModelInstanceGroup(count=2, kind=schema.ModelInstanceGroup.KIND_CPU)]
    assert not derived.HasField("optimization")
    assert config(repository / "alpha/config.pbtxt").instance_group[0].kind == GPU


def test_profiles_are_for_networks_and_fused_graphs_not_for_averages(repository: Path) -> None:
    for name, tensor, backend in (("fused", "images", "onnxruntime"), ("text", "tokens", "onnxruntime"), ("python", "images", "python")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1/model.onnx").write_bytes(b"x")
        described = schema.ModelConfig(name=name, backend=backend, max_batch_size=4)
        described.input.add(name=tensor, data_type=schema.TYPE_FP32, dims=[1, 4, 4])
        described.parameters["average"].string_value = "probabilities"
        (repository / name / "config.pbtxt").write_bytes(pbtxt_from_config(described))
    assert list(find_networks(repository)) == ["alpha", "beta", "fused"]
    write_profile(repository, "gpu-ort-tensorrt")
    # Without a digest in config.pbtxt, that of the file is used.
    path = config(repository / "fused/configs/gpu-ort-tensorrt.pbtxt").optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert path.parameters["trt_engine_cache_path"].endswith(f"/fused-{hashlib.sha256(b'x').hexdigest()[:16]}")


@pytest.mark.parametrize("edited", [False, True])
def test_a_new_version_of_a_fused_graph_neither_is_nor_hides_a_hand_edit(repository: Path, edited: bool) -> None:
    fuse_repository(repository, "ensemble", "fused")
    for profile in ("gpu", "gpu-ort-tensorrt"):
        write_profile(repository, profile)
    if edited:
        edit(repository / "fused/configs/gpu.pbtxt", max_batch_size=3)
    write_files(repository, planned_files(repository, [tiny.member("gamma", 5), tiny.member("alpha", 7)], replace=True))
    fuse_repository(repository, "ensemble", "fused", replace=True)
    assert states(repository, "gpu")["fused"] == ("edited by hand" if edited else "written")
    assert states(repository, "gpu-ort-tensorrt")["fused"] == "out of date", "its engines are the first version's"
    assert "gamma/configs/gpu-ort-tensorrt.pbtxt" in write_profile(repository, "gpu-ort-tensorrt")
    derived = config(repository / "fused/configs/gpu-ort-tensorrt.pbtxt")
    assert derived.parameters["members"].string_value == '["alpha@2", "beta@1", "gamma@1"]'
    assert states(repository, "gpu-ort-tensorrt")["fused"] == "written"


@pytest.mark.parametrize(("batch", "dims"), [(0, [1, 1, 4, 4]), (8, [1, -1, 4])])
def test_open_image_sizes_get_no_engine_shapes(repository: Path, batch: int, dims: list[int]) -> None:
    path = repository / "alpha/config.pbtxt"
    changed = config(path)
    changed.max_batch_size = batch
    changed.input[0].dims[:] = dims
    path.write_bytes(pbtxt_from_config(changed))
    write_profile(repository, "gpu-ort-tensorrt")
    (engines,) = config(repository / "alpha/configs/gpu-ort-tensorrt.pbtxt").optimization.execution_accelerators.gpu_execution_accelerator
    assert [key for key in engines.parameters if "shapes" in key] == []


def test_engine_caches_are_separate_per_member_and_need_one_version(repository: Path) -> None:
    messages: list[str] = []
    write_profile(repository, "gpu-ort-tensorrt", on_progress=messages.append)
    assert messages == []
    tiny.write_second_version(repository, "alpha", 7)
    assert states(repository, "gpu-ort-tensorrt") == {"alpha": "out of date", "beta": "written"}
    assert write_profile(repository, "gpu-ort-tensorrt", on_progress=messages.append) == ["alpha/configs/gpu-ort-tensorrt.pbtxt"]
    (text,) = messages
    assert_facts(text, "alpha | 2 versions | ONNX Runtime")
    (engines,) = config(repository / "alpha/configs/gpu-ort-tensorrt.pbtxt").optimization.execution_accelerators.gpu_execution_accelerator
    assert {key for key in engines.parameters if "cache" in key} == set()


def test_a_missing_plan_is_reported_and_nothing_is_written(repository: Path) -> None:
    write_plans(repository, names=("alpha",))
    before = content(repository.parent)
    with pytest.raises(ProfileError) as caught:
        write_profile(repository, "gpu-tensorrt")
    assert_facts(
        str(caught.value), f"'gpu-tensorrt' | beta | version 1 | model.plan | `defensemble build-engine --repository {repository}`"
    )
    assert content(repository.parent) == before
    assert states(repository, "gpu-tensorrt") == {"alpha": "not written", "beta": "version 1 has no model.plan"}


def test_a_new_version_without_a_plan_is_reported_and_rewriting_fixes_it(repository: Path) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    tiny.write_second_version(repository, "alpha", 7)
    assert states(repository, "gpu-tensorrt") == {"alpha": "version 2 has no model.plan", "beta": "written"}
    with raises(ProfileError, "alpha | version 2 | model.plan"):
        write_profile(repository, "gpu-tensorrt")
    write_plans(repository, 2, ("alpha",))
    assert states(repository, "gpu-tensorrt")["alpha"] == "out of date"
    assert write_profile(repository, "gpu-tensorrt") == ["alpha/configs/gpu-tensorrt.pbtxt"], "an export's own changes are no edit by hand"
    derived = config(repository / "alpha/configs/gpu-tensorrt.pbtxt")
    assert derived.parameters["sha256.2"].string_value == hashlib.sha256(b"plan of alpha 2").hexdigest()
    assert derived.parameters["mask_digest.2"].string_value == "new-digest-of-alpha"
    assert read_repository(repository, profile="gpu-tensorrt").problems == {}


def test_versions_outside_the_policy_need_no_plan(repository: Path) -> None:
    tiny.write_second_version(repository, "alpha", 7)
    for policy, versions in (("specific", [1]), ("latest", [2]), ("all", [1, 2]), ("none", [2])):
        changed = config(repository / "alpha/config.pbtxt")
        changed.ClearField("version_policy")
        if policy == "specific":
            changed.version_policy.specific.versions.append(1)
        elif policy == "latest":
            changed.version_policy.latest.num_versions = 1
        elif policy == "all":
            changed.version_policy.all.SetInParent()
        (repository / "alpha/config.pbtxt").write_bytes(pbtxt_from_config(changed))
        assert served_versions(repository / "alpha", changed) == versions
        assert list(read_repository(repository).models["alpha"].served_versions) == versions, "as the server has it"
        missing = f"version {versions[0]} has no model.plan" if len(versions) == 1 else "versions 1, 2 have no model.plan"
        assert states(repository, "gpu-tensorrt")["alpha"] == missing


@pytest.mark.parametrize("edited", ["a field", "a comment", "not ours", "nothing that is a configuration"])
def test_hand_edits_are_kept_without_force(repository: Path, edited: str) -> None:
    write_profile(repository, "gpu")
    clean = content(repository)
    path = repository / "beta/configs/gpu.pbtxt"
    if edited == "a field":
        edit(path, max_batch_size=3)
    elif edited == "a comment":
        path.write_text(f"# mine\n{path.read_text()}")
    elif edited == "not ours":
        path.write_bytes((repository / "beta/config.pbtxt").read_bytes())
    else:
        path.write_bytes(b"\xff[[")
    before = content(repository.parent)
    assert states(repository, "gpu") == {"alpha": "written", "beta": "edited by hand"}
    for act, verb in ((write_profile, "overwrite"), (remove_profile, "remove")):
        with raises(ProfileError, f"by hand | beta/configs/gpu.pbtxt | --force | {verb}"):
            act(repository, "gpu")
        assert content(repository.parent) == before
    assert write_profile(repository, "gpu", force=True) == ["beta/configs/gpu.pbtxt"]
    assert content(repository) == clean
    path.write_bytes((repository / "beta/config.pbtxt").read_bytes())
    assert len(remove_profile(repository, "gpu", force=True)) == 2


def test_a_profile_of_an_edited_config_is_out_of_date(repository: Path) -> None:
    write_profile(repository, "gpu")
    edit(repository / "alpha/config.pbtxt", max_batch_size=4)
    assert states(repository, "gpu") == {"alpha": "out of date", "beta": "written"}
    write_profile(repository, "gpu")
    assert config(repository / "alpha/configs/gpu.pbtxt").max_batch_size == 4


def test_a_profile_written_by_hand_is_listed(repository: Path) -> None:
    (repository / "alpha/configs").mkdir()
    (repository / "alpha/configs/mine.pbtxt").write_bytes((repository / "alpha/config.pbtxt").read_bytes())
    assert states(repository, "mine") == {"alpha": "by hand", "beta": "not written"}


def test_invalid_names_folders_and_settings_are_rejected(repository: Path, tmp_path: Path) -> None:
    with raises(ProfileError, "cpu, gpu, gpu-ort-tensorrt, gpu-tensorrt | 'tpu'"):
        write_profile(repository, "tpu")
    with raises(ProfileError, "'gpu' | none"):
        remove_profile(repository, "gpu")
    for act in (write_profile, remove_profile):
        with pytest.raises(ProfileError, match="does not exist"):
            act(tmp_path / "nowhere", "cpu")
        (tmp_path / "file").touch()
        with pytest.raises(ProfileError, match="file"):
            act(tmp_path / "file", "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProfileError, match="onnxruntime"):
        write_profile(tmp_path / "empty", "cpu")
    with pytest.raises(ProfileError, match="absolute"):
        EngineCacheOptions("engines")
    with raises(ProfileError, "1 to 1048576 MiB | 0"):
        EngineCacheOptions(workspace_mib=0)
    (repository / "alpha/config.pbtxt").write_text("max_batch_size: [")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"alpha/config\.pbtxt"):
        write_profile(repository, "cpu")
    assert content(tmp_path) == before


def test_a_file_in_the_way_is_reported_and_nothing_is_written(repository: Path) -> None:
    (repository / "beta/configs").write_text("a file, where a folder is to be")
    before = content(repository.parent)
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_profile(repository, "gpu")
    assert content(repository.parent) == before


def test_no_space_left_changes_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        repository = tiny.write_repository(disk / "repository")
        fill(disk, 4096)
        before = content(disk)
        with pytest.raises(OSError, match="No space left"):
            write_profile(repository, "gpu")
        assert content(disk) == before
        (disk / "filler").unlink()
        write_profile(repository, "gpu")
        fill(disk, 0)
        # A removal needs a folder, which takes a page on this file system: it fails or completes, never half.
        before = content(disk)
        try:
            remove_profile(repository, "gpu")
        except OSError:
            assert content(disk) == before
        else:
            assert not list(repository.rglob("gpu.pbtxt"))


def test_a_mounted_repository_is_staged_inside_a_model(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        made = tiny.write_repository(tmp_path / "made")
        shutil.copytree(made, disk, dirs_exist_ok=True)
        before = content(disk)
        write_profile(disk, "gpu")
        assert states(disk, "gpu") == {"alpha": "written", "beta": "written"}
        remove_profile(disk, "gpu")
        assert content(disk) == before


@pytest.mark.parametrize("act", ["write", "remove"])
def test_a_kill_at_any_rename_leaves_a_servable_repository(repository: Path, tmp_path: Path, act: str) -> None:
    before = content(repository)
    write_profile(repository, "gpu")
    after = content(repository)
    if act == "write":
        remove_profile(repository, "gpu")
    else:
        before, after = after, before
    imported = f"from defensemble_export import {act}_profile"
    statuses = killed_at_each_rename(repository, tmp_path / "killed", prepare=imported, act=f'{act}_profile(repository, "gpu")')
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL, 0]
    for number in (1, 2):
        left = tmp_path / "killed" / str(number) / "repository"
        assert content(left) != after
        for profile in (None, "gpu"):
            assert read_repository(left, profile=profile).problems == {}, f"killed at rename {number}"
        if act == "write":
            write_profile(left, "gpu")
        else:
            remove_profile(left, "gpu")
        assert {path: data for path, data in content(left).items() if data is not None} == {
            path: data for path, data in after.items() if data is not None
        }
        assert os.listdir(left.parent) == ["repository"], "what was staged is cleaned up"
