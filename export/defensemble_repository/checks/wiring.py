"""Triton's rules for the wiring of an ensemble: its steps, the tensors between them, and their types, shapes and batches.

The rules are those of `ValidateEnsembleSchedulingConfig` (model_config_utils.cc) and `ValidateEnsembleConfig` (ensemble_utils.cc) of
https://github.com/triton-inference-server/core. Triton stops at the first problem; this module finds all. It is stricter in two points,
which Triton accepts although they are mistakes: a step must not write an input of the ensemble, and no tensor may be declared twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..names import RESERVED_PREFIXES
from ..pbtxt import schema
from .finding import ConfigProblem, Step

_STEPS = "ensemble_scheduling"


def wiring_problems(config: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]) -> list[ConfigProblem]:
    """Return the problems in the wiring of an ensemble.

    Args:
        config: The configuration of the ensemble.
        configs: The configurations of the models of its steps, by name. The maps and shapes of a step are only checked if its model is
            included. Other checks report models that are missing or have problems of their own.
    """
    problems = [*_kind(config), *_declared(config)]
    steps = list(config.ensemble_scheduling.step)
    if not steps:
        return [*problems, ConfigProblem("has no steps. An ensemble needs at least one member.", (_STEPS,))]
    problems += _missing_fields(steps)
    problems += _flow(config, steps, configs)
    problems += _batches(config, steps, configs)
    for index, step in enumerate(steps):
        if step.model_name in configs and _is_declared(configs[step.model_name]):
            problems += _mapping(index, step, configs[step.model_name])
    return [*problems, *_shapes(config, steps, configs), *_any_size(config, steps, configs)]


def step_path(index: int, *field_path: Step) -> tuple[Step, ...]:
    """Return the path to a step (from 0), or to a field in it, for `FieldLocator.line_of`."""
    return (_STEPS, ("step", index), *field_path)


def format_type(kind: int) -> str:
    """Return the name of a data type, such as "FP32"."""
    value = schema.DataType.DESCRIPTOR.values_by_number.get(kind)
    return str(kind) if value is None else str(value.name).removeprefix("TYPE_")


def format_step(index: int, step: schema.ModelEnsembling.Step) -> str:
    """Return the description of a step (from 0), which is numbered from 1: "step 1 (alpha)"."""
    return f"step {index + 1} ({step.model_name})" if step.model_name else f"step {index + 1}"


def _kind(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.platform != "ensemble":
        actual = f'has platform: "{config.platform}"' if config.platform else "has no platform"
        yield ConfigProblem(f'{actual}; expected platform: "ensemble"', ("platform",))
    if config.backend:
        yield ConfigProblem(f'has backend: "{config.backend}", but an ensemble has none. Remove the line.', ("backend",))
    if config.max_batch_size < 0:
        yield ConfigProblem(f"has max_batch_size: {config.max_batch_size}; expected 0 or more", ("max_batch_size",))
    for name, is_present in (
        ("instance_group", len(config.instance_group) > 0),
        ("optimization", config.HasField("optimization")),
        ("model_warmup", len(config.model_warmup) > 0),
    ):
        if is_present:
            yield ConfigProblem(f"has {name}, which an ensemble must not have. Move it into the configurations of its members.", (name,))


def _declared(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield ConfigProblem(f"has no {kind}. Declare at least one.")
        names = [tensor.name for tensor in tensors]
        for index, tensor in enumerate(tensors):
            field_path: tuple[Step, ...] = ((kind, index),)
            if not tensor.name:
                yield ConfigProblem(f"{kind} {index + 1} has no name. Add one.", field_path)
                continue
            if names.index(tensor.name) < index:
                yield ConfigProblem(f"{kind} '{tensor.name}' is declared twice. Remove one.", field_path)
            if tensor.data_type == schema.TYPE_INVALID:
                yield ConfigProblem(f"{kind} '{tensor.name}' has no data_type. Add one, such as TYPE_FP32.", field_path)
            if not tensor.dims:
                yield ConfigProblem(f"{kind} '{tensor.name}' has no dims. Write its shape without the batch.", field_path)
            elif not _is_shape(tensor.dims):
                yield ConfigProblem(
                    f"{kind} '{tensor.name}' has dims {list(tensor.dims)}; expected 1 or more, or -1 for any size", (*field_path, "dims")
                )


def _missing_fields(steps: Sequence[schema.ModelEnsembling.Step]) -> Iterator[ConfigProblem]:
    for index, step in enumerate(steps):
        if not step.model_name:
            yield ConfigProblem(f"step {index + 1} has no model_name. Add it, or remove the step.", step_path(index))
        for name, entries in (("input_map", step.input_map), ("output_map", step.output_map)):
            if not entries:
                yield ConfigProblem(
                    f"{format_step(index, step)} has no {name}. Map at least one tensor, or remove the step.", step_path(index)
                )


def _flow(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], configs: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Check that each tensor is written once and read, and that no steps wait for each other.

    A wrong name gives one problem, not two: the tensor with the wrong name is reported with the missing one.
    """
    inputs, outputs = ({tensor.name: None for tensor in tensors if tensor.name} for tensors in (config.input, config.output))
    written: dict[str, int] = {}
    rewritten: list[tuple[int, str]] = []
    for index, step in enumerate(steps):
        for key, tensor in sorted(step.output_map.items()):
            if tensor in inputs:
                text = f"{format_step(index, step)} writes '{tensor}', which is an input of the ensemble. Rename it."
                yield ConfigProblem(text, step_path(index, ("output_map", "key", key), "value"))
            elif tensor in written:
                rewritten.append((index, key))
            written.setdefault(tensor, index)
    available = {**inputs, **written}
    reads = {tensor: (index, key) for index, step in reversed([*enumerate(steps)]) for key, tensor in step.input_map.items()}
    unwritten = {tensor: reader for tensor, reader in sorted(reads.items()) if tensor not in available and tensor not in outputs}
    unwritten_outputs = [name for name in outputs if name not in available]
    unread = _unread_tensors(steps, set(reads) | set(outputs), configs) if outputs else {}
    for index, key in rewritten:
        tensor = steps[index].output_map[key]
        first = format_step(written[tensor], steps[written[tensor]])
        missing = [*unwritten, *unwritten_outputs]
        hint = f", but no step writes {_join_quoted(missing)}" if missing else ""
        text = f"{format_step(index, steps[index])} and {first} both write '{tensor}'{hint}. Only one step may write a tensor."
        yield ConfigProblem(text, step_path(index, ("output_map", "key", key), "value"))
    # Without inputs or output maps, missing tensors are a consequence.
    if config.input and not rewritten and all(step.output_map for step in steps):
        hint = f" (no step reads {_join_quoted([*unread])})" if unread else ""
        for tensor, (index, key) in unwritten.items():
            text = f"{format_step(index, steps[index])} reads '{tensor}', which no step writes{hint}"
            text += ". Correct the name, or add the step that writes it."
            yield ConfigProblem(text, step_path(index, ("input_map", "key", key), "value"))
        for name in unwritten_outputs:
            text = f"no step writes its output '{name}'{hint}. Correct the name, or remove the output."
            yield ConfigProblem(text, (("output", "name", name),))
    for name in inputs:
        if name not in reads:
            yield ConfigProblem(f"no step reads its input '{name}'. Correct the name, or remove the input.", (("input", "name", name),))
    for tensor, (index, key) in unread.items() if not unwritten and not unwritten_outputs else ():
        text = f"{format_step(index, steps[index])} writes '{tensor}', which no step reads and which is not an output"
        yield ConfigProblem(f"{text}. Remove the output_map, or declare the output.", step_path(index, ("output_map", "key", key)))
    for cycle in _cycles(steps, {*inputs, *unwritten, *unwritten_outputs}):
        names = [format_step(index, steps[index]) for index in (*cycle, cycle[0])]
        description = f"{names[0]} reads its own output" if len(cycle) == 1 else " waits for ".join(names)
        yield ConfigProblem(f"steps form a cycle: {description}. Correct an input_map.", step_path(cycle[0]))


