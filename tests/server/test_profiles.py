"""Profiles before Triton is started: what is not there, not complete, not for this runtime or machine, and `cpu` on the real Triton."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import urllib3

import defensemble_export
from defensemble_export import write_profile
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.profile_digest import DIGEST_PARAMETER
from defensemble_server import NotServableError, PlanError, ServeOptions, serve
from defensemble_server.profiles import check_gpu, check_profile, engine_caches, models_by_profile
from defensemble_server.repository import read_repository
from defensemble_server.runtime.find import CONTAINER, Runtime
from tests.server.plans.test_compatibility import H100, T4, VALUES
from tests.support import tiny
from tests.support.calls import FREE, ask
from tests.support.facts import assert_each, assert_facts, raises


def write_plans(repository: Path, version: int = 1, names: tuple[str, ...] = ("alpha", "beta"), **changed: object) -> None:
    """Fake plans, with manifests as `build-engine` writes them."""
    for name in names:
        place = repository / name / str(version)
        plan = f"plan of {name} {version}".encode()
        (place / "model.plan").write_bytes(plan)
        values = VALUES | {
            "profile": {bound: [batch, *tiny.SHAPE] for bound, batch in (("min", 1), ("opt", 32), ("max", 64))},
            "onnx_sha256": hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest(),
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
        }
        (place / "model.plan.json").write_text(json.dumps(values | changed))


def programs(
    folder: Path, *, gpu: str | None = f"{H100.name}, {H100.compute_capability}, {H100.driver}", tensorrt: str = "10.13.3.9"
) -> Path:
    """A folder with a `docker` and a `tritonserver` that write down how they were called, and, with a GPU, an `nvidia-smi` that lists it.

    `docker` answers what a container is asked for its TensorRT; neither starts a server.
    """
    folder.mkdir()
    scripts = {
        "docker": f"case \"$*\" in *entrypoint=python3*) echo '{json.dumps({'version': tensorrt})}';; *) exit 3;; esac",
        "tritonserver": "exit 3",
    }
    if gpu is not None:
        scripts["nvidia-smi"] = f"echo '{gpu}'"
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "${{0##*/}} $@" >> {folder}/calls\n{script}\n')
        path.chmod(0o755)
    return folder


def environment(folder: Path) -> dict[str, str]:
    usual = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "DOCKER_HOST", "LD_LIBRARY_PATH")}
    return {**usual, "PATH": f"{folder}{os.pathsep}{os.defpath}"}


def docker(folder: Path, **variables: str) -> Runtime:
    return Runtime("docker", folder / "docker", environment(folder) | variables)


def test_the_profile_cpu_is_served_a_fused_graph_too(repository: Path) -> None:
    defensemble_export.fuse_repository(repository, "ensemble", "fused")
    assert write_profile(repository, "cpu") == [f"{name}/configs/cpu.pbtxt" for name in ("alpha", "beta", "fused")]
    images = tiny.images(5)
    expected = np.mean([tiny.softmax(tiny.logits(seed, images)) for seed in (1, 2)], axis=0)
    with serve(repository, replace(FREE, profile="cpu")) as server:
        assert server.problems == {}
        for model in ("ensemble", "fused"):
            assert np.abs(ask(server, model, images, "probabilities") - expected).max() < 1e-6
        config = urllib3.request("GET", f"{server.http_url}/v2/models/alpha/config").json()
    assert DIGEST_PARAMETER in config["parameters"], "that of the profile, not config.pbtxt"
    assert [group["kind"] for group in config["instance_group"]] == ["KIND_CPU"]


def test_what_a_killed_edit_of_a_mount_leaves_inside_a_model_is_no_version(repository: Path) -> None:
    (repository / "alpha/.repository.staging-a1b2_c3d/beta/configs").mkdir(parents=True)
    with serve(repository, FREE) as server:
        assert server.problems == {}


@pytest.mark.parametrize("profile", ["cpu", "mine"])
def test_a_profile_that_no_model_has_is_an_error_that_lists_the_profiles(repository: Path, profile: str) -> None:
    write_profile(repository, "gpu")
    fixes = {
        "cpu": f"gpu | `defensemble profile write cpu --repository {repository}`",
        "mine": f"gpu | `defensemble profile write NAME --repository {repository}` | cpu, gpu, gpu-ort-tensorrt, gpu-tensorrt",
    }
    with pytest.raises(NotServableError) as refused, serve(repository, replace(FREE, profile=profile)):
        pass
    assert_facts(str(refused.value), f"{repository} | '{profile}'")
    assert_facts(str(refused.value), fixes[profile])


@pytest.mark.parametrize("profile", ["gpu", "gpu-ort-tensorrt", "gpu-tensorrt", "mine"])
def test_a_gpu_is_not_asked_of_the_embedded_runtime(repository: Path, profile: str) -> None:
    if profile == "mine":
        write_profile(repository, "gpu")
        (repository / "beta/configs/gpu.pbtxt").rename(repository / "beta/configs/mine.pbtxt")
    with pytest.raises(NotServableError) as refused, serve(repository, replace(FREE, profile=profile)):
        pass
    models = " (beta)" if profile == "mine" else ""
    assert_facts(str(refused.value), f"'{profile}' | GPU{models} | --runtime docker | --runtime path | --profile cpu")


def test_a_network_that_came_later_is_not_served_otherwise_in_silence(repository: Path) -> None:
    write_profile(repository, "cpu")
    tiny.write_repository(repository, {"gamma": 3}, ensemble="other")
    with raises(NotServableError, "gamma | config.pbtxt | profile write cpu"):
        check_profile(repository, "cpu", only_cpus=True)
    write_profile(repository, "cpu")
    check_profile(repository, "cpu", only_cpus=True)


def test_a_custom_profile_may_cover_some_models_and_the_others_are_reported(repository: Path) -> None:
    write_profile(repository, "cpu")
    (repository / "alpha/configs/cpu.pbtxt").rename(repository / "alpha/configs/mine.pbtxt")
    assert models_by_profile(repository) == {"mine": ["alpha"], "cpu": ["beta"]}
    messages: list[str] = []
    with serve(repository, replace(FREE, profile="mine"), on_progress=messages.append) as server:
        assert server.problems == {}
    assert_facts("\n".join(messages), "beta | configs/mine.pbtxt | config.pbtxt")


def test_a_contract_that_was_edited_in_one_file_only_is_reported(repository: Path) -> None:
    write_profile(repository, "cpu")
    path = repository / "alpha/config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    messages: list[str] = []
    check_profile(repository, "cpu", only_cpus=True, on_progress=messages.append)
    (text,) = messages
    assert_facts(text, "alpha | configs/cpu.pbtxt | config.pbtxt | max_batch_size")


def test_a_profile_that_is_no_configuration_leaves_the_others(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3}, ensemble=None)
    write_profile(repository, "cpu")
    (repository / "gamma/configs/cpu.pbtxt").write_text("[[")
    with serve(repository, replace(FREE, profile="cpu")) as server:
        assert list(server.problems) == ["gamma"]
        assert "gamma/configs/cpu.pbtxt:1:" in server.problems["gamma"]


@pytest.mark.parametrize("case", ["no plan", "a new version", "a new version with a plan", "another plan"])
def test_a_plan_that_is_not_there_or_not_the_one_of_the_profile(repository: Path, case: str) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    check_profile(repository, "gpu-tensorrt", only_cpus=False)
    write = f"`defensemble profile write gpu-tensorrt --repository {repository}`"
    if case == "no plan":
        (repository / "beta/1/model.plan").unlink()
        build = f"`defensemble build-engine beta --repository {repository} --version 1`"
        facts = f"beta | version 1 | no plan | {repository}/beta/1/model.plan | {build} | {write}"
    elif case == "another plan":
        write_plans(repository, names=("alpha",))
        (repository / "alpha/1/model.plan").write_bytes(b"built again")
        facts = f"alpha | version 1 | {repository}/alpha/1/model.plan | {write}"
    else:
        tiny.write_second_version(repository, "alpha", 7)
        facts = f"alpha | version 2 | no plan | {repository}/alpha/2/model.plan"
        if case == "a new version with a plan":
            write_plans(repository, 2, ("alpha",))
            facts = f"alpha | version 2 | {write}"
    with pytest.raises(NotServableError) as refused:
        check_profile(repository, "gpu-tensorrt", only_cpus=False)
    assert_facts(str(refused.value), facts)
    write_plans(repository)
    if case.startswith("a new version"):
        write_plans(repository, 2, ("alpha",))
    write_profile(repository, "gpu-tensorrt")
    check_profile(repository, "gpu-tensorrt", only_cpus=False)


def test_an_engine_cache_of_another_version_is_refused(repository: Path) -> None:
    write_profile(repository, "gpu-ort-tensorrt")
    check_profile(repository, "gpu-ort-tensorrt", only_cpus=False)
    assert engine_caches(read_repository(repository, profile="gpu-ort-tensorrt")) == ["/var/cache/defensemble"]
    tiny.write_second_version(repository, "alpha", 7)
    for policy in ("all { }", "specific { versions: 2 }"):
        for name in ("config", "configs/gpu-ort-tensorrt"):
            path = repository / f"alpha/{name}.pbtxt"
            config = config_from_pbtxt(path.read_text(), str(path))
            config.ClearField("version_policy")
            path.write_text(f"{pbtxt_from_config(config).decode()}version_policy {{ {policy} }}")
        with raises(NotServableError, "alpha | /var/cache/defensemble/alpha-"):
            check_profile(repository, "gpu-ort-tensorrt", only_cpus=False)
    write_profile(repository, "gpu-ort-tensorrt", force=True)
    check_profile(repository, "gpu-ort-tensorrt", only_cpus=False)


def fit(repository: Path, runtime: Runtime, profile: str = "gpu-tensorrt", *, messages: list[str] | None = None) -> list[str]:
    found = read_repository(repository, profile=profile)
    checked = check_gpu(found, runtime, strict=True, on_progress=(messages if messages is not None else []).append)
    return list(checked.models)


def test_plans_that_fit_the_image_and_the_gpu_are_served(repository: Path, tmp_path: Path) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    messages: list[str] = []
    folder = programs(tmp_path / "bin")
    hidden = docker(folder, CUDA_VISIBLE_DEVICES="")  # from a program here, not from a container
    assert {"alpha", "beta", "ensemble"} <= set(fit(repository, hidden, messages=messages))
    words = f"docker run --rm --gpus=all --entrypoint=python3 {CONTAINER}"
    assert_each(messages, f"TensorRT | {folder}/{words}")
    assert f"{words} -c " in (folder / "calls").read_text()


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        (
            "TensorRT",
            "TensorRT 10.13.3.9 | NVIDIA H100 80GB HBM3 (compute capability 9.0) | TensorRT 10.16.1.4",
        ),
        ("GPU", "this server has Tesla T4 (compute capability 7.5): rebuild with `defensemble build-engine "),
        ("none", "this server has no GPU (there is no nvidia-smi on PATH, so no NVIDIA driver)"),
        ("damaged", "/model.plan.json is damaged"),
        ("no manifest", "the plan has no manifest (model.plan.json)"),
        ("batch", "max_batch_size is 8, but the plan takes at most 4 images"),
    ],
)
def test_plans_that_do_not_fit(repository: Path, tmp_path: Path, case: str, facts: str) -> None:
    largest = 4 if case == "batch" else 8
    write_plans(repository, profile={"min": [1, 1, 4, 4], "opt": [largest, 1, 4, 4], "max": [largest, 1, 4, 4]})
    write_profile(repository, "gpu-tensorrt")
    if case == "damaged":
        (repository / "alpha/1/model.plan.json").write_text("{")
    if case == "no manifest":
        (repository / "alpha/1/model.plan.json").unlink()
    gpus = {"GPU": f"{T4.name}, {T4.compute_capability}, {T4.driver}", "none": None}
    folder = programs(
        tmp_path / "bin",
        gpu=gpus.get(case, f"{H100.name}, 9.0, {H100.driver}"),
        tensorrt="10.16.1.4" if case == "TensorRT" else "10.13.3.9",
    )
    with pytest.raises(NotServableError) as refused:
        fit(repository, docker(folder))
    assert_facts(str(refused.value), "alpha | version 1")
    assert_facts(str(refused.value), facts)


def test_an_image_that_is_missing_is_reported_with_the_command_that_pulls_it(repository: Path, tmp_path: Path) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    folder = programs(tmp_path / "bin")
    (folder / "docker").write_text("#!/bin/sh\necho 'could not select device driver with capabilities: [[gpu]]' >&2; exit 125\n")
    with raises(PlanError, "status 125 | could not select device driver | docker pull nvcr.io/nvidia/tritonserver:"):
        fit(repository, docker(folder))


def test_a_plan_without_a_profile_is_a_problem_of_its_model_and_its_ensemble(repository: Path, tmp_path: Path) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    (repository / "alpha/configs/gpu-tensorrt.pbtxt").replace(repository / "alpha/config.pbtxt")
    found = check_gpu(read_repository(repository), docker(programs(tmp_path / "bin", gpu=None)), strict=False)
    assert "no GPU" in found.problems["alpha"]
    assert_facts(found.problems["ensemble"], "'alpha' | version 1 | TensorRT")
    assert "beta" in found.models
    assert {"alpha", "ensemble"} & set(found.models) == set()


def test_a_docker_engine_on_another_machine_is_reported_as_unchecked(repository: Path, tmp_path: Path) -> None:
    write_plans(repository)
    write_profile(repository, "gpu-tensorrt")
    messages: list[str] = []
    folder = programs(tmp_path / "bin", gpu=None)
    assert "alpha" in fit(repository, docker(folder, DOCKER_HOST="ssh://gpu-box"), messages=messages)
    assert_each(messages, "ssh://gpu-box | GPU | log")
    assert not (folder / "calls").exists()


def test_onnx_runtime_s_engines_need_a_folder_that_can_be_written(repository: Path, tmp_path: Path) -> None:
    folder = programs(tmp_path / "bin")
    runtime = Runtime("path", folder / "tritonserver", environment(folder))
    settings = defensemble_export.EngineCacheOptions(str(tmp_path / "engines"))
    write_profile(repository, "gpu-ort-tensorrt", settings)
    with raises(NotServableError, "engines | written"):
        fit(repository, runtime, "gpu-ort-tensorrt")
    (tmp_path / "engines").mkdir()
    assert "alpha" in fit(repository, runtime, "gpu-ort-tensorrt")


def run_serve(repository: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    variables = environment(folder) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "defensemble", "serve", "--repository", str(repository), "--free-ports", *options]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("runtime", ["embedded", "path", "docker"])
@pytest.mark.parametrize("case", ["no profile", "no plan", "no GPU"])
def test_the_command_fails_before_triton_starts_and_leaves_nothing(
    repository: Path, tmp_path: Path, own_state_folder: Path, runtime: str, case: str
) -> None:
    write_plans(repository)
    if case != "no profile":
        write_profile(repository, "gpu-tensorrt")
    if case == "no plan":
        (repository / "beta/1/model.plan").unlink()
    folder = programs(tmp_path / "bin", gpu=None)
    before, states = tiny.content(repository), tiny.content(own_state_folder)
    done = run_serve(repository, folder, "--runtime", runtime, "--profile", "gpu-tensorrt")
    facts = {
        "no profile": "'gpu-tensorrt'",
        "no plan": "beta | version 1 | no plan",
        "no GPU": "alpha | version 1 | TensorRT 10.13.3.9 | NVIDIA H100 80GB HBM3",
    }
    assert done.returncode == 1
    assert_facts(done.stderr, "embedded runtime" if runtime == "embedded" else facts[case])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    calls = (folder / "calls").read_text() if (folder / "calls").exists() else ""
    assert "--model-repository" not in calls
    assert (tiny.content(repository), tiny.content(own_state_folder)) == (before, states)


def test_a_container_is_given_the_gpus_and_a_place_for_its_engines(repository: Path, tmp_path: Path) -> None:
    write_profile(repository, "gpu-ort-tensorrt")
    folder = programs(tmp_path / "bin")
    done = run_serve(repository, folder, "--runtime", "docker", "--profile", "gpu-ort-tensorrt")
    assert done.returncode == 1
    assert "Triton ended during startup" in done.stderr, "this `docker` starts nothing"
    (call,) = [line for line in (folder / "calls").read_text().splitlines() if line.startswith("docker run")]
    words = call.split()
    assert "--gpus=all" in words
    assert "--volume=defensemble-var-cache-defensemble:/var/cache/defensemble" in words
    assert "--model-config-name=gpu-ort-tensorrt" in words
    assert words.index("--gpus=all") < words.index(CONTAINER)


def test_a_container_without_a_profile_is_given_no_gpu(repository: Path, tmp_path: Path) -> None:
    folder = programs(tmp_path / "bin")
    run_serve(repository, folder, "--runtime", "docker")
    assert "--gpus" not in (folder / "calls").read_text()
    assert ServeOptions(runtime="docker").profile is None
