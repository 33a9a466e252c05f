"""What `make` does before it can do anything else: which packages go into .venv, by a stand-in for Python that writes down its calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.project.test_packaging import pins
from tests.support.checkout import ROOT

MAKE = shutil.which("make") or "make"

STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >>calls
case "$1 $2" in
  "-m venv") if [ "$3" = --clear ]; then rm -rf .venv; fi; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-c import urllib"*) exit "$NO_INDEX" ;;
esac
"""


class Project:
    """A folder with our Makefile, and a PATH on which nothing is but what the recipe calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("sh", "timeout", "touch", "cp", "mkdir", "rm"):
            self.program(tool).symlink_to(shutil.which(tool) or pytest.fail(f"there is no {tool}"))
        self.program("python").write_text(STAND_IN)
        self.program("python").chmod(0o755)
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "server_config").mkdir()
        for name in ("pyproject.toml", "constraints.txt", "server_config/triton-runtime.txt"):
            (folder / name).touch()

    def program(self, name: str) -> Path:
        return self.bin / name

    def make(self, *arguments: str, **environment: str) -> list[str]:
        """Run `make ARGUMENTS`; returns the calls of Python that it made."""
        calls = self.folder / "calls"
        calls.write_text("")
        command = [MAKE, f"PYTHON={self.program('python')}", *arguments]
        settings = {"PATH": str(self.bin), "NO_INDEX": "0", **environment}
        done = subprocess.run(command, cwd=self.folder, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return calls.read_text().splitlines()

    def recipe(self, *arguments: str) -> str:
        """What `make -n` would run."""
        command = [MAKE, "--dry-run", *arguments]
        environment = {name: value for name, value in os.environ.items() if name not in ("GPU", "MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def installs(calls: list[str]) -> list[str]:
    """What pip was asked for, without the options that are always there."""
    return [
        call.removeprefix("-m pip install --quiet ").replace("--constraint constraints.txt ", "")
        for call in calls
        if call.startswith("-m pip install --quiet ") and "--upgrade pip" not in call and "--require-hashes" not in call
    ]


CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def test_torch_and_only_torch_comes_from_the_cpu_index_where_that_answers(project: Project) -> None:
    project.program("c++").touch(0o755)
    calls = project.make("install")
    assert calls[0] == "-m venv --clear .venv"
    (probe,) = [call for call in calls if "urlopen" in call]
    assert f"urlopen('{CPU_INDEX}/torch/', timeout=3)" in probe
    torch = re.escape(installs(calls)[0].rpartition(" ")[2])
    assert re.fullmatch(r"torch==\d+\\\.\d+\\\.\d+", torch)
    assert [re.sub(torch, "TORCH", one) for one in installs(calls)] == [
        f"--no-deps --index-url {CPU_INDEX} TORCH",
        "--editable .[all,dev]",
    ]
    assert "timeout 3 " in project.recipe("--always-make", "install"), "not even a connection that hangs takes longer"


def test_torch_is_pips_choice_where_the_cpu_index_does_not_answer(project: Project) -> None:
    project.program("c++").touch(0o755)
    calls = installs(project.make("install", NO_INDEX="1"))
    assert [call.partition("==")[0] for call in calls] == ["torch", "--editable .[all,dev]"]


def test_the_gpu_kind_asks_no_cpu_index(project: Project) -> None:
    project.program("c++").touch(0o755)
    calls = project.make("install", "GPU=1")
    assert not [call for call in calls if "urlopen" in call or "--index-url" in call]
    assert [call.partition("==")[0] for call in installs(calls)] == [
        "torch",
        "--extra-index-url https://pypi.nvidia.com --editable .[gpu,dev]",
    ]
    assert CPU_INDEX not in project.recipe("--always-make", "install", "GPU=1")


@pytest.mark.parametrize(("option", "extra"), [("GPU=1", ".[gpu,dev]"), ("GPU=0", ".[all,dev]")])
def test_the_kind_that_is_installed_is_what_later_targets_use(project: Project, option: str, extra: str) -> None:
    project.make("install", option, CXX="c++")
    targets = "install demo test lint types serve bench zoo".split()
    assert "pip" not in project.recipe(*targets)
    assert "pip" not in project.recipe(*targets, option)
    os.utime(project.folder / "constraints.txt", (2**32, 2**32))  # other pins: the same kind, brought up to date
    for target in targets:
        recipe = project.recipe(target)
        assert f"'{extra}'" in recipe
        assert "--clear" not in recipe


def test_another_kind_creates_a_new_environment(project: Project) -> None:
    for option in ("GPU=1", "GPU=0", "GPU=1"):
        assert project.make("install", option, CXX="c++")[0] == "-m venv --clear .venv"
        stamps = [path.name for path in (project.folder / ".venv").glob(".installed*")]
        assert stamps == [".installed-gpu" if option == "GPU=1" else ".installed"]
        assert project.make("install", option, CXX="c++") == []


def test_an_interrupted_installation_creates_a_new_environment(project: Project) -> None:
    project.make("install", "GPU=1", CXX="c++")
    (project.folder / ".venv/.installed-gpu").unlink()
    assert project.make("install", CXX="c++")[0] == "-m venv --clear .venv"


@pytest.mark.parametrize("there", ["c++", "g++", "clang++", "$CXX", "none"])
def test_the_compiler_s_wheel_is_installed_where_there_is_none_else(project: Project, there: str) -> None:
    environment = {"CXX": "/opt/compiler"} if there == "$CXX" else {}
    if there.endswith("++"):
        project.program(there).touch(0o755)
    calls = project.make("install", **environment)
    assert ("ziglang" in installs(calls)) == (there == "none")
    assert calls[-1].startswith("-c from defensemble_server.runtime.backend_build import main"), "it is there when the backend is built"
    if there == "none":
        assert "-m pip install --quiet --constraint constraints.txt ziglang" in calls
        assert "ziglang" in pins("3.10")


def test_the_readme_names_what_make_needs() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "`apt-get install make python3-venv`" in text
    assert "GPU=0" in text
    assert "pip install ziglang" not in text, "make does it"


def test_hooks_are_valid_and_run_what_make_runs(project: Project) -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repository in hooks["repos"] for hook in repository["hooks"]]
    project.make("install", CXX="c++")
    made = re.findall(r"^(\.venv/bin/\S+(?: [a-z]+)?)", project.recipe("lint", "types"), re.MULTILINE)
    assert len(made) == 4
    assert [re.match(r"\S+(?: [a-z]+)?", entry)[0] for entry in entries] == made  # type: ignore[index]
