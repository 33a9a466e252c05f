"""The doctor on GPUs, TensorRT, profiles and plans; machines are stood in for, for those that this runs on have no GPU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_export import write_profile
from defensemble_server.doctor.diagnose import FAIL, PASS, WARN, Check, diagnose
from defensemble_server.plans.machine import Machine, read_machine
from defensemble_server.runtime.find import CONTAINER
from tests.server.plans.test_compatibility import H100, T4
from tests.server.test_profiles import environment, programs, write_plans
from tests.support import tiny
from tests.support.facts import assert_facts

NEITHER = Machine(None, (), "there is no libnvinfer.so on the library path", "there is no nvidia-smi on PATH, so no NVIDIA driver")


def checks_on(machine: Machine, monkeypatch: pytest.MonkeyPatch, repository: Path | None = None) -> list[Check]:
    monkeypatch.setattr("defensemble_server.doctor.diagnose.read_machine", lambda: machine)
    checks = diagnose([], repository)
    assert all(check.fix for check in checks if check.status != PASS), "each problem has a fix"
    return [check for check in checks if re.match("GPU|TensorRT|profile |plan |repository", check.name)]


def test_a_missing_gpu_is_not_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, tensorrt = checks_on(NEITHER, monkeypatch)
    assert (gpu.status, tensorrt.status) == (PASS, PASS)
    assert_facts(gpu.text, f"none | {NEITHER.why_no_gpu} | `cpu`")
    assert_facts(tensorrt.text, f"none | {NEITHER.why_no_tensorrt}")


def test_gpus_and_tensorrt_are_named_and_a_missing_one_has_a_command_and_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    both = checks_on(Machine("10.13.3.9", (H100, T4)), monkeypatch)
    assert [(check.status, check.text) for check in both] == [
        (PASS, "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 570.124.06"),
        (PASS, "Tesla T4, compute capability 7.5, driver 570.124.06"),
        (PASS, "10.13.3.9"),
    ]
    _, tensorrt = checks_on(Machine(None, (H100,), "there is no libnvinfer.so on the library path"), monkeypatch)
    assert tensorrt.status == WARN
    assert_facts(tensorrt.text, f"none | {NEITHER.why_no_tensorrt} | container")
    assert CONTAINER in tensorrt.fix
    assert "make install GPU=1" in tensorrt.fix


def test_a_real_machine_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in environment(programs(tmp_path / "bin")).items():
        monkeypatch.setenv(key, value)
    for key in ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(key, raising=False)
    found = [check for check in diagnose([]) if check.name == "GPU"]
    assert [check.text for check in found] == [f"{gpu.name}, compute capability 9.0, driver {gpu.driver}" for gpu in read_machine().gpus]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("machine", "status", "facts"),
    [
        (Machine("10.13.3.9", (H100,)), PASS, "TensorRT 10.13.3.9 | NVIDIA H100 80GB HBM3"),
        (Machine("10.16.1.4", (H100,)), FAIL, "TensorRT 10.16.1.4 | `defensemble build-engine"),
        (Machine("10.13.3.9", (T4,)), FAIL, "Tesla T4 (compute capability 7.5) | `defensemble build-engine"),
        (NEITHER, WARN, "no TensorRT | libnvinfer.so"),
    ],
)
def test_every_plan_is_compared_with_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, status: str, facts: str
) -> None:
    repository = tiny.write_repository(tmp_path / "my models")
    write_plans(repository)
    (repository / "alpha/1 of old").mkdir()
    (repository / "alpha/1 of old/model.plan").touch()
    plans = [check for check in checks_on(machine, monkeypatch, repository) if check.name.startswith("plan ")]
    assert [check.name for check in plans] == ["plan alpha/1", "plan beta/1"]
    assert {check.status for check in plans} == {status}
    assert_facts(plans[0].text, facts)
    if status != PASS:
        assert plans[0].fix == f"defensemble build-engine alpha --repository {shlex.quote(str(repository))} --version 1"


@pytest.mark.parametrize("damage", ["manifest", "no manifest", "plan", "config"])
@pytest.mark.parametrize("machine", [NEITHER, Machine("10.13.3.9", (H100,))])
def test_a_plan_that_would_fit_nowhere_fails_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, machine: Machine
) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    write_plans(repository)
    place = repository / "beta"
    if damage == "manifest":
        (place / "1/model.plan.json").write_text("{")
    elif damage == "no manifest":
        (place / "1/model.plan.json").unlink()
    elif damage == "plan":
        (place / "1/model.plan").write_bytes(b"changed")
    else:
        (place / "config.pbtxt").write_text("[[")
    found = {check.name: check for check in checks_on(machine, monkeypatch, repository)}
    assert found["plan beta/1"].status == FAIL
    facts = {"manifest": "damaged", "no manifest": "no manifest", "plan": "changed", "config": "configuration"}
    assert facts[damage] in found["plan beta/1"].text
    assert found["plan alpha/1"].status == (WARN if machine is NEITHER else PASS)


def test_profiles_are_complete_or_reported_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    write_plans(repository)
    for profile in ("gpu", "gpu-tensorrt"):
        write_profile(repository, profile)
    found = [check for check in checks_on(NEITHER, monkeypatch, repository) if check.name.startswith("profile ")]
    assert [(check.name, check.status) for check in found] == [("profile gpu", PASS), ("profile gpu-tensorrt", PASS)]
    (repository / "beta/1/model.plan").unlink()
    found = [check for check in checks_on(NEITHER, monkeypatch, repository) if check.name.startswith("profile ")]
    assert [(check.name, check.status) for check in found] == [("profile gpu", PASS), ("profile gpu-tensorrt", WARN)]
    assert_facts(found[1].text, "beta | version 1 | no plan")


def test_the_command_looks_at_the_usual_folder_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "plan " not in CliRunner().invoke(cli, ["doctor"]).output
    write_plans(tiny.write_repository(tmp_path / "model_repository"), names=("alpha",))
    (tmp_path / "model_repository/alpha/1/model.plan.json").unlink()
    usual = CliRunner().invoke(cli, ["doctor"])
    assert usual.exit_code == 1
    assert "FAIL  plan alpha/1" in usual.output
    assert usual.output == CliRunner().invoke(cli, ["doctor", "--repository", "model_repository"]).output
    missing = CliRunner().invoke(cli, ["doctor", "--repository", "nowhere"])
    assert missing.exit_code == 1
    assert re.search("FAIL  repository +nowhere is not a folder", missing.output)


def test_a_plan_for_another_image_size_or_only_larger_batches_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    write_plans(repository, names=("alpha",), profile={bound: [8, 3, 28, 28] for bound in ("min", "opt", "max")})
    write_plans(repository, names=("beta",), profile={"min": [4, *tiny.SHAPE], "opt": [8, *tiny.SHAPE], "max": [8, *tiny.SHAPE]})
    found = {check.name: check for check in checks_on(Machine("10.13.3.9", (H100,)), monkeypatch, repository)}
    assert (found["plan alpha/1"].status, found["plan beta/1"].status) == (FAIL, FAIL)
    assert_facts(found["plan alpha/1"].text, "config.pbtxt | (1, 4, 4) | (3, 28, 28)")
    assert "4 images" in found["plan beta/1"].text


def test_a_manifest_nested_without_end_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    write_plans(repository)
    (repository / "beta/1/model.plan.json").write_text("[" * 200_000)
    found = {check.name: check for check in checks_on(Machine("10.13.3.9", (H100,)), monkeypatch, repository)}
    assert found["plan beta/1"].status == FAIL
    assert "is damaged" in found["plan beta/1"].text
