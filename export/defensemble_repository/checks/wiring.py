"""What Triton's core refuses of an ensemble's wiring, whoever wrote it: steps, the tensors between them, types, shapes and batches.

The rules are those of `ValidateEnsembleSchedulingConfig` (model_config_utils.cc) and `ValidateEnsembleConfig` (ensemble_utils.cc) of
https://github.com/triton-inference-server/core, which stops at the first fault, where all are found here. Stricter on purpose: a step
must not write an input of the ensemble, and no tensor is declared twice, which Triton loads and nobody means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..names import RESERVED_PREFIXES
from ..pbtxt import schema
from .finding import ConfigProblem, Step

_STEPS = "ensemble_scheduling"


def wiring_problems(config: schema.ModelConfig, known: Mapping[str, schema.ModelConfig]) -> list[ConfigProblem]:
    """All that Triton's core would refuse of the ensemble `config`.

    `known` maps names of its steps' models to their configurations. What a step maps and in which shapes is judged where its model is
    among them: one that is missing, or wrong in itself, is reported elsewhere.
    """
    problems = [*_kind(config), *_declared(config)]
    steps = list(config.ensemble_scheduling.step)
    if not steps:
        return [*problems, ConfigProblem("has no steps: an ensemble needs at least one member", (_STEPS,))]
    problems += _unsaid(steps)
    problems += _flow(config, steps, known)
    problems += _batches(config, steps, known)
    for index, step in enumerate(steps):
        if step.model_name in known and _is_declared(known[step.model_name]):
            problems += _mapping(index, step, known[step.model_name])
    return [*problems, *_shapes(config, steps, known), *_any_size(config, steps, known)]


def step_path(index: int, *field_path: Step) -> tuple[Step, ...]:
    """The way to the step number `index` (from 0), or on from it, for `FieldLocator.of`."""
    return (_STEPS, ("step", index), *field_path)


def format_type(kind: int) -> str:
    """How a data type is called in a text: "FP32"."""
    known = schema.DataType.DESCRIPTOR.values_by_number.get(kind)
    return str(kind) if known is None else str(known.name).removeprefix("TYPE_")


def format_step(index: int, step: schema.ModelEnsembling.Step) -> str:
    """How a step (from 0) is called in a text: it is counted from 1."""
    return f"step {index + 1} ({step.model_name})" if step.model_name else f"step {index + 1}"


def _kind(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    if config.platform != "ensemble":
        said = f'says platform: "{config.platform}"' if config.platform else "says no platform"
        yield ConfigProblem(f'{said}, and an ensemble says platform: "ensemble": write that', ("platform",))
    if config.backend:
        yield ConfigProblem(f'says backend: "{config.backend}", and an ensemble has none: take that line out', ("backend",))
    if config.max_batch_size < 0:
        yield ConfigProblem(f"says max_batch_size: {config.max_batch_size}, expected 0 or more", ("max_batch_size",))
    for name, there in (
        ("instance_group", len(config.instance_group) > 0),
        ("optimization", config.HasField("optimization")),
        ("model_warmup", len(config.model_warmup) > 0),
    ):
        if there:
            yield ConfigProblem(f"has {name}, which an ensemble must not have: move it into the configurations of its members", (name,))


def _declared(config: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield ConfigProblem(f"declares no {kind}: it needs at least one")
        names = [tensor.name for tensor in tensors]
        for index, tensor in enumerate(tensors):
            field_path: tuple[Step, ...] = ((kind, index),)
            if not tensor.name:
                yield ConfigProblem(f"{kind} {index + 1} has no name: give it one", field_path)
                continue
            if names.index(tensor.name) < index:
                yield ConfigProblem(f"declares the {kind} '{tensor.name}' twice: take one out", field_path)
            if tensor.data_type == schema.TYPE_INVALID:
                yield ConfigProblem(f"{kind} '{tensor.name}' has no data_type: write one, such as TYPE_FP32", field_path)
            if not tensor.dims:
                yield ConfigProblem(f"{kind} '{tensor.name}' has no dims: write its shape without the batch", field_path)
            elif not _is_shape(tensor.dims):
                yield ConfigProblem(
                    f"{kind} '{tensor.name}' has dims {list(tensor.dims)}: each must be 1 or more, or -1 for any", (*field_path, "dims")
                )


def _unsaid(steps: Sequence[schema.ModelEnsembling.Step]) -> Iterator[ConfigProblem]:
    for index, step in enumerate(steps):
        if not step.model_name:
            yield ConfigProblem(f"step {index + 1} has no model_name: name the model that it runs, or take the step out", step_path(index))
        for name, entries in (("input_map", step.input_map), ("output_map", step.output_map)):
            if not entries:
                yield ConfigProblem(
                    f"{format_step(index, step)} has no {name}: map at least one tensor, or take the step out", step_path(index)
                )


def _flow(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], known: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Whether each tensor is written once and read, and none is needed before it can be there.

    A wrong name is one fault and not two: what is written under it is reported with what is missed under the right one.
    """
    inputs, outputs = ({tensor.name: None for tensor in tensors if tensor.name} for tensors in (config.input, config.output))
    written: dict[str, int] = {}
    twice: list[tuple[int, str]] = []
    for index, step in enumerate(steps):
        for key, tensor in sorted(step.output_map.items()):
            if tensor in inputs:
                text = f"{format_step(index, step)} writes '{tensor}', which is an input of the ensemble: name it otherwise"
                yield ConfigProblem(text, step_path(index, ("output_map", "key", key), "value"))
            elif tensor in written:
                twice.append((index, key))
            written.setdefault(tensor, index)
    there = {**inputs, **written}
    reads = {tensor: (index, key) for index, step in reversed([*enumerate(steps)]) for key, tensor in step.input_map.items()}
    missed = {tensor: place for tensor, place in sorted(reads.items()) if tensor not in there and tensor not in outputs}
    lacking = [name for name in outputs if name not in there]
    loose = _loose(steps, set(reads) | set(outputs), known) if outputs else {}
    for index, key in twice:
        tensor = steps[index].output_map[key]
        first = format_step(written[tensor], steps[written[tensor]])
        lacks = f"; written by no step is {_join_quoted([*missed, *lacking])}" if missed or lacking else ""
        text = f"{format_step(index, steps[index])} writes '{tensor}', which {first} writes: each tensor is written once{lacks}"
        yield ConfigProblem(text, step_path(index, ("output_map", "key", key), "value"))
    # What is missed where nothing is declared or mapped follows from that.
    if config.input and not twice and all(step.output_map for step in steps):
        hint = f"; written, and read by nobody, is {_join_quoted([*loose])}" if loose else ""
        for tensor, (index, key) in missed.items():
            text = f"{format_step(index, steps[index])} reads '{tensor}', which no step writes{hint}"
            yield ConfigProblem(
                f"{text}: mend the name, or add the step that writes it", step_path(index, ("input_map", "key", key), "value")
            )
        for name in lacking:
            text = f"its output '{name}' is written by no step{hint}: mend the name, or take the output out"
            yield ConfigProblem(text, (("output", "name", name),))
    for name in inputs:
        if name not in reads:
            yield ConfigProblem(f"its input '{name}' is read by no step: mend the name, or take the input out", (("input", "name", name),))
    for tensor, (index, key) in loose.items() if not missed and not lacking else ():
        text = f"{format_step(index, steps[index])} writes '{tensor}', which no step reads and is no output"
        yield ConfigProblem(f"{text}: take that output_map out, or declare the output", step_path(index, ("output_map", "key", key)))
    for cycle in _cycles(steps, {*inputs, *missed, *lacking}):
        names = [format_step(index, steps[index]) for index in (*cycle, cycle[0])]
        waits = f"{names[0]} reads what it writes" if len(cycle) == 1 else " waits for ".join(names)
        yield ConfigProblem(f"steps wait for each other in a circle: {waits}; mend an input_map", step_path(cycle[0]))


