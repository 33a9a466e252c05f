"""The rules of the embedded runtime, which runs on CPUs and has one backend, that of this project.

The backend checks configurations in `server_config/onnxruntime_backend/settings.cc` and `model.cc`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..names import BACKEND
from ..pbtxt import schema
from ..reader import model_backend, parameter
from .finding import ConfigProblem, Step, parameter_path

_ALTERNATIVE = "serve it with --runtime docker or path"
_LIBRARY = f"libtriton_{BACKEND}.so"
_MAX_THREADS = 1024
_MAX_JOINED_ROWS = 65536
_GRAPH_LEVELS = {-1: "basic", 0: "all", 1: "extended", 2: "none"}


def embedded_problems(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    """Return the problems that a configuration has only in the embedded runtime."""
    backend = model_backend(config)
    if backend != BACKEND:
        if not backend:
            return  # The platform is unknown, which every Triton rejects.
        path = ("backend",) if config.backend else ("platform",)
        yield ConfigProblem(
            f"backend '{backend or config.platform}' is not in the embedded runtime, which has only '{BACKEND}': {_ALTERNATIVE}",
            path,
        )
        return
    if config.runtime not in ("", _LIBRARY):
        yield ConfigProblem(f'runtime is "{config.runtime}", but the embedded runtime has only {_LIBRARY}. Remove the line.', ("runtime",))
    yield from _gpus(config)
    yield from _declared(config)
    yield from _unsupported(config)
    yield from _settings(config)


def _gpus(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for index, group in enumerate(config.instance_group):
        path: tuple[Step, ...] = (("instance_group", index),)
        if group.kind == schema.ModelInstanceGroup.KIND_GPU:
            text = f"instance_group {index + 1} is KIND_GPU, but the embedded runtime has only CPUs. Write KIND_CPU, or {_ALTERNATIVE}."
            yield ConfigProblem(text, path)
        elif group.gpus and group.kind == schema.ModelInstanceGroup.KIND_AUTO:
            text = f"instance_group {index + 1} has gpus {list(group.gpus)}, but the embedded runtime has only CPUs"
            yield ConfigProblem(f"{text}. Remove them, or {_ALTERNATIVE}.", (*path, "gpus"))


def _declared(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    """Require declared tensors: NVIDIA's backend takes missing ones from the graph, but this backend compares them."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield ConfigProblem(f"has no {kind}. Declare {'every input of the graph' if kind == 'input' else 'at least one'}.")
        for index, tensor in enumerate(tensors):
            if tensor.data_type == schema.TYPE_INVALID:
                yield ConfigProblem(f"{kind} '{tensor.name}' has no data_type. Add one, such as TYPE_FP32.", ((kind, index),))


def _unsupported(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    accelerators = config.optimization.execution_accelerators
    features: list[tuple[str, bool, tuple[Step, ...]]] = [
        ("sequence_batching", config.HasField("sequence_batching"), ("sequence_batching",)),
        ("a decoupled transaction policy", config.model_transaction_policy.decoupled, ("model_transaction_policy",)),
        ("batch_input", len(config.batch_input) > 0, ("batch_input",)),
        ("batch_output", len(config.batch_output) > 0, ("batch_output",)),
        ("model_repository_agents", len(config.model_repository_agents.agents) > 0, ("model_repository_agents",)),
        ("gpu_execution_accelerator", len(accelerators.gpu_execution_accelerator) > 0, ("optimization", "execution_accelerators")),
        ("cpu_execution_accelerator", len(accelerators.cpu_execution_accelerator) > 0, ("optimization", "execution_accelerators")),
    ]
    for index, tensor in enumerate(config.input):
        for name, is_used in (("an optional input", tensor.optional), ("ragged batching", tensor.allow_ragged_batch)):
            features.append((f"{name} ('{tensor.name}')", is_used, (("input", index),)))
    for feature, is_used, path in features:
        if is_used:
            yield ConfigProblem(f"uses {feature}, which the embedded runtime does not support. Remove it, or {_ALTERNATIVE}.", path)


def _settings(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    libraries = config.model_operations.op_library_filename
    if libraries:
        text = (
            f"model_operations names {', '.join(libraries)}, but the embedded runtime loads no other operators than its own mask-aware one"
        )
        yield ConfigProblem(f"{text}. Remove the field, or {_ALTERNATIVE}.", ("model_operations",))
    level = config.optimization.graph.level
    if level not in _GRAPH_LEVELS:
        known = ", ".join(f"{number} ({meaning})" for number, meaning in _GRAPH_LEVELS.items())
        yield ConfigProblem(f"optimization.graph.level is {level}; expected one of {known}", ("optimization", "graph", "level"))
    for key, is_valid, expected in _PARAMETERS:
        value = parameter(config, key)
        if value is not None and not is_valid(value):
            yield ConfigProblem(f"parameter {key} is {value[:80]!r}; expected {expected}", parameter_path(key))


def _is_integer(least: int, most: int) -> Callable[[str], bool]:
    return lambda value: re.fullmatch("-?[0-9]{1,18}", value) is not None and least <= int(value) <= most


_IS_THREAD_COUNT = _is_integer(0, _MAX_THREADS)
_COUNT = f"an integer from 0 (one thread per core) to {_MAX_THREADS}"
_PARAMETERS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    ("intra_op_thread_count", _IS_THREAD_COUNT, _COUNT),
    ("inter_op_thread_count", _IS_THREAD_COUNT, _COUNT),
    ("max_joined_rows", _is_integer(1, _MAX_JOINED_ROWS), f"an integer from 1 (requests are not joined) to {_MAX_JOINED_ROWS}"),
    ("execution_mode", ("0", "1").__contains__, "0 (sequential) or 1 (parallel)"),
    ("session.intra_op.allow_spinning", ("0", "1").__contains__, "0 (no) or 1 (yes)"),
    ("session.inter_op.allow_spinning", ("0", "1").__contains__, "0 (no) or 1 (yes)"),
)
