"""Build a TensorRT plan and its manifest from an ONNX file."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx

from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import MANIFEST_FILE, PLAN_FILE
from defensemble_repository.plan_manifest import Manifest

from ..errors import EngineError
from ..graphs.mask_aware import is_mask_aware, plain_onnx
from ..graphs.traversal import real_inputs
from .build_steps import INPUT, BuildRequest, Messages, build
from .parser_support import parser_list, problems_of_graph
from .target import Target, load_tensorrt
from .timing_cache import TimingCache

# Messages of TensorRT during a build; `defensemble build-engine --log` writes them to a file.
logger = logging.getLogger("defensemble_export.tensorrt")
# Called with (phase, its parent phase or "", steps done, total steps), from TensorRT's threads.
OnPhase = Callable[[str, str, int, int], None]


def engine_from_onnx(
    graph: Path, plan_path: Path, request: BuildRequest, target: Target, *, timing_cache: Path | None, on_phase: OnPhase | None
) -> Manifest:
    """Build a TensorRT plan and write it with its manifest.

    The network is strongly typed: the graph determines the precision, and that of `request` is only recorded.

    Args:
        graph: The ONNX file.
        plan_path: The plan to write (`model.plan`). The manifest is written to `<plan_path>.json`.
        request: What to build, from `request_from_onnx`.
        target: This machine, from `find_target`.
        timing_cache: File of kernel timings to read and update, or None.
        on_phase: Called with the phase, its parent phase, the steps done and the total steps; or None.

    Raises:
        EngineError: TensorRT is missing or rejects the graph, or the build fails.
        OSError: A file cannot be read or written.
    """
    content = read_regular(graph)
    trt = load_tensorrt()
    started = time.monotonic()
    plan = _build_plan(trt, request, plain_content(content, str(graph)), str(graph), timing_cache, on_phase)
    manifest = Manifest(
        **asdict(target),
        **request.recorded,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        build_s=round(time.monotonic() - started, 3),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    # Write the manifest last: a plan with the manifest of another plan is rejected, and a manifest without a plan is ignored.
    write_atomic(plan_path, plan)
    write_atomic(plan_path.with_name(plan_path.name + MANIFEST_FILE.removeprefix(PLAN_FILE)), manifest.to_bytes())
    return manifest


def request_from_onnx(content: bytes, where: str, **options: Any) -> BuildRequest:
    """Return the build request of a graph, after all checks that do not need TensorRT.

    Args:
        content: The bytes of the ONNX file.
        where: What errors call it.
        **options: The other fields of `BuildRequest`.

    Raises:
        EngineError: The graph has other inputs than `images`, or contains something that TensorRT's parser is not documented to support.
        RepositoryError: A number is out of range.
    """
    model = plain_onnx(_parse(content, where))
    inputs = real_inputs(model.graph)
    sizes = [size.dim_value for size in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    element = inputs[0].type.tensor_type.elem_type if inputs else 0
    if [value.name for value in inputs] != [INPUT] or element != onnx.TensorProto.FLOAT or len(sizes) != 4 or 0 in sizes[1:]:
        listed = ", ".join(f"{value.name} of {value.type.tensor_type.elem_type and _type_name(value)}" for value in inputs) or "none"
        raise EngineError(
            f"{where} must have one input, '{INPUT}' FLOAT [N,C,H,W] with known C, H and W; its inputs are {listed}: export the model again"
        )
    batch, channels, height, width = sizes
    if batch and batch != options["max_batch_size"]:
        raise EngineError(f"{where} has a fixed batch of {batch}, and max_batch_size is {options['max_batch_size']}: make them equal")
    problems = problems_of_graph(model)
    if problems:
        documented = parser_list()
        raise EngineError(
            f"{where} contains something that TensorRT's parser is not documented to support (list of {documented.tensorrt}, "
            f"{documented.source}); serve the model without a plan:\n  " + "\n  ".join(problems)
        )
    return BuildRequest((channels, height, width), fixed_batch=batch > 0, **options)


def plain_content(content: bytes, where: str) -> bytes:
    """Return the bytes that TensorRT parses: of a mask-aware file those of its plain graph, since TensorRT does not have the operator.

    Args:
        content: The bytes of the ONNX file.
        where: What errors call it.

    Raises:
        EngineError: The file is not an ONNX file.
    """
    model = _parse(content, where)
    return bytes(plain_onnx(model).SerializeToString(deterministic=True)) if is_mask_aware(model) else content


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # the class of protobuf's error depends on its implementation
        raise EngineError(f"{where} is not an ONNX file, or is damaged: {error}; export the model again") from error


def _build_plan(trt: Any, request: BuildRequest, content: bytes, where: str, timing_cache: Path | None, on_phase: OnPhase | None) -> bytes:
    messages = Messages()
    monitor = _progress_monitor(trt, messages, on_phase)
    timings = None if timing_cache is None else TimingCache(timing_cache, logger)
    attach = None if timings is None else timings.attach
    try:
        plan = build(
            trt,
            request,
            content,
            where,
            logger=_build_logger(trt, messages),
            monitor=monitor,
            attach_timing_cache=attach,
            messages=messages,
        )
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # from pybind11, if TensorRT's API has changed
        raise EngineError(
            f"TensorRT {trt.__version__} cannot build a plan of {where}: {error}. TensorRT's errors: {messages.last()}"
        ) from error
    if messages.interruption is not None:
        raise messages.interruption
    if plan is None:
        raise EngineError(
            f"TensorRT built no plan of {where}. TensorRT's errors: {messages.last()}\nIf memory ran out: stop other processes on the GPU "
            "(nvidia-smi lists them), lower max_batch_size, or limit the workspace (--workspace)"
        )
    if timings is not None:
        timings.save()
    return bytes(plan)


def _build_logger(trt: Any, messages: Messages) -> Any:
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            try:
                level = levels[severity]
                if level >= logging.ERROR:
                    messages.errors.append(msg)
                logger.log(level, "%s", msg)
            except BaseException as error:  # an exception would abort the process: `log` is noexcept in C++
                messages.interruption = messages.interruption or error

    return Logger()


def _progress_monitor(trt: Any, messages: Messages, on_phase: OnPhase | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str, int]] = {}
            self.reported: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase or "", num_steps)
            self.reported.pop(phase_name, None)
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return messages.interruption is None  # False cancels the build

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, None)

        def _report(self, phase: str, done: int | None) -> None:
            try:
                parent, steps = self.phases[phase]
                done = steps if done is None else done
                if on_phase is not None and self.reported.get(phase) != done:  # report the last step and the end only once
                    self.reported[phase] = done
                    on_phase(phase, parent, done, steps)
            except BaseException as error:  # even Ctrl-C must not pass through C++
                messages.interruption = messages.interruption or error

    return Monitor()


def _type_name(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = [size.dim_value or size.dim_param or "?" for size in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {shape}"
