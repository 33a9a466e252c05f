"""Check what this machine can run, and name the command that fixes each problem."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from defensemble_repository.errors import ManifestError
from defensemble_repository.gpus import Gpu
from defensemble_repository.names import MANIFEST_FILE, PLAN_FILE
from defensemble_repository.plan_manifest import read_manifest

from ..errors import NotServableError, RuntimeMissingError, ServerError
from ..options import ServeOptions
from ..plans.compatibility import problem_of_version
from ..plans.machine import Machine, read_machine
from ..process.events import RECENT_S, dead_servers, server_status
from ..process.state import read_states
from ..profiles import check_profile, models_by_profile
from ..repository import read_model
from ..runtime.backend_build import built_backend, find_compiler, onnxruntime_library
from ..runtime.find import CONTAINER, EMBEDDED_CORE, check_platform, embedded_triton
from ..runtime.package_data import installed
from .cpu_int8 import int8_check
from .known_cves import KNOWN_CVES, KNOWN_FAULTS, Weakness, known_weaknesses
from .operators import operator_check

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
_PYTHONS = ((3, 10), (3, 13))
# The GPU build replaces the CPU build.
_REPLACEMENTS = {"onnxruntime": "onnxruntime-gpu"}
_EXTRAS = {"train": ("torch", "safetensors", "scikit-learn"), "export": ("onnx", "onnxruntime", "onnxscript")}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: What was checked.
        status: PASS, WARN or FAIL.
        text: What was found.
        fix: The command that fixes the problem; empty if there is none.
    """

    name: str
    status: str
    text: str
    fix: str = ""


def diagnose(urls: list[str], repository: Path | None = None) -> list[Check]:
    """Check this machine, our servers on it, and other servers.

    Args:
        urls: Other servers, `http://HOST:PORT`.
        repository: A model repository whose profiles and TensorRT plans are checked against this machine.

    Example:
        >>> [check for check in diagnose([]) if check.status == "FAIL"]
    """
    machine = read_machine()
    return [
        *_platform(),
        *_packages(),
        *_runtime(),
        *_accelerators(machine),
        *(_repository(repository, machine) if repository is not None else ()),
        *_ports(),
        *_servers(urls),
    ]


def _platform() -> Iterator[Check]:
    libc = platform.libc_ver()
    description = f"{platform.system()} {platform.machine()}, {' '.join(libc)}"
    try:
        check_platform(platform.system(), platform.machine(), libc)
        yield Check("platform", PASS, description)
    except RuntimeMissingError as error:
        yield Check("platform", FAIL, str(error), "defensemble serve --runtime docker")
    version = sys.version_info[:2]
    supported = _PYTHONS[0] <= version <= _PYTHONS[1]
    text = f"{platform.python_version()}{'' if supported else ', expected 3.10 to 3.13'}"
    yield Check("Python", PASS if supported else WARN, text, "" if supported else "use Python 3.10 to 3.13")


