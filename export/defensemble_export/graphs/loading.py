"""Load graphs with onnx and ONNX Runtime, and translate the errors of these libraries."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import onnxruntime

from ..errors import ExportError

# Protobuf's limit of a message. A larger model would need its weights in other files, which this package does not write.
MAX_FILE_BYTES = 2**31 - 1
_MAX_REASON_LENGTH = 400
# What onnx puts before a reason: /project/onnx/version_converter/helper.cc:76: adapt: Assertion `false` failed:
_ONNX_SOURCE_LOCATION = re.compile(r"^\S+:\d+: \w+: Assertion `.*?` failed: ")
# And ONNX Runtime: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t)
_RUNTIME_SOURCE_LOCATION = re.compile(r"/onnxruntime_src/\S+ [^()]*\([^()]*\) ")


@contextmanager
def translate_errors(message: str, *, file: os.PathLike[str] | str, error: type[ExportError] = ExportError) -> Iterator[None]:
    """Translate the exceptions of a library into an `error` that begins with the file and `message`.

    The errors of onnx, ONNX Runtime and protobuf have no common base below Exception, so put only one call inside.

    Args:
        message: What failed, after the name of the file.
        file: The file, or what errors call the graph.
        error: The class to raise.
    """
    try:
        yield
    except Exception as cause:
        reason = _RUNTIME_SOURCE_LOCATION.sub("", _ONNX_SOURCE_LOCATION.sub("", " ".join(str(cause).split())))
        raise error(f"{file} {message}: {reason[:_MAX_REASON_LENGTH] or type(cause).__name__}") from cause


def cpu_session(
    source: str | bytes,
    *,
    optimise: bool = True,
    threads: int = 0,
    quiet: bool = False,
    register: Callable[[onnxruntime.SessionOptions], None] = lambda options: None,
) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU.

    Args:
        source: The path of an ONNX file, which may have external data, or the bytes of one.
        optimise: Enable graph optimisation, as in a server.
        threads: Threads per node; 0 for one per core.
        quiet: Print nothing; errors are raised.
        register: Adds libraries of operators to the options of the session.
    """
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions would occupy the cores of others
    if quiet:
        options.log_severity_level = 4
    register(options)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def invalid_reason(model: onnx.ModelProto) -> str | None:
    """Return why onnx's checker rejects a graph, including types and node order; None if it passes."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())
    return None
