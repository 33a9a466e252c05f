"""Read, run and verify foreign ONNX files in a child process with limits on time and memory: few bytes can describe endless work.

Thirty nested functions that each call the next one twice, or a tensor of 2^40 zeros, cost nothing to write. The libraries that load them
cannot be interrupted, and ONNX Runtime computes constants as soon as it loads a graph. Therefore one helper process, started with the first
file (its imports take longer than most files), forks a child for each file.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from defensemble_images.memory import free_memory, proc_sizes
from defensemble_repository.errors import RepositoryError

from ..errors import ExportError, VerificationError
from ..foreign.convert import foreign_interface, foreign_reference, onnx_from_foreign
from ..verification.images import ImagePool, RealImages
from ..verification.mask_aware import inferences
from .mask_aware import has_masks
from .write import ExportOptions, Network, move_export, write_network

DEFAULT_TIMEOUT_S = 120.0
# `-c` puts the working directory, which can contain anything, first on the module path.
_START = "import sys; sys.path = [entry for entry in sys.path if entry]; from defensemble_export.members.foreign_child import main; main()"
# The most derived first.
_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (VerificationError, ExportError, RepositoryError, OSError)}
_MODEL, _ERROR, _LOG = "model.onnx", "error.json", "log"
_IMPORTED, _IMAGES, _CALIBRATION = "imported.onnx", "images.npy", "calibration.npy"
# This many images get the time limit of an import: 4,000 times what a small network needs, and about 20 times what a large one needs.
_IMAGES_IN_TIMEOUT = 64
# Share of the memory that is free when a file is read.
_MEMORY_SHARE = 0.75
_LESS_MEMORY = "export a network with smaller tensors, or use a machine with more memory"


@dataclass(frozen=True, eq=False)
class ForeignExport:
    """The export of an imported `graph` with `options`, compared with the original file on `real` images.

    `reference_options` are the arguments of `foreign_reference`, `pool` contains the calibration images, and `max_batch_size` is the
    largest batch to compare.
    """

    graph: onnx.ModelProto
    reference_options: Mapping[str, Any]
    origin: Mapping[str, Any]
    options: ExportOptions
    real: RealImages
    pool: np.ndarray[Any, Any] | None
    max_batch_size: int

    @property
    def max_inferences(self) -> int:
        """The largest number of images that the graph and the original file are run on."""
        compared = 4 * (3 + self.max_batch_size)
        may_be_mask_aware = has_masks(self.graph) and self.options.mask_aware != "off"
        mask_aware = inferences(self.max_batch_size) if may_be_mask_aware else 0
        converted = 0 if self.options.precision == "fp32" else compared + 2 * len(self.real.images)
        return compared + mask_aware + converted + (0 if self.pool is None else 2 * self.options.calibration_count)


def onnx_from_foreign_limited(path: str | os.PathLike[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any) -> onnx.ModelProto:
    """Run `onnx_from_foreign` in a child process with a limit of `timeout_s` seconds; it raises the same errors."""
    with tempfile.TemporaryDirectory(prefix="defensemble-import-") as folder:
        _run(_import, path, Path(folder), options, timeout_s, "to load and to run on a few images")
        return onnx.load(Path(folder, _MODEL))


def export_foreign_limited(path: Path, target: Path, export: ForeignExport, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Run `write_network` for an imported graph in a child process: real images can make a graph do things that random ones did not.

    Args:
        path: The original ONNX file.
        target: The file to write.
        export: What to export.
        timeout_s: Limit for the start of the child, and again for every 64 images, in seconds.

    Raises:
        ExportError: Time or memory ran out, or the network cannot be converted. Nothing is written after an error.
        VerificationError: The outputs differ by more than the tolerance of the precision.
        OSError: The file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-export-") as name:
        folder = Path(name)
        (folder / _IMPORTED).write_bytes(export.graph.SerializeToString())
        np.save(folder / _IMAGES, export.real.images)
        if export.pool is not None:
            np.save(folder / _CALIBRATION, export.pool)
        selection = {"calibration_count": export.options.calibration_count, "calibration_seed": export.options.calibration_seed}
        options = {
            "reference_options": dict(export.reference_options),
            "origin": dict(export.origin),
            "options": {"precision": export.options.precision, "mask_aware": export.options.mask_aware, **selection},
            "source": export.real.source,
            "max_batch_size": export.max_batch_size,
        }
        limit_s = timeout_s * (1 + export.max_inferences / _IMAGES_IN_TIMEOUT)
        purpose = f"to run on {export.max_inferences} images, as the original and as the export ({timeout_s:g} s for every 64)"
        _run(_write, path, folder, options, limit_s, purpose)
        move_export(folder / _MODEL, target)


def _run(
    job: Callable[[str, Path, dict[str, Any]], None],
    path: str | os.PathLike[str],
    folder: Path,
    options: dict[str, Any],
    timeout_s: float,
    purpose: str,
) -> None:
    """Run `job` in a child, which reads and writes files in `folder`."""
    status = _helper.run((job, os.getcwd(), os.fspath(path), options, str(folder), timeout_s))
    failed = folder / _ERROR
    if failed.exists():
        error = json.loads(failed.read_bytes())
        raise _ERRORS[error["kind"]](*error["args"])
    if os.WIFSIGNALED(status):
        raise ExportError(f"{path} {_reason(signal.Signals(os.WTERMSIG(status)), timeout_s, purpose)}")
    if status:
        raise RuntimeError((folder / _LOG).read_text(errors="replace"))


def _reason(ended_by: signal.Signals, timeout_s: float, purpose: str) -> str:
    if ended_by == signal.SIGALRM:
        return (
            f"took longer than {timeout_s:g} s {purpose}: "
            "export it without loops and repeated functions, or allow more time (--timeout SECONDS)"
        )
    if ended_by == signal.SIGKILL:
        return f"was killed while it was loaded and run, probably because memory ran out: {_LESS_MEMORY}"
    return f"made ONNX or ONNX Runtime crash ({ended_by.name}): export it again with other versions or, if --precision was given, as fp32"


def _import(path: str, folder: Path, options: dict[str, Any]) -> None:
    (folder / _MODEL).write_bytes(onnx_from_foreign(path, **options).SerializeToString())


def _write(path: str, folder: Path, options: dict[str, Any]) -> None:
    images = np.load(folder / _IMAGES)
    graph = onnx.load(folder / _IMPORTED)
    shape, _ = foreign_interface(graph)
    calibration = folder / _CALIBRATION
    pool = ImagePool.from_images(np.load(calibration), shape) if calibration.exists() else None
    reference_name = f"the file itself, in ONNX Runtime {onnxruntime.__version__}"
    try:
        network = Network(graph, foreign_reference(path, **options["reference_options"]), reference_name, shape, options["origin"])
        real = RealImages(images, options["source"])
        write_network(network, folder / _MODEL, ExportOptions(**options["options"]), real, pool, options["max_batch_size"])
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from error


class _Helper:
    """A process without threads that forks a child for each request. It ends when this process, which holds its standard input, ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, request: object) -> int:
        """Run a request and return the status of the child, as `os.waitpid` returns it."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # threads do not survive the fork
                    start_new_session=True,  # this process kills it after Ctrl-C
                )
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(base64.b64encode(pickle.dumps(request)) + b"\n")
                process.stdin.flush()
                status = process.stdout.readline()
                if not status:
                    raise ExportError(f"the process that loads ONNX files was killed, probably because memory ran out: {_LESS_MEMORY}")
                return int(status)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self.close()
                raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


_helper = _Helper()
atexit.register(_helper.close)


def main() -> None:
    """Run the helper: read requests from standard input, and write statuses to standard output."""
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(*pickle.loads(base64.b64decode(line))))
        _, status = os.waitpid(child, 0)
        print(status, flush=True)  # noqa: T201 - the protocol


def _in_child(
    job: Callable[[str, Path, dict[str, Any]], None], cwd: str, path: str, options: dict[str, Any], folder: str, timeout_s: float
) -> int:
    log = os.open(Path(folder, _LOG), os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):  # libraries print, and the helper's protocol uses standard output
        os.dup2(log, stream)
    try:
        os.chdir(cwd)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        limit = _limit_memory()
        try:
            job(path, Path(folder), options)
        except MemoryError as error:
            message = f"{path} needs more than {limit / 2**30:.1f} GiB of memory to load and to run"
            raise ExportError(f"{message} ({error or 'out of memory'}): {_LESS_MEMORY}") from error
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
        args = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else [str(error)]
        Path(folder, _ERROR).write_text(json.dumps({"kind": kind, "args": args}))
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _limit_memory() -> int:
    """Limit the data of this process to its current size plus a share of the free memory; return the bytes that it may add."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out nevertheless, the kernel kills this process
    allowed = int(free_memory() * _MEMORY_SHARE)
    limit = proc_sizes("/proc/self/status")["VmData"] + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return allowed