def _unread_tensors(
    steps: Sequence[schema.ModelEnsembling.Step], used: set[str], configs: Mapping[str, schema.ModelConfig]
) -> dict[str, tuple[int, str]]:
    """Return the written tensors that are not `used`, with the step and the output of its model. Skip outputs that the model lacks."""
    unread: dict[str, tuple[int, str]] = {}
    for index, step in enumerate(steps):
        model = configs.get(step.model_name)
        outputs = {tensor.name for tensor in model.output} if model is not None and _is_declared(model) else set(step.output_map)
        unread |= {tensor: (index, key) for key, tensor in step.output_map.items() if tensor not in used and key in outputs}
    return unread


def _cycles(steps: Sequence[schema.ModelEnsembling.Step], available: set[str]) -> list[list[int]]:
    """Return the cycles of steps (from 0) that wait for each other. `available` are the tensors that need no step."""
    waiting = set(range(len(steps)))
    while ready := {index for index in waiting if set(steps[index].input_map.values()) <= available}:
        waiting -= ready
        available = available | {tensor for index in ready for tensor in steps[index].output_map.values()}
    cycles: dict[frozenset[int], list[int]] = {}
    for start in sorted(waiting):
        path = [start]
        while path.count(path[-1]) == 1:
            needed = set(steps[path[-1]].input_map.values()) - available
            path.append(min(index for index in waiting if needed & set(steps[index].output_map.values())))
        cycle = path[path.index(path[-1]) : -1]
        cycles.setdefault(frozenset(cycle), cycle)
    return list(cycles.values())


