"""Translate operations to a program: what is needed of each tensor, backwards, then instructions with fused masks, sums and activations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from .expressions import FULL, NOTHING, MaskExpression
from .operations import Network, Operation
from .program import Combine, Concat, Conv, Images, Instruction, Map, Mean, Output, Pool, Program


def needed(operations: Sequence[Operation], outputs: Iterable[str], network: Network) -> dict[str, MaskExpression]:
    """Return the neurons of each tensor that are needed to compute `outputs` in full: masks, and 1x1 convolutions, need a part only.

    Args:
        operations: The operations, in order.
        outputs: The tensors that are needed in full.
        network: The network.
    """
    demands = dict.fromkeys(outputs, FULL)

    def need(name: str, demand: MaskExpression) -> None:
        demands[name] = demands.get(name, NOTHING) | demand

    for operation in reversed(operations):
        demand = demands.get(operation.output, NOTHING)
        for name in operation.inputs:
            if operation.mask is not None:
                need(name, demand & MaskExpression.of(operation.mask))
            elif operation.kind in ("identity", "relu", "sigmoid", "steps"):
                need(name, demand)
            elif operation.kind in ("add", "mul"):
                need(name, demand if network.shapes[name] == operation.shape else FULL)
            elif operation.kind == "concat" or (operation.kind == "conv" and _is_pointwise(operation)):
                need(name, demand.only(_spatial_masks(network, demand)))
            else:
                need(name, FULL)
    return demands


def _is_pointwise(operation: Operation) -> bool:
    window = operation.window
    return window is not None and window.kernel == window.strides == (1, 1) and not any(window.pads)


def _spatial_masks(network: Network, demand: MaskExpression) -> set[str]:
    """Return the masks of `demand` that are equal for all channels: they hold for other channels, too."""
    return {name for name in demand.masks() if network.constants[name].dims[-3] == 1}


@dataclass
class _Value:
    """A tensor of the graph as a tensor of the program.

    Attributes:
        number: The number of the program's tensor.
        support: Contains the neurons that the program's tensor has, as an expression.
        is_masked: Whether a mask was left out, because the instruction computes nothing else: its steps may not change zeros any more.
        is_shared: Whether another tensor of the graph with the same number is read, too.
    """

    number: int
    support: MaskExpression
    is_masked: bool = False
    is_shared: bool = False


@dataclass(frozen=True)
class Lowered:
    """A program, and which operations each of its tensors computes, in order."""

    program: Program
    operations: tuple[tuple[Operation, ...], ...]


def lower(network: Network, operations: Sequence[Operation], outputs: Sequence[str], images: str, inputs: Sequence[str]) -> Lowered:
    """Translate `operations` to a program that computes `outputs`.

    Args:
        network: The network.
        operations: The operations, in order; each reads `images` or what earlier ones compute.
        outputs: The tensors to compute, in the order of the node's outputs.
        images: The name of the images.
        inputs: The names of the inputs of the node.
    """
    lowering = _Lowering(network, operations, outputs, images)
    for operation in operations:
        lowering.add(operation)
    ends = [Output(lowering.values[name].number) for name in outputs]
    program = Program(tuple(inputs), (*lowering.instructions, *ends))
    return Lowered(program, tuple(tuple(each) for each in lowering.origins))


class _Lowering:
    """The instructions so far, and the tensor of the program for each tensor of the graph."""

    def __init__(self, network: Network, operations: Sequence[Operation], outputs: Collection[str], images: str) -> None:
        self.network = network
        self.demands = needed(operations, outputs, network)
        self.readers: dict[str, int] = dict.fromkeys(outputs, 1)  # an output is read by the rest of the graph
        for operation in operations:
            for name in operation.inputs:
                self.readers[name] = self.readers.get(name, 0) + 1
        self.instructions: list[Instruction] = [Images(network.shapes[images])]
        self.origins: list[list[Operation]] = [[]]
        self.values = {images: _Value(0, FULL)}

    def add(self, operation: Operation) -> None:
        """Add the instruction of an operation, or extend the one that computes its input."""
        demand = self.demands.get(operation.output, NOTHING)
        sources = [self.values[name] for name in operation.inputs]
        first = sources[0]
        match operation.kind:
            case "identity":
                self._alias(operation, first)
            case "mask":
                self._mask(operation, first, demand)
            case "steps":
                self._steps(operation, first, demand)
            case "relu":
                self._relu(operation, first, demand)
            case "sigmoid":
                self._emit(operation, Map(first.number, (), "sigmoid", demand), demand)
            case "conv":
                assert operation.weight is not None
                assert operation.window is not None
                self._emit(operation, Conv(first.number, operation.weight, operation.bias, operation.window, demand), demand)
            case "add" | "mul":
                self._combine(operation, sources)
            case "maxpool" | "avgpool":
                assert operation.window is not None
                pool = Pool(operation.kind, first.number, operation.window, operation.ceil, operation.include_pad)
                self._emit(operation, pool, FULL)
            case "mean":
                self._emit(operation, Mean(first.number), FULL)
            case "concat":
                self._emit(operation, Concat(tuple(source.number for source in sources)), FULL)
            case kind:
                raise AssertionError(f"unknown operation {kind}")

    def _emit(self, operation: Operation, instruction: Instruction, support: MaskExpression) -> None:
        self.instructions.append(instruction)
        self.origins.append([operation])
        self.values[operation.output] = _Value(len(self.instructions) - 1, support)

    def _extend(self, operation: Operation, value: _Value, instruction: Instruction, support: MaskExpression) -> None:
        """Replace the instruction of `value`, which nothing else reads, by one that computes `operation`, too."""
        self.instructions[value.number] = instruction
        self.origins[value.number].append(operation)
        self.values[operation.output] = _Value(value.number, support, value.is_masked)

    def _alias(self, operation: Operation, source: _Value) -> None:
        """Take the program's tensor of the input for the output, too."""
        self.origins[source.number].append(operation)
        is_shared = source.is_shared or self.readers[operation.inputs[0]] > 1
        self.values[operation.output] = replace(source, is_shared=is_shared)

    def _is_open(self, name: str) -> bool:
        """Return whether the instruction of `name` has no activation yet, and only one operation reads its result."""
        value = self.values[name]
        instruction = self.instructions[value.number]
        return (
            self.readers[name] == 1 and not value.is_shared and isinstance(instruction, (Map, Conv, Combine)) and instruction.act == "none"
        )

    def _mask(self, operation: Operation, source: _Value, demand: MaskExpression) -> None:
        assert operation.mask is not None
        if source.support.implies(operation.mask):
            self._alias(operation, source)
            self.values[operation.output].is_masked = True
        else:
            support = demand & MaskExpression.of(operation.mask) & source.support
            self._emit(operation, Map(source.number, (), "none", support), support)
            self.values[operation.output].is_masked = True

    def _steps(self, operation: Operation, source: _Value, demand: MaskExpression) -> None:
        assert operation.step is not None
        support = demand if operation.fills else demand & source.support
        instruction = self.instructions[source.number]
        if self._is_open(operation.inputs[0]) and isinstance(instruction, Map) and not (source.is_masked and operation.fills):
            steps = (*instruction.steps, operation.step)
            self._extend(operation, source, replace(instruction, steps=steps, support=support), support)
        else:
            self._emit(operation, Map(source.number, (operation.step,), "none", support), support)

    def _relu(self, operation: Operation, source: _Value, demand: MaskExpression) -> None:
        instruction = self.instructions[source.number]
        if self._is_open(operation.inputs[0]):
            assert isinstance(instruction, (Map, Conv, Combine))
            self._extend(operation, source, replace(instruction, act="relu"), source.support)
        else:
            support = demand & source.support
            self._emit(operation, Map(source.number, (), "relu", support), support)

    def _combine(self, operation: Operation, sources: Sequence[_Value]) -> None:
        both = sources[0].support, sources[1].support
        if any(self.network.shapes[name] != operation.shape for name in operation.inputs):
            support = FULL
            if operation.kind == "mul":
                support = next(
                    (each for each, name in zip(both, operation.inputs, strict=True) if self.network.shapes[name] == operation.shape), FULL
                )
            self._emit(operation, Combine(operation.kind, (sources[0].number, sources[1].number)), support)
            return
        support = both[0] | both[1] if operation.kind == "add" else both[0] & both[1]
        last = max((0, 1), key=lambda index: sources[index].number)
        instruction, other = self.instructions[sources[last].number], sources[1 - last].number
        name = operation.inputs[last]
        is_fusable = operation.kind == "add" and isinstance(instruction, Conv) and instruction.residual is None
        if is_fusable and self._is_open(name) and other != sources[last].number:
            assert isinstance(instruction, Conv)
            self._extend(operation, sources[last], replace(instruction, residual=other), support)
        else:
            self._emit(operation, Combine(operation.kind, (sources[0].number, sources[1].number)), support)
