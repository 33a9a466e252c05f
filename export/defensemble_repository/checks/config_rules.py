"""What Triton refuses of one model's configuration before it opens the model's files; of ensembles, see `wiring`.

The rules are those of `ValidateModelConfig`, `ValidateModelIOConfig` and `ValidateInstanceGroup` (model_config_utils.cc) of
https://github.com/triton-inference-server/core, which stops at the first fault, where all are found here. Stricter on purpose: a
configuration names a backend or a platform, and declares no tensor twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from ..names import BACKEND_OF_PLATFORM, PLAN_BACKEND
from ..pbtxt import schema
from ..reader import model_backend
from ..target import Target
from .embedded_rules import embedded_problems
from .finding import ConfigProblem, Step

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# Bytes of an element; text has no fixed size.
TYPE_SIZES = {
    schema.TYPE_BOOL: 1,
    schema.TYPE_UINT8: 1,
    schema.TYPE_UINT16: 2,
    schema.TYPE_UINT32: 4,
    schema.TYPE_UINT64: 8,
    schema.TYPE_INT8: 1,
    schema.TYPE_INT16: 2,
    schema.TYPE_INT32: 4,
    schema.TYPE_INT64: 8,
    schema.TYPE_FP16: 2,
    schema.TYPE_FP32: 4,
    schema.TYPE_FP64: 8,
    schema.TYPE_BF16: 2,
}


def config_problems(config: schema.ModelConfig, target: Target) -> list[ConfigProblem]:
    """Find all that `target` refuses of `config`, which is no ensemble, whatever the files of the model hold."""
    if not config.backend and not config.platform:
        return [ConfigProblem("names neither a backend nor a platform, so what it is is not known: put back what was exported")]
    problems = [*_kind(config), *_tensors(config), *_batching(config), *_warmup(config), *_instances(config), *_features(config)]
    if not target.embedded or any(problem.path == ("backend",) for problem in problems):
        return problems  # what is no name of a backend is not in the embedded runtime either
    return [*problems, *embedded_problems(config)]


def _kind(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    known = ", ".join(sorted(BACKEND_OF_PLATFORM))
    if config.backend and not PLAIN_NAME.fullmatch(config.backend):
        yield ConfigProblem(f'backend is "{config.backend}", expected a plain name, such as onnxruntime', ("backend",))
    if config.platform and config.platform not in BACKEND_OF_PLATFORM:
        if not config.backend:
            yield ConfigProblem(f'platform is "{config.platform}", expected one of {known}: correct it, or name the backend', ("platform",))
        else:
            yield ConfigProblem(
                f'platform "{config.platform}" does not belong to backend "{config.backend}": remove the platform', ("platform",)
            )
    elif config.platform and config.backend and BACKEND_OF_PLATFORM[config.platform] != config.backend:
        yield ConfigProblem(
            f'platform "{config.platform}" does not belong to backend "{config.backend}": remove one of them', ("platform",)
        )
    if config.max_batch_size < 0:
        yield ConfigProblem(f"max_batch_size is {config.max_batch_size}, expected 0 or more", ("max_batch_size",))
    if config.HasField("ensemble_scheduling"):
        yield ConfigProblem('has ensemble_scheduling, and its platform is not "ensemble": remove it', ("ensemble_scheduling",))


def _tensors(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [tensor.name for tensor in tensors]
        for index, tensor in enumerate(tensors):
            path: tuple[Step, ...] = ((kind, index),)
            if not tensor.name:
                yield ConfigProblem(f"{kind} {index + 1} has no name: give it one", path)
            elif names.index(tensor.name) < index:
                yield ConfigProblem(f"declares the {kind} '{tensor.name}' twice: remove one", path)
            who = f"{kind} '{tensor.name}'"
            if not all(size >= 1 or size == -1 for size in tensor.dims):
                yield ConfigProblem(f"{who} has dims {list(tensor.dims)}: each must be 1 or more, or -1 for any", (*path, "dims"))
            elif tensor.HasField("reshape") and tensor.dims and not _same_elements(tensor.dims, tensor.reshape.shape):
                text = f"{who} has dims {list(tensor.dims)}, and its reshape {list(tensor.reshape.shape)} has another number of elements"
                yield ConfigProblem(f"{text}: make them agree", (*path, "reshape"))
            if tensor.is_shape_tensor and model_backend(config) != PLAN_BACKEND:
                yield ConfigProblem(f"{who} is a shape tensor, which only TensorRT has: remove is_shape_tensor", (*path, "is_shape_tensor"))
    for index, tensor in enumerate(config.input):
        if tensor.format != schema.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            name = schema.ModelInput.Format.Name(tensor.format)
            text = f"input '{tensor.name}' has the format {name} and dims {list(tensor.dims)}, expected 3 sizes: correct one of them"
            yield ConfigProblem(text, (("input", index), "format"))


def _same_elements(dims: Sequence[int], reshaped: Sequence[int]) -> bool:
    """Whether a shape can be another: as many elements between the sizes that are -1. An empty shape is one element."""

    def counts(shape: Sequence[int]) -> list[int]:
        found = [1]
        for size in shape:
            if size == -1:
                found.append(1)
            else:
                found[-1] *= size
        return found

    return counts(dims) == counts(reshaped)


def _batching(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    batching = config.dynamic_batching
    if not config.HasField("dynamic_batching"):
        return
    path = ("dynamic_batching", "preferred_batch_size")
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield ConfigProblem(f"preferred_batch_size is {size}, expected 1 or more", path)
        elif size > config.max_batch_size:
            yield ConfigProblem(f"preferred_batch_size is {size}, more than max_batch_size, {config.max_batch_size}: lower it", path)
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels == 0:
        return
    if not 1 <= default <= levels:
        text = f"default_priority_level is {default}, expected 1 to priority_levels, {levels}"
        yield ConfigProblem(text, ("dynamic_batching", "default_priority_level"))
    if levels > 1 and batching.preserve_ordering:
        text = f"preserve_ordering allows one priority level, and priority_levels is {levels}: remove one of them"
        yield ConfigProblem(text, ("dynamic_batching", "preserve_ordering"))
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            text = f"priority_queue_policy is for level {level}, expected 1 to priority_levels, {levels}"
            yield ConfigProblem(text, ("dynamic_batching", ("priority_queue_policy", "key", str(level))))


def _warmup(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for index, sample in enumerate(config.model_warmup):
        path: tuple[Step, ...] = (("model_warmup", index),)
        name = f"warm-up '{sample.name}'"
        unknown = sorted(set(sample.inputs) - set(inputs))
        missing = sorted(name for name, tensor in inputs.items() if not tensor.optional and name not in sample.inputs)
        if inputs and unknown:
            yield ConfigProblem(
                f"{name} gives the input {_join_quoted(unknown)}, which the model does not have: it has {_join_quoted(inputs)}", path
            )
        elif missing:
            yield ConfigProblem(f"{name} does not give the input {_join_quoted(missing)}: add it", path)
        for key, given in sorted(sample.inputs.items()):
            where = (*path, ("inputs", "key", key))
            tensor = inputs.get(key)
            if given.WhichOneof("input_data_type") is None:
                yield ConfigProblem(f"{name} says no data for '{key}': write zero_data, random_data or input_data_file", where)
            if any(size < 0 for size in given.dims):
                yield ConfigProblem(f"{name} has dims {list(given.dims)} for '{key}': each must be a size", (*where, "value", "dims"))
            elif tensor is not None and tensor.dims and not _fits(given.dims, tensor.dims):
                text = f"{name} has dims {list(given.dims)} for '{key}', which has {list(tensor.dims)}: make them agree"
                yield ConfigProblem(text, (*where, "value", "dims"))
            if tensor is not None and tensor.data_type not in (schema.TYPE_INVALID, given.data_type):
                kinds = [schema.DataType.Name(kind) for kind in (given.data_type, tensor.data_type)]
                yield ConfigProblem(
                    f"{name} has {kinds[0]} for '{key}', which is {kinds[1]}: make them equal", (*where, "value", "data_type")
                )


def warmup_bytes(given: schema.ModelWarmup.Input) -> int | None:
    """How many bytes a warm-up reads from its file; None where the type or the shape does not say it."""
    size = TYPE_SIZES.get(given.data_type)
    return None if size is None or any(one < 0 for one in given.dims) else size * math.prod(given.dims)


def _fits(given: Sequence[int], dims: Sequence[int]) -> bool:
    return len(given) == len(dims) and all(size in (-1, one) for one, size in zip(given, dims, strict=True))


def _instances(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.instance_group and all(group.passive for group in config.instance_group):
        # Seen in core 2.51: the model loads, and the first call crashes the server.
        text = "has only passive instances, which take no calls: remove passive from one instance_group"
        yield ConfigProblem(text, ("instance_group", "passive"))
    for index, group in enumerate(config.instance_group):
        path: tuple[Step, ...] = (("instance_group", index),)
        if group.kind in (schema.ModelInstanceGroup.KIND_CPU, schema.ModelInstanceGroup.KIND_MODEL) and group.gpus:
            kind = schema.ModelInstanceGroup.Kind.Name(group.kind)
            yield ConfigProblem(f"instance_group {index + 1} is {kind} and names gpus {list(group.gpus)}: remove these", (*path, "gpus"))
        if group.profile and model_backend(config) != PLAN_BACKEND:
            text = f"instance_group {index + 1} names the profile {list(group.profile)}, which only TensorRT has: remove it"
            yield ConfigProblem(text, (*path, "profile"))


def _features(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        yield ConfigProblem(
            "has response_cache with a decoupled transaction policy, which exclude each other: remove one", ("response_cache",)
        )


def _join_quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