def _batches(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], configs: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    batches = {step.model_name: configs[step.model_name].max_batch_size for step in steps if step.model_name in configs}
    smaller = {model: batch for model, batch in batches.items() if 0 < batch < config.max_batch_size}
    if not smaller:
        return
    joined = ", ".join(f"{model} ({batch})" for model, batch in smaller.items())
    fix = f"Lower it to {min(smaller.values())}, or raise theirs."
    if all(model.startswith(RESERVED_PREFIXES) for model in smaller):
        fix = "Generate a larger averaging model: run `defensemble ensemble reload` with the name of this ensemble."
    yield ConfigProblem(f"max_batch_size is {config.max_batch_size}, more than those of its steps, {joined}. {fix}", ("max_batch_size",))


def _mapping(index: int, step: schema.ModelEnsembling.Step, model: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, entries, tensors in (("input", step.input_map, model.input), ("output", step.output_map, model.output)):
        names = [tensor.name for tensor in tensors]
        for key in sorted(set(entries) - set(names)):
            text = f"{format_step(index, step)} maps {kind} '{key}', which the model does not have; it has {_join_quoted(names)}"
            yield ConfigProblem(text, step_path(index, (f"{kind}_map", "key", key)))
    for tensor in model.input:
        if step.input_map and tensor.name not in step.input_map and not tensor.optional:
            text = f"{format_step(index, step)} maps no tensor to the model's input '{tensor.name}'. Add an input_map with that key."
            yield ConfigProblem(text, step_path(index))


@dataclass(frozen=True)
class _Tensor:
    description: str
    kind: int
    dims: tuple[int, ...]
    batched: bool

    @classmethod
    def from_config(cls, description: str, tensor: schema.ModelInput | schema.ModelOutput, dims: Sequence[int], batch: int) -> _Tensor:
        return cls(description, tensor.data_type, tuple(dims), batch > 0)

    def matches(self, other: _Tensor) -> bool:
        """Compare the shapes with and without the batch, as Triton does for ensembles that include models without batches."""
        full, others = (((-1,) if tensor.batched else ()) + tensor.dims for tensor in (self, other))
        return self.kind == other.kind and (same_shape(self.dims, other.dims) or same_shape(full, others))

    def __str__(self) -> str:
        return f"{self.description} as {format_type(self.kind)} {list(self.dims)}"


def _shapes(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], configs: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Check that all steps agree on the type and shape of each tensor: with the ensemble's declaration, or with the first step."""
    first: dict[str, _Tensor] = {}
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            if tensor.data_type == schema.TYPE_INVALID or not _is_shape(tensor.dims):
                continue  # `_declared` reports it.
            dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            first.setdefault(tensor.name, _Tensor.from_config(f"the ensemble declares its {kind}", tensor, dims, config.max_batch_size))
    others: dict[str, tuple[list[_Tensor], tuple[Step, ...]]] = {}
    for index, step in enumerate(steps):
        model = configs.get(step.model_name)
        if model is None or not _is_declared(model):
            continue
        for kind, entries, tensors in (("input", step.input_map, model.input), ("output", step.output_map, model.output)):
            by_name = {tensor.name: tensor for tensor in tensors}
            for key, name in sorted(entries.items()):
                if key not in by_name:
                    continue
                description = f"{format_step(index, step)} {'takes' if kind == 'input' else 'gives'} it"
                actual = _Tensor.from_config(description, by_name[key], by_name[key].dims, model.max_batch_size)
                if not actual.matches(first.setdefault(name, actual)):
                    others.setdefault(name, ([], step_path(index, (f"{kind}_map", "key", key))))[0].append(actual)
    for name, (different, field_path) in others.items():
        descriptions = " and ".join(str(tensor) for tensor in different)
        yield ConfigProblem(f"'{name}' has several types or shapes: {first[name]}, but {descriptions}. Make them equal.", field_path)


def _any_size(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], configs: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Find images that are declared with any size although a step takes only one size.

    Triton loads such an ensemble, but then callers may send any size, and a server sends a small image to test the ensemble.
    """
    declared = next((list(tensor.dims) for tensor in config.input if tensor.name == "images"), [])
    for index, step in enumerate(steps):
        for tensor in configs[step.model_name].input if step.model_name in configs else ():
            sizes = list(tensor.dims)
            is_read = step.input_map.get(tensor.name) == "images"
            if is_read and same_shape(declared, sizes) and any(a == -1 and b > 0 for a, b in zip(declared, sizes, strict=True)):
                text = f"its input 'images' has dims {declared}, but {format_step(index, step)} takes {sizes}. Write these sizes."
                yield ConfigProblem(text, (("input", "name", "images"), "dims"))
                return


def _is_shape(dims: Sequence[int]) -> bool:
    return len(dims) > 0 and all(size >= 1 or size == -1 for size in dims)


def same_shape(first: Sequence[int], second: Sequence[int]) -> bool:
    """Return whether two shapes agree. -1 is any size."""
    return len(first) == len(second) and all(a == b or -1 in (a, b) for a, b in zip(first, second, strict=True))


def _is_declared(config: schema.ModelConfig) -> bool:
    """Return whether a configuration declares inputs and outputs. If not, a backend may read them from the model file."""
    return len(config.input) > 0 and len(config.output) > 0


def _join_quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
