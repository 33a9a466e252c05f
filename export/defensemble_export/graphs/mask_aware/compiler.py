"""Compile the masked part of a network to a mask-aware node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from defensemble_ops import OPERATOR

from ...errors import ExportError
from ..operators import QUANTISE_OPERATORS
from ..traversal import nodes_of, real_inputs, shape_of
from .channels import ChannelForm, channel_form, has_channel_masks
from .costs import GAIN_BATCHES
from .function import Region, plain_onnx, with_programs
from .operations import Network, read_network
from .region import LEAST_GAIN, Candidate, best_candidate, missed_gain
from .report import channel_layers, gains_of, layers_of, multiplications_of, stopped_at

MODES = ("auto", "on")


@dataclass(frozen=True)
class MaskAware:
    """A graph with mask-aware nodes, or with smaller convolutions, or the graph as it was where these are not expected to pay.

    Attributes:
        model: The graph.
        report: What was done, and why: JSON values.
    """

    model: onnx.ModelProto
    report: dict[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether the graph has mask-aware nodes."""
        return self.report["operator"] is not None


def mask_aware_from_onnx(model: onnx.ModelProto, mode: str = "auto", targets: Sequence[str] = ("logits",)) -> MaskAware:
    """Compile the masked part of a float32 graph to one node, which computes only the neurons that masks keep.

    The node is also a function of the graph, with the plain nodes as its body: a runtime without the operator computes the same. Weights
    and masks stay initialisers under their names. `model` is not changed. Where all masks switch off whole channels, the result has smaller
    convolutions instead of a node, which need no operator.

    Args:
        model: A float32 graph from images [N,C,H,W], any N, with BOOL masks, applied by Where(mask, x, 0).
        mode: `auto` keeps the graph as it is where the expected gain is not above 1.1 at batch 16, or is below 0.97 at batch 1; `on`
            compiles whatever can be compiled.
        targets: The tensors whose ancestors are compiled, each to its own node: the logits of each member of a fused graph.

    Raises:
        ExportError: In mode `on`, nothing can be compiled: there are no masks, the graph is not float32, or a mask cannot be followed. The
            message names the node.

    Example:
        >>> compiled = mask_aware_from_onnx(onnx.load("resnet18.onnx"))
        >>> compiled.report["expected_gain"]["16"]
    """
    if mode not in MODES:
        raise ExportError(f"mode must be one of {', '.join(MODES)}, got '{mode}'")
    plain = plain_onnx(model)
    if reason := _unsuitable_reason(plain):
        return _unchanged(model, mode, reason, [], [])
    images = real_inputs(plain.graph)[0].name
    work = _Work(plain, images, targets)
    if not work.found:
        return _unchanged(model, mode, _reason_for_nothing(work.networks, work.stops), work.networks, work.stops)
    gains = gains_of([each for _, each in work.found])
    missed = missed_gain({int(batch): gain for batch, gain in gains.items()})
    if mode == "auto" and missed is not None:
        needed = f"more than {LEAST_GAIN[16]}" if missed == 16 else f"at least {LEAST_GAIN[1]}"
        reason = f"the expected gain at batch {missed} is {gains[str(missed)]:.2f}, and {needed} is required"
        return MaskAware(model, _report(None, reason, work.networks, [], work.stops, gains))
    reason = "requested" if mode == "on" else f"the expected gain at batch 16 is {gains['16']:.2f}"
    regions = [_region(network, each) for network, each in work.found if isinstance(each, Candidate)]
    if not regions:
        reason += ": smaller convolutions, which need no operator, because masks switch off whole channels"
    result = with_programs(work.model, regions) if regions else work.model
    return MaskAware(result, _report(OPERATOR if regions else None, reason, work.networks, work.found, work.stops, gains))


