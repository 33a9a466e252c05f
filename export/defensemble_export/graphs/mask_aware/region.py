"""Choose the part of a network that its mask-aware node computes: the cut with the least estimated time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .costs import GAIN_BATCHES, ConvCounts, batch_time, best_lanes, conv_counts, gains_by_packing, plain_time, program_times
from .function import node_inputs
from .lowering import Lowered, lower
from .operations import Network, Operation, supported_nodes
from .program import Conv, Output, Program
from .supports import TensorSupport, program_supports

# A convolution profits if it needs fewer than this part of the multiplications of a dense one that skips padding.
_PROFIT = 0.95
# Operations that a region takes over from the rest of the graph if that does not add a boundary tensor: they change no size, or reduce it.
_FOLLOWERS = frozenset(("identity", "relu", "sigmoid", "mask", "steps", "add", "mul", "maxpool", "avgpool", "mean", "concat"))
_BATCHES = (1, 16)  # the cut is chosen for both
# `auto` requires more than the first at batch 16, and at least the second at batch 1.
LEAST_GAIN = {16: 1.1, 1: 0.97}


@dataclass(frozen=True)
class Candidate:
    """A part of a network as a program, with its counts and estimated times.

    Attributes:
        operations: The operations, in order.
        outputs: The tensors that the rest of the graph reads.
        lowered: The program, with the lanes of each batch class.
        supports: The support of each tensor of the program.
        counts: The counts of each tensor that a convolution defines.
        times: The time of the program for each image, by its lanes.
        rest: The time of the rest of the graph for each image, by batch.
        dense: The time of the whole graph without the node for each image, by batch.
    """

    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    lowered: Lowered
    supports: tuple[TensorSupport, ...]
    counts: tuple[ConvCounts | None, ...]
    times: dict[int, float]
    rest: dict[int, float]
    dense: dict[int, float]

    def time(self, batch: int) -> float:
        """Return the estimated time for each image of a batch."""
        return batch_time(self.times, self.lowered.program.lanes, batch) + self.rest[batch]

    def gain(self, batch: int) -> float:
        """Return how many times as fast as without the node the network is expected to be."""
        return self.dense[batch] / self.time(batch)


def candidate(network: Network, operations: Sequence[Operation], images: str, given: Collection[str] = ()) -> Candidate:
    """Translate `operations` to a program, and estimate its time.

    Args:
        network: The network.
        operations: The operations, closed under ancestors, in order.
        images: The name of the images.
        given: Tensors that another node of the graph returns: this one need not.
    """
    positions = {operation.node for operation in operations}
    computed = [operation.output for operation in operations if operation.output not in given]
    outputs = tuple(name for name in computed if _is_read_outside(network, name, positions))
    inputs = node_inputs(network.graph, positions, images)
    lowered = lower(network, operations, outputs, images, inputs)
    supports = program_supports(lowered.program, network.masks(), network.channels())
    counts = tuple(
        conv_counts(instruction, supports[instruction.input], supports[number]) if isinstance(instruction, Conv) else None
        for number, instruction in enumerate(lowered.program.tensors())
    )
    program = _packed(lowered.program, counts)
    times = program_times(program, supports, counts)
    lowered = replace(lowered, program=replace(program, lanes=best_lanes(times)))
    plain = {batch: {position: plain_time(network, position, batch) for position in network.nodes} for batch in GAIN_BATCHES}
    rest = {batch: sum(time for position, time in times.items() if position not in positions) for batch, times in plain.items()}
    dense = {batch: sum(times.values()) for batch, times in plain.items()}
    return Candidate(tuple(operations), outputs, lowered, tuple(supports), counts, times, rest, dense)


def _packed(program: Program, counts: Sequence[ConvCounts | None]) -> Program:
    """Return a program whose convolutions are packed where that is faster."""
    remaining = iter(counts)
    instructions = []
    for instruction in program.instructions:
        count = None if isinstance(instruction, Output) else next(remaining)
        if isinstance(instruction, Conv) and count is not None and not instruction.support.is_full and gains_by_packing(count):
            instruction = replace(instruction, is_packed=True)
        instructions.append(instruction)
    return replace(program, instructions=tuple(instructions))


def best_candidate(network: Network, images: str, given: Collection[str] = ()) -> Candidate | None:
    """Return the cut with the least estimated time at batches 1 and 16 together, if possible one that `auto` accepts.

    Args:
        network: The network.
        images: The name of the images.
        given: As for `candidate`.

    Returns:
        The cut; None if no convolution profits from a mask.
    """
    supported = list(supported_nodes(network, images))
    if not any(operation.mask is not None for operation in supported):
        return None
    profiting = _profiting(candidate(network, supported, images, given))
    best: Candidate | None = None
    seen: set[tuple[int, ...]] = set()
    for count in range(1, len(profiting) + 1):
        operations = _region(network, supported, profiting[:count])
        key = tuple(operation.node for operation in operations)
        if key not in seen:
            seen.add(key)
            found = candidate(network, operations, images, given)
            if found.outputs and (best is None or _score(found) < _score(best)):
                best = found
    return best


def missed_gain(gains: Mapping[int, float]) -> int | None:
    """Return a batch at which `auto` requires more than the expected gain; None if there is none."""
    if gains[16] <= LEAST_GAIN[16]:
        return 16
    return 1 if gains[1] < LEAST_GAIN[1] else None


def _score(found: Candidate) -> tuple[bool, float]:
    is_missed = missed_gain({batch: found.gain(batch) for batch in _BATCHES}) is not None
    return is_missed, sum(math.log(found.time(batch)) for batch in _BATCHES)


def _profiting(everything: Candidate) -> list[Operation]:
    """Return the convolutions that need fewer multiplications because of masks, in order."""
    return sorted(
        (
            origins[0]
            for origins, counts in zip(everything.lowered.operations, everything.counts, strict=True)
            if counts is not None and counts.kept < _PROFIT * counts.unpadded
        ),
        key=lambda operation: operation.node,
    )


def _region(network: Network, supported: Sequence[Operation], convolutions: Sequence[Operation]) -> list[Operation]:
    """Return the `convolutions`, their ancestors, and the followers that add no boundary tensor, in order."""
    wanted = {operation.output for operation in convolutions}
    chosen: set[int] = set()
    for operation in reversed(supported):
        if operation.output in wanted:
            wanted.update(operation.inputs)
            chosen.add(operation.node)
    computed = {operation.output for operation in supported if operation.node in chosen}
    for operation in supported:
        if operation.node not in chosen and operation.kind in _FOLLOWERS and computed.issuperset(operation.inputs):
            if not any(_is_read_outside(network, name, chosen | {operation.node}) for name in operation.inputs):
                chosen.add(operation.node)
                computed.add(operation.output)
    return [operation for operation in supported if operation.node in chosen]


def _is_read_outside(network: Network, name: str, positions: set[int]) -> bool:
    """Return whether nodes outside `positions` read a tensor, or the graph returns it."""
    return name == network.target or any(reader not in positions for reader in network.readers.get(name, ()))