def _loose(
    steps: Sequence[schema.ModelEnsembling.Step], used: set[str], known: Mapping[str, schema.ModelConfig]
) -> dict[str, tuple[int, str]]:
    """What is written and not `used`, with its step and the model's output; one that the model does not have is reported by itself."""
    found: dict[str, tuple[int, str]] = {}
    for index, step in enumerate(steps):
        model = known.get(step.model_name)
        given = {tensor.name for tensor in model.output} if model is not None and _is_declared(model) else set(step.output_map)
        found |= {tensor: (index, key) for key, tensor in step.output_map.items() if tensor not in used and key in given}
    return found


def _cycles(steps: Sequence[schema.ModelEnsembling.Step], there: set[str]) -> list[list[int]]:
    """The circles of steps (by number) that wait for each other; `there` are the tensors that need no step."""
    waiting = set(range(len(steps)))
    while ready := {index for index in waiting if set(steps[index].input_map.values()) <= there}:
        waiting -= ready
        there = there | {tensor for index in ready for tensor in steps[index].output_map.values()}
    found: dict[frozenset[int], list[int]] = {}
    for start in sorted(waiting):
        path = [start]
        while path.count(path[-1]) == 1:
            needed = set(steps[path[-1]].input_map.values()) - there
            path.append(min(index for index in waiting if needed & set(steps[index].output_map.values())))
        circle = path[path.index(path[-1]) : -1]
        found.setdefault(frozenset(circle), circle)
    return list(found.values())


def _batches(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], known: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    takes = {step.model_name: known[step.model_name].max_batch_size for step in steps if step.model_name in known}
    fewer = {model: batch for model, batch in takes.items() if 0 < batch < config.max_batch_size}
    if not fewer:
        return
    listed = ", ".join(f"{model} ({batch})" for model, batch in fewer.items())
    fix = f"lower it here, to {min(fewer.values())}, or raise it there"
    if all(model.startswith(RESERVED_PREFIXES) for model in fewer):
        fix = "`defensemble ensemble reload` with this ensemble's name generates an averaging model that takes as many"
    yield ConfigProblem(
        f"max_batch_size is {config.max_batch_size}, more than what its steps take at once, {listed}: {fix}", ("max_batch_size",)
    )


