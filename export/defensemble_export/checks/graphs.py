"""Checks that ONNX Runtime loads the graphs of a repository, and that their inputs and outputs match their configurations.

The rules are those of our backend (`server_config/onnxruntime_backend/model.cc`), which reports the same reasons when Triton loads a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import onnx
from onnxruntime import InferenceSession, NodeArg

from defensemble_ops import DOMAIN
from defensemble_repository.checks.config_rules import TYPE_SIZES
from defensemble_repository.checks.finding import ConfigProblem, Step, parameter_path
from defensemble_repository.checks.inspection import Inspection
from defensemble_repository.checks.wiring import format_type, same_shape
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import BACKEND, PLAN_BACKEND
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import is_ensemble, model_backend, model_filename, parameter, versions_by_policy

from ..graphs.loading import cpu_session

# Triton's names of ONNX Runtime's floating-point types; the names of integer types differ only in case.
_FLOATS = {"float16": "FP16", "float": "FP32", "double": "FP64", "bfloat16": "BF16"}


def check_graphs(inspection: Inspection, models: Iterable[str]) -> None:
    """Open the graphs of `models`, unless they have errors already or another runtime runs them; report models that are not checked."""
    for model in dict.fromkeys(models):
        config = inspection.config(model)
        if config is None or is_ensemble(config) or inspection.has_error(model):
            continue
        field = _unknown_runner(config)
        if field is not None:
            text = f"its files are not checked: {field} {getattr(config, field)!r}"
            inspection.add_finding(model, text, inspection.config_path(model), field, is_error=False, unchecked=True)
            continue
        if model_backend(config) != BACKEND:
            continue  # a TensorRT plan, which is compared with its manifest
        with inspection.blocking(model):
            for version in versions_by_policy(inspection.versions(model), config):
                path = f"{model}/{version}/{model_filename(config)}"
                session = _session(inspection, model, version, path)
                for problem in _problems(config, session, embedded=inspection.target.embedded) if session is not None else ():
                    inspection.add_finding(model, f"version {version}: {problem.text}", inspection.config_path(model), *problem.path)
                if session is not None:
                    _check_form(inspection, model, version, config, path)


def _check_form(inspection: Inspection, model: str, version: int, config: schema.ModelConfig, path: str) -> None:
    """Compare the parameter `mask_aware` with the graph. The answers are right either way, but what is shown of the model is not."""
    key, file = f"mask_aware.{version}", inspection.files.repository / path
    nodes = onnx.load(file, load_external_data=False).graph.node
    stated, found = parameter(config, key), next((node.op_type for node in nodes if node.domain == DOMAIN), None)
    if stated != found:
        is_stated = f"{key} is {stated!r}" if stated is not None else f"{key} is missing"
        fix = f"remove the parameter {key}" if found is None else f"write {found!r}"
        text = f"{is_stated}, but {file} {'is a plain graph' if found is None else f'has the operator {found}'}: {fix}"
        field = () if stated is None else parameter_path(key)
        inspection.add_finding(model, text, inspection.config_path(model), *field, is_error=False)


def _unknown_runner(config: schema.ModelConfig) -> str | None:
    """Return the field that selects an unknown runtime for a model, whose files cannot be checked here; None for a known runtime."""
    backend = model_backend(config)
    if backend not in (BACKEND, PLAN_BACKEND):
        return "backend" if config.backend else "platform"
    return "runtime" if config.runtime not in ("", f"libtriton_{backend}.so") else None


def _session(inspection: Inspection, model: str, version: int, path: str) -> InferenceSession | None:
    file = inspection.files.repository / path
    try:
        # By path, because a graph may keep its weights in files next to it. ONNX Runtime only supports paths in UTF-8.
        source = str(file) if os.fsencode(file).decode(errors="replace") == str(file) else read_regular(file)
        return cpu_session(source, optimise=False, threads=1, quiet=True)  # without optimisation, large networks open several times faster
    except Exception as error:
        inspection.add_finding(model, f"version {version}: ONNX Runtime cannot load it: {str(error)[:500]}; export the model again", path)
        return None


def _problems(config: schema.ModelConfig, session: InferenceSession, *, embedded: bool) -> Iterator[ConfigProblem]:
    for kind, stated, tensors in (("input", config.input, session.get_inputs()), ("output", config.output, session.get_outputs())):
        if not embedded and not stated:
            continue  # NVIDIA's backend completes the configuration
        by_name = {tensor.name: tensor for tensor in tensors}
        names = ", ".join(f"'{name}'" for name in by_name) or "none"
        for index, tensor in enumerate(stated):
            path: tuple[Step, ...] = ((kind, index),)
            if tensor.name in by_name:
                yield from _tensor_problems(config, f"{kind} '{tensor.name}'", tensor, by_name[tensor.name], path)
            else:
                yield ConfigProblem(f"declares the {kind} '{tensor.name}', which the graph does not have; it has {names}", path)
        if kind == "input" and len(stated) != len(tensors):
            yield ConfigProblem(f"declares {len(stated)} inputs, but the graph has {len(tensors)}: {names}; declare each once", (kind,))


def _tensor_problems(
    config: schema.ModelConfig, label: str, stated: schema.ModelInput | schema.ModelOutput, tensor: NodeArg, path: tuple[Step, ...]
) -> Iterator[ConfigProblem]:
    name = tensor.type.removeprefix("tensor(").removesuffix(")")
    kind = schema.DataType.DESCRIPTOR.values_by_name.get(f"TYPE_{_FLOATS.get(name, name.upper())}")
    if kind is None or kind.number not in TYPE_SIZES:
        yield ConfigProblem(f"{label} is {tensor.type} in the graph, which the backend does not support; export the model again", path)
    elif stated.data_type not in (kind.number, schema.TYPE_INVALID):
        yield ConfigProblem(
            f"{label} is {format_type(kind.number)} in the graph, but declared as {format_type(stated.data_type)}", (*path, "data_type")
        )
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape or ()]
    declared = list(stated.reshape.shape if stated.HasField("reshape") else stated.dims)
    if config.max_batch_size > 0:
        if shape and shape[0] != -1:
            text = f"{label} has a batch of {shape[0]} in the graph, but max_batch_size is {config.max_batch_size}; export it with a "
            yield ConfigProblem(f"{text}dynamic batch, or set max_batch_size to 0", ("max_batch_size",))
            return
        declared = [-1, *declared]
    sizes = list(zip(shape, declared, strict=False))[1:]
    if stated.name == "images" and any(size > 0 and other == -1 for size, other in sizes):
        # A caller could then send any size, and the server's readiness check sends a small one.
        yield ConfigProblem(f"{label} has shape {shape} in the graph, but is declared with any size; write the sizes", (*path, "dims"))
    elif shape and declared and not same_shape(shape, declared):
        batch = ", with the batch in front" if config.max_batch_size > 0 else " (max_batch_size is 0, so no batch is added)"
        yield ConfigProblem(f"{label} has shape {shape} in the graph, but is declared as {declared}{batch}", (*path, "dims"))
