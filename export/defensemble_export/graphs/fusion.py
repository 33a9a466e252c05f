"""Members and their average as one ONNX graph, which answers what the ensemble of them does.

Every name of a member gets ``<member>/`` before it, so that its masks are the BOOL initialisers ``<member>/<mask>``; where a model votes
at several versions it is ``<member>@<version>/``. Names of the averaging begin with ``average_/``, which no member's can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx.inliner
from onnx import TensorProto, helper

from defensemble_images import normalised
from defensemble_repository.configs import averaging_outputs
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import EnsembleError
from defensemble_repository.names import RESERVED_PREFIXES
from defensemble_repository.onnx_metadata import (
    CLASS_NAMES,
    FUSED_AVERAGE,
    FUSED_MEMBERS,
    IR_VERSION,
    MASK_DIGEST,
    OPSET,
    PREPROCESSING,
    SPEC,
)

from ..errors import ExportError
from ..labels import first_difference
from .averaging import average_onnx
from .copying import tidy_copy
from .loading import LARGEST_FILE, invalid_reason, model_from_bytes, translated
from .operators import QUANTISERS, RANDOM, STANDARD_DOMAINS
from .traversal import metadata_of, names_of, nodes_of, redirect, rename, shape_of, subgraphs, tensors_of

WAY_OUT = "serve the ensemble of the members, which computes the same"


def fused_onnx(members: Sequence[bytes | onnx.ModelProto], ensemble: Ensemble, *, preprocessing: str | None = None) -> bytes:
    """Merge ``members``, the networks of the ensemble's votes in their order, and its average into one graph.

    ``images`` FP32 [N,C,H,W], any N, to ``probabilities`` [N,K], ``member_probabilities`` [N,M,K], ``entropy`` [N,1] and
    ``mutual_information`` [N,1], each as the ensemble computes it. In whatever precision a member computes, its input and output are FP32.
    What members do alike, such as the normalisation of the images, is done once, and equal constants are held once; masks each stay.
    The same members give the same bytes. ``preprocessing`` is what the file's metadata state of how images are brought to size (JSON).

    Raises:
        EnsembleError: the members differ in classes or image size, are not one for each vote, or are larger than a file can be together.
        ExportError: a member is no network from ``images`` to ``logits`` that can be merged.
    """
    if len(members) != len(ensemble.members):
        raise EnsembleError(f"ensemble '{ensemble.name}' has {len(ensemble.members)} votes, and {len(members)} networks are to be fused")
    names = _prefixes(ensemble)
    models = [_network(member, name) for member, name in zip(members, names, strict=True)]
    shape, num_classes = _shared_interface(models, names)
    metadata = _metadata(models, [member if isinstance(member, bytes) else None for member in members], names, ensemble)
    if preprocessing is not None:
        metadata[PREPROCESSING] = preprocessing
    opsets = _opsets(models, names)
    logits: dict[str, str] = {}
    for position, (model, name) in enumerate(zip(models, names, strict=True)):
        # `images` keeps its name, and so is one input of all.
        _prefix(model.graph, f"{name}/", {"images": "images"})
        logits[f"logits_{position}"] = f"{name}/logits"
    average = onnx.load_model_from_string(average_onnx(ensemble, num_classes))
    _prefix(average.graph, f"{RESERVED_PREFIXES[0]}/", logits | {output.name: output.name for output in average.graph.output})
    models.append(average)

    fused = helper.make_model(
        helper.make_graph(
            [],
            "fused",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
            [
                helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *dims])
                for output, dims in averaging_outputs(len(ensemble.members), num_classes)
            ],
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
        producer_name="defensemble",
    )
    _merge(fused, models)
    helper.set_model_props(fused, metadata)
    _check(fused, dict(zip(names, members, strict=True)))
    content: bytes = fused.SerializeToString(deterministic=True)
    return content


def _prefixes(ensemble: Ensemble) -> list[str]:
    """What each vote's names begin with: its model, and its version too where the model votes at several."""
    voting = [vote.model for vote in ensemble.members]
    return [vote.model if voting.count(vote.model) == 1 else f"{vote.model}@{vote.version}" for vote in ensemble.members]