def _mapping(index: int, step: schema.ModelEnsembling.Step, model: schema.ModelConfig) -> Iterator[ConfigProblem]:
    for kind, entries, tensors in (("input", step.input_map, model.input), ("output", step.output_map, model.output)):
        names = [tensor.name for tensor in tensors]
        for key in sorted(set(entries) - set(names)):
            text = f"{format_step(index, step)} maps the {kind} '{key}', which the model does not have: it has {_join_quoted(names)}"
            yield ConfigProblem(text, step_path(index, (f"{kind}_map", "key", key)))
    for tensor in model.input:
        if step.input_map and tensor.name not in step.input_map and not tensor.optional:
            text = f"{format_step(index, step)} maps nothing to the model's input '{tensor.name}': add an input_map with that key"
            yield ConfigProblem(text, step_path(index))


@dataclass(frozen=True)
class _Tensor:
    who: str
    kind: int
    dims: tuple[int, ...]
    batched: bool

    @classmethod
    def of(cls, who: str, tensor: schema.ModelInput | schema.ModelOutput, dims: Sequence[int], batch: int) -> _Tensor:
        return cls(who, tensor.data_type, tuple(dims), batch > 0)

    def fits(self, other: _Tensor) -> bool:
        """Triton compares with and without the batch, so that a model without batches can stand among others."""
        full, others = (((-1,) if one.batched else ()) + one.dims for one in (self, other))
        return self.kind == other.kind and (same_shape(self.dims, other.dims) or same_shape(full, others))

    def __str__(self) -> str:
        return f"{self.who} as {format_type(self.kind)} {list(self.dims)}"


def _shapes(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], known: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Whether all who write or read a tensor mean the same by it: compared with the ensemble's own, else with the first step."""
    first: dict[str, _Tensor] = {}
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            if tensor.data_type == schema.TYPE_INVALID or not _is_shape(tensor.dims):
                continue  # reported where it is declared
            dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            first.setdefault(tensor.name, _Tensor.of(f"the ensemble declares its {kind}", tensor, dims, config.max_batch_size))
    others: dict[str, tuple[list[_Tensor], tuple[Step, ...]]] = {}
    for index, step in enumerate(steps):
        model = known.get(step.model_name)
        if model is None or not _is_declared(model):
            continue
        for kind, entries, tensors in (("input", step.input_map, model.input), ("output", step.output_map, model.output)):
            by_name = {tensor.name: tensor for tensor in tensors}
            for key, name in sorted(entries.items()):
                if key not in by_name:
                    continue
                who = f"{format_step(index, step)} {'takes' if kind == 'input' else 'gives'} it"
                mine = _Tensor.of(who, by_name[key], by_name[key].dims, model.max_batch_size)
                if not mine.fits(first.setdefault(name, mine)):
                    others.setdefault(name, ([], step_path(index, (f"{kind}_map", "key", key))))[0].append(mine)
    for name, (unfit, field_path) in others.items():
        told = " and ".join(str(tensor) for tensor in unfit)
        yield ConfigProblem(f"'{name}' is not the same for all: {first[name]}, but {told}; make type and shape the same", field_path)


def _any_size(
    config: schema.ModelConfig, steps: Sequence[schema.ModelEnsembling.Step], known: Mapping[str, schema.ModelConfig]
) -> Iterator[ConfigProblem]:
    """Whether images are declared as any size, where a step takes one size.

    Triton loads that, but a caller may then send any size, and a server sends a small one to find out whether the ensemble answers.
    """
    declared = next((list(tensor.dims) for tensor in config.input if tensor.name == "images"), [])
    for index, step in enumerate(steps):
        for tensor in known[step.model_name].input if step.model_name in known else ():
            sizes = list(tensor.dims)
            is_read = step.input_map.get(tensor.name) == "images"
            if is_read and same_shape(declared, sizes) and any(a == -1 and b > 0 for a, b in zip(declared, sizes, strict=True)):
                text = f"its input 'images' has dims {declared}, and {format_step(index, step)} takes {sizes}: write these sizes"
                yield ConfigProblem(text, (("input", "name", "images"), "dims"))
                return


def _is_shape(dims: Sequence[int]) -> bool:
    return len(dims) > 0 and all(size >= 1 or size == -1 for size in dims)


def same_shape(some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two shapes agree, where -1 is any size."""
    return len(some) == len(others) and all(one == other or -1 in (one, other) for one, other in zip(some, others, strict=True))


def _is_declared(config: schema.ModelConfig) -> bool:
    """Whether a model's configuration says what it takes and gives; where not, a backend may find out from the file."""
    return len(config.input) > 0 and len(config.output) > 0


def _join_quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