class _Work:
    """What was found to compile, for each target.

    Attributes:
        model: The graph, in which networks with masks of whole channels are already changed.
        networks: The network of each target that the graph computes; equal members of a fused graph are computed once.
        found: The networks that gain, with how.
        stops: The nodes at which masks are lost.
    """

    def __init__(self, model: onnx.ModelProto, images: str, targets: Sequence[str]) -> None:
        self.model = model
        self.networks: list[Network] = []
        self.found: list[tuple[Network, Candidate | ChannelForm]] = []
        self.stops: list[dict[str, str]] = []
        computed = {name for node in model.graph.node for name in node.output}
        others: list[tuple[onnx.ModelProto, Network]] = []
        for target in targets:
            network = read_network(self.model, target)
            form = channel_form(self.model, network, images) if has_channel_masks(network) else None
            if form is not None:
                self._add(network, form)
                self.model = form.model
            elif target in computed:
                others.append((self.model, network))
        given: set[str] = set()
        for read_from, network in others:
            if read_from is not self.model:  # changed for a later target
                network = read_network(self.model, network.target)
            self._add(network, candidate := best_candidate(network, images, given))
            given.update(() if candidate is None else candidate.outputs)

    def _add(self, network: Network, found: Candidate | ChannelForm | None) -> None:
        self.networks.append(network)
        self.stops.extend(stopped_at(network))
        if found is not None:
            self.found.append((network, found))


def _region(network: Network, found: Candidate) -> Region:
    prefix, separator, _ = network.target.rpartition("/")
    nodes = tuple(operation.node for operation in found.operations)
    shapes = tuple(network.shapes[name] for name in found.outputs)
    return Region(nodes, found.outputs, shapes, found.lowered.program, prefix if separator else "")


def _reason_for_nothing(networks: Sequence[Network], stops: Sequence[dict[str, str]]) -> str:
    """Return why nothing was found to compile."""
    if not any(network.graph.node[position].op_type == "Where" for network in networks for position in network.nodes):
        return "the graph has no masks: a mask is a Where with a BOOL initialiser"
    if stops:
        return f"no mask can be followed to a convolution: node '{stops[0]['node']}' stops it ({stops[0]['reason']})"
    return "no convolution gains from the masks: they keep almost all neurons, or none of them is next to a convolution"


def _unsuitable_reason(model: onnx.ModelProto) -> str | None:
    """Return why no part of a graph can be mask-aware, if that does not depend on its nodes."""
    inputs = real_inputs(model.graph)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        return f"the graph has the inputs {', '.join(entry.name for entry in inputs)}, expected one of FLOAT images"
    shape = shape_of(inputs[0])
    if len(shape) != 4 or None in shape[1:]:
        return f"the images are {list(shape)}, expected [N,C,H,W] with fixed C, H and W"
    if shape[0] is not None:
        return f"the graph has a fixed batch of {shape[0]}, expected a free one"
    quantised = next((node for node in nodes_of(model.graph) if node.op_type in QUANTISE_OPERATORS), None)
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    half = next((tensor for tensor in model.graph.initializer if tensor.data_type in halves), None)
    if quantised is not None:
        return f"the graph is not float32 (node '{quantised.name}' quantises): export it as fp32"
    if half is not None:
        return f"the graph is not float32 ('{half.name}' is not FLOAT): export it as fp32"
    if model.functions:
        return "the graph has local functions: inline them first, with onnx.inliner.inline_local_functions"
    return None


def _unchanged(model: onnx.ModelProto, mode: str, reason: str, networks: Sequence[Network], stops: list[dict[str, str]]) -> MaskAware:
    """Return the graph as it was; in mode `on`, raise an ExportError."""
    if mode == "on":
        raise ExportError(f"the graph cannot be mask-aware: {reason}; export it with --mask-aware off")
    return MaskAware(model, _report(None, reason, networks, [], stops, {str(batch): 1.0 for batch in GAIN_BATCHES}))


def _report(
    operator: str | None,
    reason: str,
    networks: Sequence[Network],
    chosen: Sequence[tuple[Network, Candidate | ChannelForm]],
    stops: list[dict[str, str]],
    gains: dict[str, float],
) -> dict[str, Any]:
    candidates = {id(network): found for network, found in chosen}
    totals = [multiplications_of(network, candidates.get(id(network))) for network in networks]
    return {
        "operator": operator,
        "reason": reason,
        "boundary": [name for _, found in chosen if isinstance(found, Candidate) for name in found.outputs],
        "layers": [
            layer
            for network, found in chosen
            for layer in (layers_of(network, found) if isinstance(found, Candidate) else channel_layers(network, found))
        ],
        "multiplications": {key: sum(total[key] for total in totals) for key in ("dense", "unpadded", "kept")},
        "expected_gain": gains,
        "stopped_at": stops,
    }
