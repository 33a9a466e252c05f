"""Graphs as onnx and ONNX Runtime load them; what these libraries refuse becomes an error of this package."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from ..errors import ExportError

# Protobuf's limit of a message; a larger file needs its weights in other files, which no part of a repository here has.
MAX_FILE_BYTES = 2**31 - 1
_LONGEST_REASON = 400
# What onnx puts before the reason: /project/onnx/version_converter/helper.cc:76: adapt: Assertion `false` failed:
_PLACE_IN_SOURCE = re.compile(r"^\S+:\d+: \w+: Assertion `.*?` failed: ")
# And ONNX Runtime: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t)
_PLACE_IN_RUNTIME = re.compile(r"/onnxruntime_src/\S+ [^()]*\([^()]*\) ")


@contextmanager
def translate_errors(message: str, *, file: os.PathLike[str] | str, error: type[ExportError] = ExportError) -> Iterator[None]:
    """Raise what a library refuses as an `error` that begins with the file and `message`.

    onnx, ONNX Runtime and protobuf share no class of errors below Exception, hence around one call each.
    """
    try:
        yield
    except Exception as refusal:
        reason = _PLACE_IN_RUNTIME.sub("", _PLACE_IN_SOURCE.sub("", " ".join(str(refusal).split())))
        raise error(f"{file} {message}: {reason[:_LONGEST_REASON] or type(refusal).__name__}") from refusal


def cpu_session(source: str | bytes, *, optimise: bool = True, threads: int = 0, quiet: bool = False) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU.

    Args:
        source: the path of an ONNX file, beside which its weights may lie, or its bytes.
        optimise: whether ONNX Runtime rewrites the graph, as a server lets it.
        threads: of one node; 0 for one per core.
        quiet: whether nothing is printed; what matters comes as an exception.
    """
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions that wait for each other's cores
    if quiet:
        options.log_severity_level = 4
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def model_from_bytes(content: bytes, name: str) -> onnx.ModelProto:
    """Parse the ONNX file of the model `name`; ExportError where it is none."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError(f"the file of '{name}' is no ONNX file: {error}. It was damaged: export it again") from error


def invalid_reason(model: onnx.ModelProto) -> str | None:
    """Return why onnx's checker refuses a graph, with its types and order; None where it passes."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())
    return None
