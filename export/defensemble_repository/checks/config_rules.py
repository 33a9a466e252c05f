"""Triton's rules for the configuration of one model, which it checks before it opens the model files. `wiring` has those for ensembles.

The rules are those of `ValidateModelConfig`, `ValidateModelIOConfig` and `ValidateInstanceGroup` (model_config_utils.cc) of
https://github.com/triton-inference-server/core. Triton stops at the first problem; this module finds all. It is stricter in two points: a
configuration must name a backend or a platform, and must not declare a tensor twice.
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
# Bytes per element. Strings have no fixed size.
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
    """Return the problems of a configuration, without reading the files of the model.

    Args:
        config: The configuration of a model that is not an ensemble.
        target: The Triton server that will serve it.
    """
    if not config.backend and not config.platform:
        return [ConfigProblem("has neither a backend nor a platform, so the kind of model is unknown. Restore the exported file.")]
    problems = [*_kind(config), *_tensors(config), *_batching(config), *_warmup(config), *_instances(config), *_features(config)]
    if not target.embedded or any(problem.path == ("backend",) for problem in problems):
        return problems  # A backend with an invalid name is reported only once.
    return [*problems, *embedded_problems(config)]


def _kind(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    known = ", ".join(sorted(BACKEND_OF_PLATFORM))
    if config.backend and not PLAIN_NAME.fullmatch(config.backend):
        yield ConfigProblem(f'backend is "{config.backend}"; expected a plain name, such as onnxruntime', ("backend",))
    if config.platform and config.platform not in BACKEND_OF_PLATFORM:
        if not config.backend:
            yield ConfigProblem(f'platform is "{config.platform}"; expected one of {known}. Correct it, or add the backend.', ("platform",))
        else:
            yield ConfigProblem(
                f'platform "{config.platform}" does not match backend "{config.backend}". Remove the platform.', ("platform",)
            )
    elif config.platform and config.backend and BACKEND_OF_PLATFORM[config.platform] != config.backend:
        yield ConfigProblem(f'platform "{config.platform}" does not match backend "{config.backend}". Remove one of them.', ("platform",))
    if config.max_batch_size < 0:
        yield ConfigProblem(f"max_batch_size is {config.max_batch_size}; expected 0 or more", ("max_batch_size",))
    if config.HasField("ensemble_scheduling"):
        yield ConfigProblem('has ensemble_scheduling, but its platform is not "ensemble". Remove it.', ("ensemble_scheduling",))


def _tensors(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [tensor.name for tensor in tensors]
        for index, tensor in enumerate(tensors):
            path: tuple[Step, ...] = ((kind, index),)
            if not tensor.name:
                yield ConfigProblem(f"{kind} {index + 1} has no name. Add one.", path)
            elif names.index(tensor.name) < index:
                yield ConfigProblem(f"{kind} '{tensor.name}' is declared twice. Remove one.", path)
            subject = f"{kind} '{tensor.name}'"
            if not all(size >= 1 or size == -1 for size in tensor.dims):
                yield ConfigProblem(f"{subject} has dims {list(tensor.dims)}; expected 1 or more, or -1 for any size", (*path, "dims"))
            elif tensor.HasField("reshape") and tensor.dims and not _same_elements(tensor.dims, tensor.reshape.shape):
                text = (
                    f"{subject} has dims {list(tensor.dims)}, but its reshape {list(tensor.reshape.shape)} has another number of elements"
                )
                yield ConfigProblem(f"{text}. Make them agree.", (*path, "reshape"))
            if tensor.is_shape_tensor and model_backend(config) != PLAN_BACKEND:
                yield ConfigProblem(
                    f"{subject} is a shape tensor, which only TensorRT supports. Remove is_shape_tensor.", (*path, "is_shape_tensor")
                )
    for index, tensor in enumerate(config.input):
        if tensor.format != schema.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            name = schema.ModelInput.Format.Name(tensor.format)
            text = f"input '{tensor.name}' has the format {name} and dims {list(tensor.dims)}; expected 3 sizes. Correct one of them."
            yield ConfigProblem(text, (("input", index), "format"))


def _same_elements(dims: Sequence[int], reshaped: Sequence[int]) -> bool:
    """Return whether two shapes have equal numbers of elements between the sizes of -1. An empty shape has one element."""

    def counts(shape: Sequence[int]) -> list[int]:
        products = [1]
        for size in shape:
            if size == -1:
                products.append(1)
            else:
                products[-1] *= size
        return products

    return counts(dims) == counts(reshaped)


def _batching(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    batching = config.dynamic_batching
    if not config.HasField("dynamic_batching"):
        return
    path = ("dynamic_batching", "preferred_batch_size")
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield ConfigProblem(f"preferred_batch_size is {size}; expected 1 or more", path)
        elif size > config.max_batch_size:
            yield ConfigProblem(f"preferred_batch_size is {size}, more than max_batch_size, {config.max_batch_size}. Lower it.", path)
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels == 0:
        return
    if not 1 <= default <= levels:
        text = f"default_priority_level is {default}; expected 1 to priority_levels, {levels}"
        yield ConfigProblem(text, ("dynamic_batching", "default_priority_level"))
    if levels > 1 and batching.preserve_ordering:
        text = f"preserve_ordering requires one priority level, but priority_levels is {levels}. Remove one of them."
        yield ConfigProblem(text, ("dynamic_batching", "preserve_ordering"))
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            text = f"priority_queue_policy is for level {level}; expected 1 to priority_levels, {levels}"
            yield ConfigProblem(text, ("dynamic_batching", ("priority_queue_policy", "key", str(level))))


def _warmup(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for index, sample in enumerate(config.model_warmup):
        path: tuple[Step, ...] = (("model_warmup", index),)
        name = f"warm-up '{sample.name}'"
        unknown = sorted(set(sample.inputs) - set(inputs))
        missing = sorted(name for name, tensor in inputs.items() if not tensor.optional and name not in sample.inputs)
        if inputs and unknown:
            yield ConfigProblem(f"{name} has data for input {_join_quoted(unknown)}; the model has only {_join_quoted(inputs)}", path)
        elif missing:
            yield ConfigProblem(f"{name} has no data for input {_join_quoted(missing)}. Add it.", path)
        for key, sample_tensor in sorted(sample.inputs.items()):
            where = (*path, ("inputs", "key", key))
            tensor = inputs.get(key)
            if sample_tensor.WhichOneof("input_data_type") is None:
                yield ConfigProblem(f"{name} has no data for '{key}'. Add zero_data, random_data or input_data_file.", where)
            if any(size < 0 for size in sample_tensor.dims):
                yield ConfigProblem(
                    f"{name} has dims {list(sample_tensor.dims)} for '{key}'; expected sizes of 0 or more", (*where, "value", "dims")
                )
            elif tensor is not None and tensor.dims and not _matches_dims(sample_tensor.dims, tensor.dims):
                text = f"{name} has dims {list(sample_tensor.dims)} for '{key}', which has {list(tensor.dims)}. Make them agree."
                yield ConfigProblem(text, (*where, "value", "dims"))
            if tensor is not None and tensor.data_type not in (schema.TYPE_INVALID, sample_tensor.data_type):
                kinds = [schema.DataType.Name(kind) for kind in (sample_tensor.data_type, tensor.data_type)]
                yield ConfigProblem(
                    f"{name} has {kinds[0]} for '{key}', which is {kinds[1]}. Make them equal.", (*where, "value", "data_type")
                )


def warmup_bytes(tensor: schema.ModelWarmup.Input) -> int | None:
    """Return how many bytes a warm-up reads from its file, or None if the type or the shape is unknown."""
    size = TYPE_SIZES.get(tensor.data_type)
    return None if size is None or any(dim < 0 for dim in tensor.dims) else size * math.prod(tensor.dims)


def _matches_dims(sizes: Sequence[int], dims: Sequence[int]) -> bool:
    return len(sizes) == len(dims) and all(dim in (-1, size) for size, dim in zip(sizes, dims, strict=True))


def _instances(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.instance_group and all(group.passive for group in config.instance_group):
        # Observed in core 2.51: the model loads, and the first call crashes the server.
        text = "has only passive instances, which accept no calls. Remove passive from one instance_group."
        yield ConfigProblem(text, ("instance_group", "passive"))
    for index, group in enumerate(config.instance_group):
        path: tuple[Step, ...] = (("instance_group", index),)
        if group.kind in (schema.ModelInstanceGroup.KIND_CPU, schema.ModelInstanceGroup.KIND_MODEL) and group.gpus:
            kind = schema.ModelInstanceGroup.Kind.Name(group.kind)
            yield ConfigProblem(f"instance_group {index + 1} is {kind}, but has gpus {list(group.gpus)}. Remove them.", (*path, "gpus"))
        if group.profile and model_backend(config) != PLAN_BACKEND:
            text = f"instance_group {index + 1} has profile {list(group.profile)}, which only TensorRT supports. Remove it."
            yield ConfigProblem(text, (*path, "profile"))


def _features(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        yield ConfigProblem(
            "has both response_cache and a decoupled transaction policy, which exclude each other. Remove one.", ("response_cache",)
        )


def _join_quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