def _packages() -> Iterator[Check]:
    for extra, packages in _EXTRAS.items():
        versions = {package: installed(package) or installed(_REPLACEMENTS.get(package, package)) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        if missing:
            yield Check(extra, WARN, f"`defensemble {extra}` needs {', '.join(missing)}", f"pip install 'defensemble[{extra}]'")
        else:
            yield Check(extra, PASS, ", ".join(map(str, versions.values())))


def _runtime() -> Iterator[Check]:
    install = "defensemble serve, or make install"
    if embedded_triton() is None:
        yield Check("Triton", WARN, "the embedded runtime is not installed; `defensemble serve` installs it", install)
    else:
        yield Check("Triton", PASS, f"embedded runtime, core {EMBEDDED_CORE} ({installed('nvidia-pytriton')})")
    cves, faults = (_listing(known_weaknesses(EMBEDDED_CORE, table)) for table in (KNOWN_CVES, KNOWN_FAULTS))
    yield Check(
        "core age",
        WARN,
        f"core {EMBEDDED_CORE} dates from October 2024; it listens on loopback only. Vulnerabilities fixed since then:\n{cves}",
        "for untrusted clients, use NVIDIA's container, 26.07 or later, behind a proxy",
    )
    yield Check(
        "core faults",
        WARN,
        f"callers can crash core {EMBEDDED_CORE}, overload it, or make it leak memory:\n{faults}",
        "accept only trusted callers, over HTTP, or put the proxy of docs/how-to/proxy.md in front; docs/security.md explains each fault",
    )
    yield _try("ONNX Runtime", onnxruntime_library, "pip install 'defensemble[server]'")
    yield Check(*int8_check())
    fix = "apt-get install g++, or pip install ziglang" + ("; unset CXX, or set it to a compiler that runs" if "CXX" in os.environ else "")
    yield _try("compiler", find_compiler, fix, none="no C++ compiler for the native backend")
    yield _try("backend", built_backend, install, none="not built yet; `defensemble serve` builds it, once")
    yield Check(*operator_check())


def _listing(weaknesses: list[Weakness]) -> str:
    return "\n".join(f"{'':>8}- {weakness}: {weakness.advice}" for weakness in weaknesses)


def _try(name: str, find: Callable[[], object], fix: str, *, none: str = "") -> Check:
    """Return FAIL if `find` raises, and WARN with the text `none` if it finds nothing."""
    try:
        result = find()
    except ServerError as error:
        return Check(name, FAIL, str(error), fix)
    return Check(name, WARN, none, fix) if result is None else Check(name, PASS, str(result))


def _accelerators(machine: Machine) -> Iterator[Check]:
    """Check GPUs and TensorRT. A missing GPU is no problem; without TensorRT, a GPU serves everything except plans."""
    if not machine.gpus:
        yield Check("GPU", PASS, f"none ({machine.why_no_gpu}): only the profile `cpu` works on this machine")
    for gpu in machine.gpus:
        yield Check("GPU", PASS, f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}")
    if machine.tensorrt is not None:
        yield Check("TensorRT", PASS, machine.tensorrt)
    elif machine.gpus:
        fix = f"serve with --runtime docker (image {CONTAINER}), or run make install GPU=1"
        yield Check("TensorRT", WARN, f"none ({machine.why_no_tensorrt}): plans can be built and served only in a container", fix)
    else:
        yield Check("TensorRT", PASS, f"none ({machine.why_no_tensorrt}), and no GPU")


def _repository(repository: Path, machine: Machine) -> Iterator[Check]:
    if not repository.is_dir():
        yield Check("repository", FAIL, f"{repository} is not a folder", "pass a folder written by `defensemble export`")
        return
    for profile in models_by_profile(repository):
        try:
            check_profile(repository, profile, only_cpus=False)
            yield Check(f"profile {profile}", PASS, f"complete in {repository}")
        except NotServableError as error:
            fix = f"defensemble profile list --repository {shlex.quote(str(repository))}"
            yield Check(f"profile {profile}", WARN, str(error), fix)
    for plan in sorted(repository.glob(f"*/[1-9]*/{PLAN_FILE}")):
        if plan.parent.name.isdecimal():  # Triton ignores other folders
            yield _plan(plan.parent.parent, int(plan.parent.name), machine)


def _plan(folder: Path, version: int, machine: Machine) -> Check:
    name = f"plan {folder.name}/{version}"
    build = f"defensemble build-engine {shlex.quote(folder.name)} --repository {shlex.quote(str(folder.parent))} --version {version}"
    try:
        model = read_model(folder, None)
        limits: dict[str, Any] = {"max_batch_size": model.config.max_batch_size, "image_shape": model.image_shape}
        problem = problem_of_version(folder, version, machine, **limits)
        # A problem that also occurs on the machine of the build is a fault of the plan.
        manifest = read_manifest(folder / str(version) / MANIFEST_FILE)
        origin = machine
        if manifest is not None:
            origin = Machine(manifest.tensorrt, (Gpu(manifest.gpu, manifest.compute_capability, manifest.driver),))
        broken = manifest is None or problem_of_version(folder, version, origin, **limits) is not None
    except (NotServableError, ManifestError) as error:
        return Check(name, FAIL, str(error), build)
    if problem is None:
        assert manifest is not None, "a plan without a manifest is a problem"
        return Check(name, PASS, f"built with TensorRT {manifest.tensorrt} on {manifest.gpu}, and runs on this machine")
    elsewhere = machine.tensorrt is None or not machine.gpus
    return Check(name, WARN if elsewhere and not broken else FAIL, problem, build)


def _ports() -> Iterator[Check]:
    ours = {port: state for state in read_states() for port in state.ports}
    for what, port in ServeOptions(check_interval_s=1.0).ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                if port in ours:
                    yield Check(f"{what} port", PASS, f"{port} is used by our server of {ours[port].repository}")
                else:
                    yield Check(f"{what} port", WARN, f"{port} is taken by another program", "defensemble serve --free-ports")
            else:
                yield Check(f"{what} port", PASS, f"{port} is free")


def _servers(urls: list[str]) -> Iterator[Check]:
    damaged: list[Check] = []
    for state in read_states(on_damaged=lambda path, why: damaged.append(Check("server file", WARN, why, f"rm {shlex.quote(str(path))}"))):
        name = f"server {state.grpc_port}"
        yield Check(name, PASS, f"gRPC {state.grpc_port}, HTTP {state.http_port}, serves {state.repository} (process {state.pid})")
        yield _version(name, state.http_url, local=state.host in ("127.0.0.1", "::1", "localhost"))
        status = server_status(state)
        if status.wrong:
            problems = "; ".join(status.wrong.values())
            yield Check(name, FAIL, problems, f"defensemble serve --status --grpc-port {state.grpc_port}")
        if status.last_fault is not None and status.last_fault.time > time.time() - RECENT_S:
            restarts = f"{status.restarts} restart{'' if status.restarts == 1 else 's'}"
            text = f"{status.text}, {restarts}; {status.fault_text}"
            yield Check(name, WARN, text, f"defensemble serve --status --grpc-port {state.grpc_port}")
    yield from damaged
    for dead in dead_servers():
        fix = f"defensemble serve --repository {shlex.quote(dead.repository)}"
        yield Check(f"server {dead.grpc_port}", WARN, f"{dead.repository}: {dead.text}", fix)
    for url in urls:
        yield _version(url, url, local=False)


def _version(name: str, url: str, *, local: bool) -> Check:
    if not url.startswith(("http://", "https://")):
        scheme = url.partition("://")[0] if "://" in url else None
        problem = f"{url!r} has no scheme" if scheme is None else f"{scheme}:// is not supported by `doctor`, got {url!r}"
        return Check(name, FAIL, problem, "pass http://HOST:PORT of the HTTP front end")
    try:
        answer = urllib3.request("GET", f"{url.rstrip('/')}/v2", retries=False, timeout=3.0)
        version = str(json.loads(answer.data)["version"])
        weaknesses = known_weaknesses(version)
    except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError, RecursionError, ServerError) as error:
        return Check(
            name, FAIL, f"{url} does not answer like a Triton server: {error}", "check the URL (http://HOST:PORT of the HTTP front end)"
        )
    if not weaknesses:
        return Check(name, PASS, f"core {version}")
    if local and version == EMBEDDED_CORE:
        return Check(name, WARN, f"core {version}, on loopback; its known faults are listed above", "keep it on this machine")
    return Check(
        name, WARN, f"core {version} has known faults:\n{_listing(weaknesses)}", "use NVIDIA's container, 26.07 or later, behind a proxy"
    )
