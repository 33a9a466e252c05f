"""NVIDIA's perf_analyzer: the program of an old tritonclient wheel, kept in the user's cache."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_REQUIREMENT = "tritonclient==2.48.0 --hash=sha256:7074885798e8a711fedaf94d6dd77f310973fe2ebf29fb2837db350a43e2d6a5"
_PROGRAM = "tritonclient-2.48.0.data/data/bin/perf_analyzer"
_LIBRARIES = ("libb64.so.0d", "libcudart.so.12")  # which it needs, and the Triton wheel has under longer names


@dataclass(frozen=True)
class Measured:
    """What perf_analyzer reports for one load."""

    requests_per_s: float
    p50_ms: float


def measure(model: str, url: str, folder: Path, *load: str, window_ms: int) -> Measured:
    """Run perf_analyzer for three windows, and return its report.

    Args:
        model: Name of the model.
        url: http://HOST:PORT or grpc://HOST:PORT.
        folder: An empty folder.
        load: Its options for the load.
        window_ms: Milliseconds of a window.
    """
    program = _program()
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    for name in _LIBRARIES:
        stem, _, end = name.partition(".so")
        (found,) = (Path(spec.origin).parent.parent / "nvidia_pytriton.libs").glob(f"{stem}-*.so{end}*")
        (libraries / name).symlink_to(found)
    protocol, _, address = url.partition("://")
    report = folder / "report.csv"
    # Stable or not, what it measured is compared: 3 windows, whatever their differences.
    stability = ["--stability-percentage", "999", "--max-trials", "3", "--measurement-interval", str(window_ms)]
    command = [str(program), "-m", model, "-i", protocol, "-u", address, *load, *stability, "-f", str(report)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with report.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return Measured(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000)


def _program() -> Path:
    """The program. It is downloaded at the first call."""
    parent = Path(os.environ.get("DEFENSEMBLE_TEST_ENVS") or platformdirs.user_cache_path("defensemble") / "test-environments")
    program = parent / "perf_analyzer-2.48.0"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "perf_analyzer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may be downloading it
        if not program.exists():
            _download(program)
    return program


def _download(program: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="new-", dir=program.parent) as name:
        folder = Path(name)
        (folder / "requirements.txt").write_text(_REQUIREMENT)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command = [*pip, "--dest", name, "--requirement", "requirements.txt"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        (wheel,) = folder.glob("*.whl")
        new = folder / "perf_analyzer"
        new.write_bytes(zipfile.ZipFile(wheel).read(_PROGRAM))
        new.chmod(0o755)
        new.rename(program)
