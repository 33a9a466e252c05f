"""What a mask-aware export reports: JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .channels import ChannelForm
from .costs import GAIN_BATCHES, dense_products
from .operations import Network, Operation
from .program import BATCH_CLASSES, Conv
from .region import Candidate


def layers_of(network: Network, found: Candidate) -> list[dict[str, Any]]:
    """Return an entry for each convolution of a mask-aware node."""
    program = found.lowered.program
    entries = []
    for number, (instruction, counts) in enumerate(zip(program.tensors(), found.counts, strict=True)):
        if isinstance(instruction, Conv):
            assert counts is not None
            source, result = found.supports[instruction.input], found.supports[number]
            entries.append(
                {
                    "name": _layer_name(network, found.lowered.operations[number][0]),
                    "dense": dense_products(network, found.lowered.operations[number][0].node),
                    "unpadded": counts.unpadded,
                    "kept": counts.kept,
                    "input_support": _share(source.support.mean()),
                    "output_support": _share(result.rows.mean()),
                    "form": {name: instruction.kernel(lanes) for (name, _), lanes in zip(BATCH_CLASSES, program.lanes, strict=True)},
                }
            )
    return entries


def channel_layers(network: Network, form: ChannelForm) -> list[dict[str, Any]]:
    """Return an entry for each convolution that has fewer channels."""
    return [
        {
            "name": _layer_name(network, operation),
            "dense": dense_products(network, operation.node),
            "unpadded": dense_products(network, operation.node),
            "kept": products,
            "input_support": _share(inputs.mean()),
            "output_support": _share(outputs.mean()),
            "form": {name: "channels" for name, _ in BATCH_CLASSES},
        }
        for (operation, inputs, outputs), products in zip(form.layers, form.products, strict=True)
    ]


def multiplications_of(network: Network, found: Candidate | ChannelForm | None) -> dict[str, int]:
    """Return the multiplications of the convolutions of a network on one image: dense, without padding, and as computed.

    A convolution that stays as it was counts as dense in all three, because ONNX Runtime computes it so.
    """
    inside: dict[int, tuple[int, int]] = {}  # unpadded and kept
    if isinstance(found, ChannelForm):
        for (operation, _, _), products in zip(found.layers, found.products, strict=True):
            inside[operation.node] = dense_products(network, operation.node), products
    elif found is not None:
        for origins, counts in zip(found.lowered.operations, found.counts, strict=True):
            if counts is not None:
                inside[origins[0].node] = counts.unpadded, counts.kept
    totals = {"dense": 0, "unpadded": 0, "kept": 0}
    for position in network.nodes:
        if network.graph.node[position].op_type == "Conv":
            dense = dense_products(network, position)
            unpadded, kept = inside.get(position, (dense, dense))
            totals["dense"] += dense
            totals["unpadded"] += unpadded
            totals["kept"] += kept
    return totals


def gains_of(found: Sequence[Candidate | ChannelForm]) -> dict[str, float]:
    """Return the expected gain by batch, for networks that are computed one after the other."""
    gains = {}
    for batch in GAIN_BATCHES:
        dense = sum(each.dense[batch] for each in found)
        gains[str(batch)] = round(dense / sum(each.time(batch) for each in found), 3)
    return gains


def stopped_at(network: Network) -> list[dict[str, str]]:
    """Return the nodes that a program cannot express, and at which masks are lost: they apply a mask, or one is before or after them."""
    graph = network.graph
    masked_before = {operation.output for operation in network.operations.values() if operation.mask is not None}
    for position in network.nodes:  # tensors after a mask, until a node that a program cannot express
        operation = network.operations.get(position)
        if operation is not None and operation.kind in ("relu", "identity", "maxpool", "avgpool", "add", "mul", "concat"):
            if masked_before.intersection(operation.inputs):
                masked_before.add(operation.output)
    masks_after: set[str] = set()
    entries = []
    for position in reversed(network.nodes):
        node = graph.node[position]
        applies = node.op_type == "Where" or (position in network.operations and network.operations[position].mask is not None)
        is_before = bool(masks_after.intersection(node.output))
        if position in network.refused and (applies or is_before or masked_before.intersection(node.input)):
            entries.append({"node": node.name or node.output[0], "reason": network.refused[position]})
        if applies or is_before:
            masks_after.update(node.input)
    return entries[::-1]


def _layer_name(network: Network, operation: Operation) -> str:
    assert operation.weight is not None
    name = operation.weight.removesuffix(".weight")
    return name if name != operation.weight else network.graph.node[operation.node].name or operation.output


def _share(value: float) -> float:
    return round(float(value), 4)
