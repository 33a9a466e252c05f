"""Where Triton comes from: the wheel that pip installs (embedded), a `tritonserver` on PATH, or NVIDIA's container."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from defensemble_repository.target import EMBEDDED_CORE as EMBEDDED_CORE, TARGETS, Target

from ..errors import RuntimeMissingError
from .backend_build import ensure_backend, onnxruntime_library
from .package_data import data_file

RUNTIMES = ("embedded", "path", "docker")
# NVIDIA recommends 26.07 or later for servers that untrusted clients can reach.
NGC_TAG = "26.07"
CONTAINER = f"nvcr.io/nvidia/tritonserver:{NGC_TAG}-py3"
_OLDEST_GLIBC = (2, 35)


@dataclass(frozen=True)
class Runtime:
    """A Triton that can be started: its executable, environment and backend directory (None: Triton's default)."""

    name: str
    executable: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    backend_directory: Path | None = None
    backend_settings: Mapping[str, str] = field(default_factory=dict)


def find_runtime(name: str, *, on_progress: Callable[[str], None]) -> Runtime:
    """Return the runtime `name` (`embedded`, `path` or `docker`), after installing missing parts of the embedded one.

    Args:
        name: Name of the runtime.
        on_progress: Receives a message before an installation or a build.

    Raises:
        RuntimeMissingError: The runtime is missing and cannot be installed.
        BackendBuildError: The backend of the embedded runtime cannot be built.
    """
    if name == "embedded":
        return _embedded(on_progress)
    if name == "path":
        return Runtime("path", _on_path("tritonserver", "run inside NVIDIA's container, or use --runtime embedded"), dict(os.environ))
    if name == "docker":
        return Runtime("docker", _on_path("docker", "install Docker, or use --runtime embedded"), dict(os.environ))
    raise RuntimeMissingError(f"runtime must be one of {', '.join(RUNTIMES)}, got {name!r}")


def target_from_runtime(name: str) -> Target:
    """Return the target of repository checks for the runtime `name`; NVIDIA's containers publish their core version."""
    return TARGETS[name] if name in TARGETS else Target.from_core_version(os.environ.get("TRITON_SERVER_VERSION", ""))


def check_platform(system: str, machine: str, libc: tuple[str, str]) -> None:
    """Check that the embedded wheel runs on a platform.

    Raises:
        RuntimeMissingError: The platform is not Linux on x86-64 with glibc 2.35 or newer.
    """
    if (system, machine) != ("Linux", "x86_64"):
        raise RuntimeMissingError(f"the embedded Triton runs on Linux x86_64, but this is {system} {machine}: use --runtime docker")
    name, version = libc
    if name != "glibc":
        raise RuntimeMissingError(
            f"the embedded Triton needs glibc, but this system has {name or 'another C library'}: use --runtime docker"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_GLIBC:
        raise RuntimeMissingError(
            f"the embedded Triton needs glibc 2.35 or newer, but this system has {version}: "
            "use Debian 12, Ubuntu 22.04 or later, or --runtime docker"
        )


def embedded_triton() -> tuple[Path, Path] | None:
    """Return the wheel's `tritonserver` and the folder of its libraries, without an import; None if the wheel is not installed."""
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        executable = Path(location) / "tritonserver" / "bin" / "tritonserver"
        libraries = Path(location).parent / "nvidia_pytriton.libs"
        if executable.exists() and libraries.exists():
            return executable, libraries
    return None


def install_embedded_triton(on_progress: Callable[[str], None]) -> None:
    """Install the pinned wheel, its hash checked and without the packages that its Python API would need.

    Raises:
        RuntimeMissingError: pip fails; its last lines are shown.
    """
    requirements = data_file("triton-runtime.txt")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(requirements)]
    on_progress("installing NVIDIA's Triton from its wheel (55 MB), once")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode != 0 or embedded_triton() is None:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeMissingError(f"Triton could not be installed; try `{' '.join(command)}`. Output of pip:\n{last}")


def _embedded(on_progress: Callable[[str], None]) -> Runtime:
    check_platform(platform.system(), platform.machine(), platform.libc_ver())
    library = onnxruntime_library()  # before anything is downloaded
    installation = embedded_triton()
    if installation is None:
        install_embedded_triton(on_progress)
        installation = embedded_triton()
        assert installation is not None, "install_embedded_triton raises an error if it fails"
    executable, libraries = installation
    # ONNX Runtime's wheels (seen: 1.32) send events to Microsoft, and keep an identifier in the user's cache, unless disabled.
    # Unloaded models leave gaps in glibc's heaps (8 per core) that later models do not reuse, unless large blocks are always mapped, which
    # glibc stops doing after the first one is freed. (Measured, 50 edits under load: memory grew from 155 to 210 MB without these
    # settings, from 115 to 117 MB with them; five members after load: 113 MB and 76 MB; the time of a call is the same.)
    usual = {"ORT_DISABLE_TELEMETRY": "1", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
    environment = {**usual, **os.environ, "LD_LIBRARY_PATH": str(libraries)}
    return Runtime("embedded", executable, environment, ensure_backend(on_progress=on_progress), {"library": str(library)})


def _on_path(program: str, fix: str) -> Path:
    path = shutil.which(program)
    if path is None:
        raise RuntimeMissingError(f"there is no `{program}` on PATH: {fix}")
    return Path(path)
