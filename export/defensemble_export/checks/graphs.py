"""Whether ONNX Runtime loads the graphs of a repository, and whether they take and give what their configurations declare.

The rules are those of our backend (`server_config/onnxruntime_backend/model.cc`), whose reasons Triton gives where it loads the models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from onnxruntime import InferenceSession, NodeArg

from defensemble_repository.checks.config_rules import TYPE_SIZES
from defensemble_repository.checks.finding import ConfigProblem, Step
from defensemble_repository.checks.inspection import Inspection
from defensemble_repository.checks.wiring import format_type, same_shape
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import BACKEND, PLAN_BACKEND
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import is_ensemble, model_backend, model_filename, versions_by_policy

from ..graphs.loading import cpu_session

# ONNX Runtime's names of floating-point types, as Triton calls them; names of integers are the same but for their case.
_FLOATS = {"float16": "FP16", "float": "FP32", "double": "FP64", "bfloat16": "BF16"}


def check_graphs(found: Inspection, models: Iterable[str]) -> None:
    """Open the graphs of `models` that ONNX Runtime runs and of which nothing else was found, and say which files are not checked."""
    for model in dict.fromkeys(models):
        config = found.config(model)
        if config is None or is_ensemble(config) or found.has_error(model):
            continue
        field = _unknown_runner(config)
        if field is not None:
            text = f"its files are not checked: {field} {getattr(config, field)!r}"
            found.add_finding(model, text, found.config_path(model), field, is_error=False, unchecked=True)
            continue
        if model_backend(config) != BACKEND:
            continue  # a plan, which is compared with its manifest
        with found.blocking(model):
            for version in versions_by_policy(found.versions(model), config):
                path = f"{model}/{version}/{model_filename(config)}"
                session = _session(found, model, version, path)
                for fault in _faults(config, session, embedded=found.target.embedded) if session is not None else ():
                    found.add_finding(model, f"version {version}: {fault.text}", found.config_path(model), *fault.path)


def _unknown_runner(config: schema.ModelConfig) -> str | None:
    """The field that names what runs a model, where its files cannot be judged here; None where they can."""
    backend = model_backend(config)
    if backend not in (BACKEND, PLAN_BACKEND):
        return "backend" if config.backend else "platform"
    return "runtime" if config.runtime not in ("", f"libtriton_{backend}.so") else None


def _session(found: Inspection, model: str, version: int, path: str) -> InferenceSession | None:
    file = found.files.repository / path
    try:
        # By its path, beside which a graph may keep its weights; ONNX Runtime takes paths that are UTF-8.
        source = str(file) if os.fsencode(file).decode(errors="replace") == str(file) else read_regular(file)
        return cpu_session(source, optimise=False, threads=1, quiet=True)  # unoptimised, a large network opens several times as fast
    except Exception as error:
        found.add_finding(model, f"version {version}: ONNX Runtime cannot load it: {str(error)[:500]}: export the model again", path)
        return None


def _faults(config: schema.ModelConfig, session: InferenceSession, *, embedded: bool) -> Iterator[ConfigProblem]:
    for kind, stated, tensors in (("input", config.input, session.get_inputs()), ("output", config.output, session.get_outputs())):
        if not embedded and not stated:
            continue  # NVIDIA's backend completes it
        by_name = {tensor.name: tensor for tensor in tensors}
        names = ", ".join(f"'{name}'" for name in by_name) or "none"
        for index, tensor in enumerate(stated):
            way: tuple[Step, ...] = ((kind, index),)
            if tensor.name in by_name:
                yield from _tensor_faults(config, f"{kind} '{tensor.name}'", tensor, by_name[tensor.name], way)
            else:
                yield ConfigProblem(f"declares the {kind} '{tensor.name}', which the graph does not have: it has {names}", way)
        if kind == "input" and len(stated) != len(tensors):
            yield ConfigProblem(
                f"declares {len(stated)} inputs, and the graph has {len(tensors)}, {names}: declare each of them once", (kind,)
            )


def _tensor_faults(
    config: schema.ModelConfig, who: str, stated: schema.ModelInput | schema.ModelOutput, tensor: NodeArg, way: tuple[Step, ...]
) -> Iterator[ConfigProblem]:
    name = tensor.type.removeprefix("tensor(").removesuffix(")")
    kind = schema.DataType.DESCRIPTOR.values_by_name.get(f"TYPE_{_FLOATS.get(name, name.upper())}")
    if kind is None or kind.number not in TYPE_SIZES:
        yield ConfigProblem(f"{who} is {tensor.type} in the graph, which the backend does not serve: export the model again", way)
    elif stated.data_type not in (kind.number, schema.TYPE_INVALID):
        yield ConfigProblem(
            f"{who} is {format_type(kind.number)} in the graph, and declared as {format_type(stated.data_type)}", (*way, "data_type")
        )
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape or ()]
    declared = list(stated.reshape.shape if stated.HasField("reshape") else stated.dims)
    if config.max_batch_size > 0:
        if shape and shape[0] != -1:
            text = f"{who} has a batch of {shape[0]} in the graph, and max_batch_size is {config.max_batch_size}: export it with any batch"
            yield ConfigProblem(f"{text}, or set max_batch_size to 0", ("max_batch_size",))
            return
        declared = [-1, *declared]
    sizes = list(zip(shape, declared, strict=False))[1:]
    if stated.name == "images" and any(size > 0 and other == -1 for size, other in sizes):
        # A caller may then send any size, and a server sends a small one to find out whether the model answers.
        yield ConfigProblem(f"{who} has shape {_shape(shape)} in the graph, and is declared as any size: write the sizes", (*way, "dims"))
    elif shape and declared and not same_shape(shape, declared):
        batch = ", the batch in front" if config.max_batch_size > 0 else " (max_batch_size is 0, so no batch is added)"
        yield ConfigProblem(f"{who} has shape {_shape(shape)} in the graph, and is declared as {_shape(declared)}{batch}", (*way, "dims"))


def _shape(sizes: Sequence[int]) -> str:
    return str(list(sizes))
