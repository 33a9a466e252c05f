"""The operator in sessions of ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .library import ensure_library, instruction_set_of, runs_of_this_thread

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def library_path(on_progress: Callable[[str], None] | None = None) -> Path:
    """Return the path of the operator library, after building it if it is not in the user's cache.

    Args:
        on_progress: Receives a message before a build; by default it is printed to standard error.

    Raises:
        BuildError: There is no C++ compiler, or it failed.
        OSError: The user's cache is full or cannot be written.

    Example:
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(str(library_path()))
    """
    return ensure_library(on_progress=on_progress)


def instruction_set() -> str:
    """Return the instruction set that the operator library uses on this processor: "avx512", "avx2" or "baseline".

    Raises:
        BuildError: There is no C++ compiler, or it failed.
        OSError: The user's cache is full or cannot be written.
        ValueError: The environment variable DEFENSEMBLE_OPS_ISA names none that this processor has.
    """
    return instruction_set_of(library_path())


def register(options: SessionOptions) -> None:
    """Register the operator library with the options of a session, which then runs mask-aware graphs sparsely.

    Raises:
        BuildError: There is no C++ compiler, or it failed.
        OSError: The user's cache is full or cannot be written.
        ValueError: The environment variable DEFENSEMBLE_OPS_ISA names no instruction set that this processor has.

    Example:
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)
        >>> session = onnxruntime.InferenceSession("model.onnx", options)
    """
    path = library_path()
    instruction_set_of(path)  # its error is clearer than that of ONNX Runtime
    options.register_custom_ops_library(str(path))


def registration_problem(path: Path) -> str | None:
    """Return why the installed ONNX Runtime refuses the library at `path`; None if it accepts it.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its wheels (seen in 1.32) send events to Microsoft by default
    from onnxruntime import SessionOptions

    try:
        SessionOptions().register_custom_ops_library(str(path))
    except Exception as error:  # its classes of errors have no common base
        return str(error)
    return None


def is_active(session: InferenceSession) -> bool:
    """Run a session once, on one image of zeros, and return whether the operator library computed a part of it.

    False means that the graph has no mask-aware node, or that the library was not registered and the node runs densely.

    Raises:
        ValueError: The session runs nodes on other threads (ORT_PARALLEL), or an input is not a tensor of numbers with a known size.
    """
    from onnxruntime import ExecutionMode

    if session.get_session_options().execution_mode == ExecutionMode.ORT_PARALLEL:
        raise ValueError(
            "the execution mode must be ORT_SEQUENTIAL, got ORT_PARALLEL, in which nodes run on threads that cannot be observed; "
            "make another session of the same model with ORT_SEQUENTIAL"
        )
    images = {one.name: _zeros(one) for one in session.get_inputs()}
    before = runs_of_this_thread()
    session.run(None, images)
    return runs_of_this_thread() > before


def _zeros(given: Any) -> Any:
    import numpy as np

    if given.type not in _TYPES:
        raise ValueError(f"input {given.name!r} must be a tensor of numbers, got {given.type}")
    # The first dimension is the batch.
    shape = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(given.shape)]
    if not all(isinstance(size, int) for size in shape):
        raise ValueError(
            f"every dimension of input {given.name!r} but the batch must be a number, got {given.shape}; "
            "export the model with a fixed image size"
        )
    return np.zeros(shape, _TYPES[given.type])