def _network(member: bytes | onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of a member, without what says nothing of the values, that takes ``images`` and gives ``logits`` and nothing else."""
    if not isinstance(member, (bytes, onnx.ModelProto)):
        raise ExportError(f"'{name}' must be the bytes of an ONNX file or a ModelProto, got {type(member).__name__}: read the file first")
    model = tidy_copy(model_from_bytes(member, name) if isinstance(member, bytes) else member)
    if model.functions:  # two members may have different ones of one name
        with translated("cannot be fused, since its functions cannot be inlined", file=f"'{name}'"):
            model = tidy_copy(onnx.inliner.inline_local_functions(model, convert_version=True))
    for what, tensors, expected, rank in (("input", model.graph.input, "images", 4), ("output", model.graph.output, "logits", 2)):
        got = [(tensor.name, tensor.type.tensor_type.elem_type, len(shape_of(tensor))) for tensor in tensors]
        if got != [(expected, TensorProto.FLOAT, rank)]:
            told = ", ".join(f"'{one}' ({TensorProto.DataType.Name(kind)}, {count} axes)" for one, kind, count in got)
            raise ExportError(
                f"'{name}' cannot be fused: its {what}s are {told or 'none'}, expected one, '{expected}' (FLOAT, {rank} axes)"
            )
    batch = shape_of(model.graph.input[0])[0]
    if batch is not None:
        raise ExportError(f"'{name}' cannot be fused: it takes exactly {batch} images at a time; export it with a free batch axis")
    outside = [tensor.name for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ExportError(f"'{name}' cannot be fused: the values of '{outside[0]}' lie outside of its file; save it as one file")
    return model


def _shared_interface(models: Sequence[onnx.ModelProto], names: Sequence[str]) -> tuple[tuple[int | None, ...], int]:
    """Channels, height and width of the images, and the number of classes, which all must have in common."""
    interfaces = [(shape_of(model.graph.input[0])[1:], shape_of(model.graph.output[0])[1]) for model in models]
    for name, (_, known) in zip(names, interfaces, strict=True):
        if known is None:
            raise ExportError(f"'{name}' cannot be fused: its file does not say how many classes it knows; {WAY_OUT}")
    shape, num_classes = interfaces[0]
    assert num_classes is not None
    for name, (other_shape, other_classes) in zip(names, interfaces, strict=True):
        for what, got, expected in (("image size", other_shape, shape), ("number of classes", other_classes, num_classes)):
            if got != expected:
                raise EnsembleError(f"members must share their {what}: '{names[0]}' has {expected}, '{name}' has {got}")
    return shape, num_classes


def _prefix(graph: onnx.GraphProto, prefix: str, names: Mapping[str, str]) -> None:
    """Put `prefix` before the name of every tensor and node of a graph, except for tensors that get their new names from `names`."""
    rename(graph, {**{name: f"{prefix}{name}" for name in names_of(graph)}, **names})
    for node in graph.node:
        node.name = node.name and f"{prefix}{node.name}"


def digests_of_members(fused: bytes) -> list[str | None]:
    """The SHA-256 of each file that went into a graph of ``fused_onnx``, in the order of the votes; None where it came without a file."""
    return [vote["sha256"] for vote in json.loads(metadata_of(onnx.load_model_from_string(fused))[FUSED_MEMBERS])]


def _metadata(models: Sequence[onnx.ModelProto], files: Sequence[bytes | None], names: Sequence[str], ensemble: Ensemble) -> dict[str, str]:
    """The fused file's metadata; the members' own are taken off."""
    told = [metadata_of(model) for model in models]
    known = {name: one[CLASS_NAMES] for name, one in zip(names, told, strict=True) if CLASS_NAMES in one}
    classes = {name: tuple(normalised(one) for one in json.loads(text)) for name, text in known.items()}
    for name, some in classes.items():
        first = next(iter(classes))
        if some != classes[first]:
            raise EnsembleError(
                f"members must share their class names: '{first}' and '{name}' have {first_difference(classes[first], some)}"
            )
    votes = [
        {
            "member": vote.model,
            "version": vote.version,
            "weight": vote.weight,
            "sha256": None if file is None else hashlib.sha256(file).hexdigest(),
            "mask_digest": one.get(MASK_DIGEST),
            "spec": _spec(one, vote.model),
        }
        for vote, file, one in zip(ensemble.members, files, told, strict=True)
    ]
    labels = {CLASS_NAMES: next(iter(known.values()))} if known else {}
    return {**labels, FUSED_MEMBERS: json.dumps(votes), FUSED_AVERAGE: ensemble.average}


def _spec(metadata: Mapping[str, str], name: str) -> Any:
    """What a member's file says that it is."""
    try:
        return json.loads(metadata[SPEC]) if SPEC in metadata else None
    except ValueError as error:
        raise ExportError(f"the file of '{name}' holds a {SPEC} that is no JSON: {error}. It was damaged: export it again") from error


def _opsets(models: Sequence[onnx.ModelProto], names: Sequence[str]) -> dict[str, int]:
    """Domain to version, of all members together."""
    opsets = {"": OPSET}
    for model, name in zip(models, names, strict=True):
        used = {node.domain for node in nodes_of(model.graph)}
        for entry in model.opset_import:
            if entry.domain not in used.union(STANDARD_DOMAINS):
                continue
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if opsets.setdefault(domain, entry.version) != entry.version:
                raise ExportError(
                    f"'{name}' cannot be fused: it is written for version {entry.version} of the operators of '{domain or 'ai.onnx'}', "
                    f"expected {opsets[domain]}: export it again, or {WAY_OUT}"
                )
    return opsets


def _merge(fused: onnx.ModelProto, models: Sequence[onnx.ModelProto]) -> None:
    """Put the nodes and constants of all into one graph, in turn, leaving out what is there already under another name.

    Quantisers, and the constants that they read, are no members' in common: ONNX Runtime (1.32), which merges equal nodes itself,
    computes a convolution in integers only where its quantised input has no other reader, so that one of two members would be computed in
    float (measured: 0.012 of a probability).
    """
    graph = fused.graph
    outputs = {tensor.name for tensor in graph.output}
    same: dict[str, str] = {}  # a name that is left out, to the one that is kept
    constants: dict[tuple[Any, ...], str] = {}
    results: dict[tuple[Any, ...], onnx.NodeProto] = {}
    for model in models:
        graph.sparse_initializer.extend(model.graph.sparse_initializer)
        scales = {name for node in nodes_of(model.graph) if node.op_type in QUANTISERS for name in node.input}
        for tensor in model.graph.initializer:
            # A mask is what tells one member from another: each stays, under its own name.
            apart = tensor.data_type == TensorProto.BOOL or tensor.name in scales
            kept = tensor.name if apart else constants.setdefault(_value_of(tensor), tensor.name)
            if kept == tensor.name:
                graph.initializer.append(tensor)
            else:
                same[tensor.name] = kept
        for node in model.graph.node:
            redirect([node], same)
            alone = node.op_type in QUANTISERS | RANDOM or subgraphs(node)
            if not alone and outputs.isdisjoint(node.output):
                earlier = results.setdefault(_computation_of(node), node)
                if earlier is not node:
                    same.update(zip(node.output, earlier.output, strict=True))
                    continue
            graph.node.append(node)


def _value_of(tensor: onnx.TensorProto) -> tuple[Any, ...]:
    """Equal for constants of equal type, shape and values, stored in the same way."""
    if tensor.HasField("raw_data"):
        content = tensor.raw_data
    else:
        nameless = onnx.TensorProto()
        nameless.CopyFrom(tensor)
        nameless.ClearField("name")
        nameless.ClearField("doc_string")
        content = nameless.SerializeToString(deterministic=True)
    return tensor.data_type, tuple(tensor.dims), tensor.HasField("raw_data"), hashlib.sha256(content).digest()


def _computation_of(node: onnx.NodeProto) -> tuple[Any, ...]:
    """Equal for nodes that compute the same: operator, attributes, inputs, and which of the outputs are wanted."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, node.domain, node.overload, tuple(node.input), tuple(bool(name) for name in node.output), tuple(attributes)


def _check(fused: onnx.ModelProto, members: Mapping[str, bytes | onnx.ModelProto]) -> None:
    size = fused.ByteSize()
    if size > LARGEST_FILE:
        raise EnsembleError(
            f"{', '.join(members)} take {size / 1e9:.1f} GB together, one ONNX file at most {LARGEST_FILE / 1e9:.1f}: "
            "fuse fewer, export them in fp16, or serve them as an ensemble"
        )
    reason = invalid_reason(fused)
    if reason is None:
        return
    for name, member in members.items():
        if own := invalid_reason(_network(member, name)):
            raise ExportError(f"'{name}' cannot be fused: onnx's checker refuses its graph: {own}; export it again, or {WAY_OUT}")
    raise ExportError(f"{', '.join(members)} cannot be fused, though onnx's checker passes each of them: {reason}; {WAY_OUT}")
