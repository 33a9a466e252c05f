"""The operator library for mask-aware graphs, in your own sessions of ONNX Runtime.

A graph that `defensemble export` wrote as mask-aware runs anywhere. Where this library is registered, its masked bottom costs what its live
neurons cost; elsewhere it runs densely, with the same answers. Needs the extra `export` or `server`, and a C++ compiler at first use.

Example:
    >>> import onnxruntime
    >>> from defensemble import ops
    >>> options = onnxruntime.SessionOptions()
    >>> ops.register(options)
    >>> session = onnxruntime.InferenceSession("model.onnx", options)
    >>> ops.is_active(session)
    True
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._exceptions import MissingExtraError

__all__ = ["is_active", "library_path", "register"]


def library_path(on_progress: Callable[[str], None] | None = None) -> Path:
    """Return the path of the operator library, after building it if it is not in the user's cache.

    `SessionOptions.register_custom_ops_library` takes it. Programs in other languages can register the same file.

    Args:
        on_progress: Receives a message before a build; by default it is printed to standard error.

    Raises:
        BuildError: There is no C++ compiler, or it failed.
        OSError: The user's cache is full or cannot be written.
    """
    from defensemble_ops import library_path

    return library_path(on_progress)


def register(options: Any) -> None:
    """Register the operator library with the `onnxruntime.SessionOptions` of sessions that are made afterwards.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BuildError: There is no C++ compiler, or it failed.
        OSError: The user's cache is full or cannot be written.
        ValueError: The environment variable DEFENSEMBLE_OPS_ISA names no instruction set of this processor.
    """
    _check_onnxruntime()
    from defensemble_ops import register

    register(options)


def is_active(session: Any) -> bool:
    """Run an `onnxruntime.InferenceSession` on one image of zeros, and return whether the operator library computed a part of it.

    False means that the graph is not mask-aware, or that the library was not registered, so that it runs densely.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ValueError: The session runs nodes on other threads (ORT_PARALLEL), or an input is not a tensor of numbers with a known size.
    """
    _check_onnxruntime()
    from defensemble_ops import is_active

    return is_active(session)


def _check_onnxruntime() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("the operator library needs ONNX Runtime, which is not installed: pip install 'defensemble[server]'")
