"""Foreign ONNX files are read, tried and verified in a child process of limited time and memory: few bytes can describe endless work.

A function that calls a function twice, thirty times over, or a tensor of 2^40 zeros, costs nothing to write. The libraries that meet it
cannot be interrupted, and ONNX Runtime already computes constants when it loads a graph. Hence one helper process, started with the first
file (importing takes longer than most files), forks a child for each file.
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
from .write import Form, Network, move_form, write_form

DEFAULT_TIMEOUT_S = 120.0
# `-c` puts the working directory first in the path of modules, where anything may lie.
_START = "import sys; sys.path = [entry for entry in sys.path if entry]; from defensemble_export.members.foreign_child import main; main()"
# The most derived first.
_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (VerificationError, ExportError, RepositoryError, OSError)}
_MODEL, _ERROR, _LOG = "model.onnx", "error.json", "log"
_IMPORTED, _IMAGES, _CALIBRATION = "imported.onnx", "images.npy", "calibration.npy"
# So many images may take what the import may take: 4,000 times a small network's time, some twenty times that of a large one.
_IMAGES_IN_TIMEOUT = 64
# Of the memory that is available when a file is read.
_MEMORY_SHARE = 0.75
_LESS_MEMORY = "export a network with smaller tensors, or use a machine with more memory"


@dataclass(frozen=True, eq=False)
class ForeignExport:
    """What is written of a foreign file: its ``graph`` as imported, in ``form``, compared with the file itself on ``real`` images.

    ``asked`` are the arguments of ``foreign_reference``, ``pool`` holds the images of a calibration, ``max_batch_size`` is the largest
    batch that is compared.
    """

    graph: onnx.ModelProto
    asked: Mapping[str, Any]
    origin: Mapping[str, Any]
    form: Form
    real: RealImages
    pool: np.ndarray[Any, Any] | None
    max_batch_size: int

    @property
    def answers(self) -> int:
        """How many images are given to the graph or to the file itself, at most."""
        compared = 4 * (3 + self.max_batch_size)
        converted = 0 if self.form.precision == "fp32" else compared + 2 * len(self.real.images)
        return compared + converted + (0 if self.pool is None else 2 * self.form.calibration_count)


def onnx_from_foreign_limited(path: str | os.PathLike[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any) -> onnx.ModelProto:
    """Return what `onnx_from_foreign` makes of a file, found out in a child process that may take ``timeout_s``; errors are the same."""
    with tempfile.TemporaryDirectory(prefix="defensemble-import-") as folder:
        _run(_import, path, Path(folder), options, timeout_s, "to be loaded and run on a few images")
        return onnx.load(Path(folder, _MODEL))


def write_foreign_limited(path: Path, target: Path, export: ForeignExport, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Write an imported file and its report by `write_form`, in a child process: what real images make a graph do is not known before.

    ``path`` is the ONNX file as it was given; the child may take ``timeout_s`` to start, and again for each 64 images. Raises what
    `write_form` does, and an ExportError where time or memory did not suffice; then nothing is written.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-export-") as folder:
        place = Path(folder)
        (place / _IMPORTED).write_bytes(export.graph.SerializeToString())
        np.save(place / _IMAGES, export.real.images)
        if export.pool is not None:
            np.save(place / _CALIBRATION, export.pool)
        drawn = {"calibration_count": export.form.calibration_count, "calibration_seed": export.form.calibration_seed}
        options = {
            "asked": dict(export.asked),
            "origin": dict(export.origin),
            "form": {"precision": export.form.precision, **drawn},
            "source": export.real.source,
            "max_batch_size": export.max_batch_size,
        }
        limit = timeout_s * (1 + export.answers / _IMAGES_IN_TIMEOUT)
        _run(
            _write, path, place, options, limit, f"to answer {export.answers} images, of itself and exported ({timeout_s:g} s for each 64)"
        )
        move_form(place / _MODEL, target)


def _run(
    job: Callable[[str, Path, dict[str, Any]], None],
    path: str | os.PathLike[str],
    folder: Path,
    options: dict[str, Any],
    timeout_s: float,
    purpose: str,
) -> None:
    """Do ``job`` in a child, which finds and leaves files in ``folder``."""
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
            f"took longer than {timeout_s:g} s {purpose}, expected a network that answers at once: "
            "export it without loops and repeated functions, or allow more (--timeout SECONDS)"
        )
    if ended_by == signal.SIGKILL:
        return f"was stopped while it was loaded and run, probably as memory ended: {_LESS_MEMORY}"
    return (
        f"made ONNX or ONNX Runtime crash ({ended_by.name}): export it again, with other versions or, where --precision was given, as fp32"
    )


def _import(path: str, folder: Path, options: dict[str, Any]) -> None:
    (folder / _MODEL).write_bytes(onnx_from_foreign(path, **options).SerializeToString())


def _write(path: str, folder: Path, options: dict[str, Any]) -> None:
    images = np.load(folder / _IMAGES)
    graph = onnx.load(folder / _IMPORTED)
    shape, _ = foreign_interface(graph)
    calibration = folder / _CALIBRATION
    pool = ImagePool.of(np.load(calibration), shape) if calibration.exists() else None
    against = f"the file itself, in ONNX Runtime {onnxruntime.__version__}"
    try:
        network = Network(graph, foreign_reference(path, **options["asked"]), against, shape, options["origin"])
        real = RealImages(images, options["source"])
        write_form(network, folder / _MODEL, Form(**options["form"]), real, pool, options["max_batch_size"])
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from error


class _Helper:
    """A process without threads that forks a child for each request; it ends with this process, which holds its standard input."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, request: object) -> int:
        """Have a request done, and return the child's status as `os.waitpid` gives it."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads would not survive the fork
                    start_new_session=True,  # Ctrl-C reaches it through us
                )
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(base64.b64encode(pickle.dumps(request)) + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise ExportError(f"the process that tries ONNX files was killed, probably as memory ended: {_LESS_MEMORY}")
                return int(answer)
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
    """Run the helper: requests come on standard input, statuses go to standard output."""
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
    for stream in (1, 2):  # libraries print; standard output is the helper's protocol
        os.dup2(log, stream)
    try:
        os.chdir(cwd)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        limit = _limit_memory()
        try:
            job(path, Path(folder), options)
        except MemoryError as error:
            needs = f"{path} needs more than {limit / 2**30:.1f} GiB of memory to be loaded and run"
            raise ExportError(f"{needs} ({error or 'out of memory'}): {_LESS_MEMORY}") from error
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
    """Limit this process's data to what it has now and a share of what the machine has free; return how many bytes it may add."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # should memory end nevertheless, let it be this process that is killed
    allowed = int(free_memory() * _MEMORY_SHARE)
    limit = proc_sizes("/proc/self/status")["VmData"] + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return allowed
