"""What is installed: the wheel's contents, and the exact versions of everything it needs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import defensemble
from tests.support.checkout import ROOT

PACKAGES = (
    "defensemble",
    "defensemble_export",
    "defensemble_images",
    "defensemble_ops",
    "defensemble_repository",
    "defensemble_server",
    "defensemble_training",
)
# What the CUDA builds of torch bring; the torch build chooses their versions.
OF_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")


def why_no_index() -> str | None:
    """Why the package index cannot be asked; None where it answers."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{index.rstrip('/')}/click/", method="HEAD"), timeout=5):
            return None
    except (OSError, urllib.error.URLError) as error:
        return f"{index} cannot be reached: {error}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    if importlib.util.find_spec("hatchling") is not None:
        command.insert(-1, "--no-build-isolation")
    elif (reason := why_no_index()) is not None:
        pytest.skip(f"hatchling, which builds the wheel, is not installed, and {reason}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_what_serving_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    information = f"defensemble-{defensemble.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, information}
    assert {name.partition("/")[0] for name in names if name.endswith("/py.typed")} == set(PACKAGES)
    source = ROOT / "server_config/onnxruntime_backend"
    expected = {path.relative_to(source).as_posix() for pattern in ("*.cc", "*.h", "include/*.h") for path in source.glob(pattern)}
    assert len(expected) > 15
    place = "defensemble_server/_data/onnxruntime_backend/"
    assert {name.removeprefix(place) for name in names if name.startswith(place) and name.endswith((".cc", ".h"))} == expected
    native = ROOT / "export/defensemble_ops/native"
    sources = {f"defensemble_ops/native/{path.relative_to(native).as_posix()}" for path in native.rglob("*.*") if path.is_file()}
    assert {"defensemble_ops/native/kernels.cc", "defensemble_ops/native/include/onnxruntime_api.h"} <= sources <= set(names)
    others = {"triton-runtime.txt", "nginx/defensemble.conf", "systemd/defensemble.service"}
    assert {f"defensemble_server/_data/{name}" for name in others} <= set(names)
    assert f"{information}/licenses/LICENSE" in names
    assert not [name for name in names if name.endswith((".pyc", ".so", ".safetensors", ".onnx"))]


@pytest.mark.slow
def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from defensemble_server.runtime.package_data import data_file; import defensemble, defensemble_export, defensemble_training\n"
        "print(defensemble.__file__, data_file('triton-runtime.txt'), data_file('onnxruntime_backend'), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "site/defensemble_server/_data"
    assert done.stdout.splitlines() == [
        str(tmp_path / "site/defensemble/__init__.py"),
        str(data / "triton-runtime.txt"),
        str(data / "onnxruntime_backend"),
    ]


def test_the_runtime_is_pinned_by_hash() -> None:
    text = (ROOT / "server_config/triton-runtime.txt").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"nvidia-pytriton==0\.7\.0( +--hash=sha256:[0-9a-f]{64}){2}", line)


# `pip --python-version` chooses wheels for that version, but reads markers for the Python that pip runs on (pip's issue 11664).
PIP_FOR_VERSION = """
import sys
from pip._vendor.packaging import markers
here = markers.default_environment()
markers.default_environment = lambda: {**here, "python_version": sys.argv[1], "python_full_version": sys.argv[1] + ".0"}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


class Resolution:
    """pip resolving the wheel with its extras `all`, `dev` and `docs` for one version of Python, in a process of its own."""

    def __init__(self, version: str, wheel: Path, folder: Path) -> None:
        self.report = folder / f"{version}.json"
        # fast-deps: where an index serves no metadata, read it out of the wheel by range requests and not by downloading 3 GB.
        options = ["--dry-run", "--quiet", "--use-feature=fast-deps", "--only-binary=:all:", "--target", str(folder / "none")]
        files = ["--report", str(self.report), "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[all,dev,docs]"]
        command = [sys.executable, "-c", PIP_FOR_VERSION, version, "install", *options, "--python-version", version, *files]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def versions(self) -> dict[str, str]:
        """The version that was chosen of each package."""
        _, errors = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, errors
        chosen = [entry["metadata"] for entry in json.loads(self.report.read_text())["install"]]
        versions = {str(canonicalize_name(metadata["name"])): str(metadata["version"]) for metadata in chosen}
        assert versions.pop("defensemble") == defensemble.__version__
        return versions


@pytest.fixture(scope="module")
def resolutions(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[dict[str, Resolution]]:
    """Both at once: they mostly wait for the network."""
    if (reason := why_no_index()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("resolved")
    started = {version: Resolution(version, wheel, folder) for version in ("3.10", "3.13")}
    yield started
    for one in started.values():
        with one.process:  # closes its pipe
            one.process.kill()


def pins(version: str) -> dict[str, str]:
    """The content of constraints.txt for a version of Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        exact = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        assert exact is not None, f"constraints.txt must pin exactly: {line}"
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version, "python_full_version": f"{version}.0"}):
            assert canonicalize_name(requirement.name) not in found, f"pinned twice for Python {version}: {line}"
            found[canonicalize_name(requirement.name)] = exact[1]
    return found


def test_constraints_only_depend_on_python_versions() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if ";" in line]
    markers = [Marker(line.partition(";")[2]) for line in lines]
    assert markers
    assert {word for marker in markers for word in re.findall(r"[a-z_]{5,}", str(marker))} == {"python_version"}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_constraints_resolve_and_pin_everything(resolutions: dict[str, Resolution], version: str) -> None:
    chosen = {name: got for name, got in resolutions[version].versions().items() if not OF_CUDA.fullmatch(name)}
    assert {"torch", "onnx", "onnxruntime", "tritonclient", "numpy", "mypy", "gevent"} <= set(chosen)
    assert ("exceptiongroup" in chosen) == (version == "3.10"), "markers were read for another version of Python"
    pinned = pins(version)
    assert {name: got for name, got in chosen.items() if name not in pinned} == {}, "not in constraints.txt"
    assert chosen == {name: pinned[name] for name in chosen}
