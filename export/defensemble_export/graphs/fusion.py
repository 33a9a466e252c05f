"""Fuse the members of an ensemble and their average into one ONNX graph with the same outputs.

Every name of a member gets the prefix `<member>/`, so its masks are the BOOL initialisers `<member>/<mask>`; a model that is a member at
several versions gets `<member>@<version>/`. Names of the averaging graph begin with `average_/`, which no member name can.
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
from .loading import MAX_FILE_BYTES, invalid_reason, translate_errors
from .mask_aware import plain_onnx
from .operators import QUANTISE_OPERATORS, RANDOM, STANDARD_DOMAINS
from .stored import model_from_bytes
from .traversal import metadata_of, names_of, nodes_of, redirect, rename, shape_of, subgraphs, tensors_of

FUSING_ALTERNATIVE = "serve the ensemble of the members, which computes the same"


def fused_onnx(members: Sequence[bytes | onnx.ModelProto], ensemble: Ensemble, *, preprocessing: str | None = None) -> bytes:
    """Merge the members of an ensemble and its average into one graph.

    The graph maps `images` FP32 [N,C,H,W], any N, to `probabilities` [N,K], `member_probabilities` [N,M,K], `entropy` [N,1] and
    `mutual_information` [N,1], computed as the ensemble computes them. The input and output of every member are FP32, whatever its
    precision. Computations that members share, such as the normalisation of the images, run once, and equal constants are stored once;
    every mask is kept. The same members give the same bytes.

    Args:
        members: The networks, as bytes or models, in the order of `ensemble.members`.
        ensemble: The ensemble.
        preprocessing: The preprocessing to write into the metadata (JSON).

    Raises:
        EnsembleError: The members differ in classes or image size, their number differs from the ensemble's, or the fused file would be too
            large.
        ExportError: A member is not a network from `images` to `logits`, or cannot be merged.

    Example:
        >>> ensemble = Ensemble("ensemble", (Member("a"), Member("b", weight=2.0)))
        >>> Path("fused.onnx").write_bytes(fused_onnx([Path("a.onnx").read_bytes(), Path("b.onnx").read_bytes()], ensemble))
    """
    if len(members) != len(ensemble.members):
        raise EnsembleError(
            f"ensemble '{ensemble.name}' has {len(ensemble.members)} members, got {len(members)} networks to fuse: pass one per member"
        )
    names = member_prefixes(ensemble)
    models = [_load_network(member, name) for member, name in zip(members, names, strict=True)]
    shape, num_classes = _shared_interface(models, names)
    metadata = _metadata(models, [member if isinstance(member, bytes) else None for member in members], names, ensemble)
    if preprocessing is not None:
        metadata[PREPROCESSING] = preprocessing
    opsets = _opsets(models, names)
    logits: dict[str, str] = {}
    for position, (model, name) in enumerate(zip(models, names, strict=True)):
        # `images` keeps its name and so becomes the input of all members.
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


def member_prefixes(ensemble: Ensemble) -> list[str]:
    """Return the prefix of each member's names: its model, and its version if the model is a member at several versions."""
    models = [member.model for member in ensemble.members]
    return [member.model if models.count(member.model) == 1 else f"{member.model}@{member.version}" for member in ensemble.members]


def _load_network(member: bytes | onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a tidy copy of a member, after checking that it maps `images` to `logits` only."""
    if not isinstance(member, (bytes, onnx.ModelProto)):
        raise ExportError(f"'{name}' must be the bytes of an ONNX file or a ModelProto, got {type(member).__name__}: read the file first")
    model = tidy_copy(model_from_bytes(member, name) if isinstance(member, bytes) else plain_onnx(member))
    if model.functions:  # two members may have different functions of the same name
        with translate_errors("cannot be fused, because its functions cannot be inlined", file=f"'{name}'"):
            model = tidy_copy(onnx.inliner.inline_local_functions(model, convert_version=True))
    for kind, tensors, expected, rank in (("input", model.graph.input, "images", 4), ("output", model.graph.output, "logits", 2)):
        got = [(tensor.name, tensor.type.tensor_type.elem_type, len(shape_of(tensor))) for tensor in tensors]
        if got != [(expected, TensorProto.FLOAT, rank)]:
            listing = ", ".join(f"'{tensor}' ({TensorProto.DataType.Name(dtype)}, {axes} axes)" for tensor, dtype, axes in got)
            raise ExportError(
                f"'{name}' cannot be fused: its {kind}s are {listing or 'none'}, expected only '{expected}' (FLOAT, {rank} axes); "
                f"export it again, or {FUSING_ALTERNATIVE}"
            )
    batch = shape_of(model.graph.input[0])[0]
    if batch is not None:
        raise ExportError(f"'{name}' cannot be fused: it has a fixed batch of {batch}; export it with a free batch axis")
    external = [tensor.name for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
    if external:
        raise ExportError(f"'{name}' cannot be fused: the values of '{external[0]}' are in another file; save it as one file")
    return model


def _shared_interface(models: Sequence[onnx.ModelProto], names: Sequence[str]) -> tuple[tuple[int | None, ...], int]:
    """Return (C, H, W) of the images and the number of classes, which must be the same for all members."""
    interfaces = [(shape_of(model.graph.input[0])[1:], shape_of(model.graph.output[0])[1]) for model in models]
    for name, (_, classes) in zip(names, interfaces, strict=True):
        if classes is None:
            raise ExportError(f"'{name}' cannot be fused: its file leaves the number of classes open; {FUSING_ALTERNATIVE}")
    shape, num_classes = interfaces[0]
    assert num_classes is not None
    for name, (other_shape, other_classes) in zip(names, interfaces, strict=True):
        for kind, got, expected in (("image size", other_shape, shape), ("number of classes", other_classes, num_classes)):
            if got != expected:
                raise EnsembleError(f"members must share their {kind}: '{names[0]}' has {expected}, but '{name}' has {got}")
    return shape, num_classes


def _prefix(graph: onnx.GraphProto, prefix: str, names: Mapping[str, str]) -> None:
    """Put `prefix` before the name of every tensor and node of a graph, except for tensors that `names` renames."""
    rename(graph, {**{name: f"{prefix}{name}" for name in names_of(graph)}, **names})
    for node in graph.node:
        node.name = node.name and f"{prefix}{node.name}"


def digests_of_members(fused: bytes) -> list[str | None]:
    """Return the SHA-256 of each member's file in a graph of `fused_onnx`, in order; None for a member that was passed as a model."""
    return [member["sha256"] for member in json.loads(metadata_of(onnx.load_model_from_string(fused))[FUSED_MEMBERS])]


def _metadata(models: Sequence[onnx.ModelProto], files: Sequence[bytes | None], names: Sequence[str], ensemble: Ensemble) -> dict[str, str]:
    """Return the metadata of the fused file, from those of the members."""
    metadata = [metadata_of(model) for model in models]
    labels = {name: entries[CLASS_NAMES] for name, entries in zip(names, metadata, strict=True) if CLASS_NAMES in entries}
    classes = {name: tuple(normalised(label) for label in json.loads(text)) for name, text in labels.items()}
    for name, class_names in classes.items():
        first = next(iter(classes))
        if class_names != classes[first]:
            raise EnsembleError(
                f"members must share their class names: '{first}' and '{name}' have {first_difference(classes[first], class_names)}"
            )
    members = [
        {
            "member": member.model,
            "version": member.version,
            "weight": member.weight,
            "sha256": None if file is None else hashlib.sha256(file).hexdigest(),
            "mask_digest": entries.get(MASK_DIGEST),
            "spec": _parse_spec(entries, member.model),
        }
        for member, file, entries in zip(ensemble.members, files, metadata, strict=True)
    ]
    class_names_entry = {CLASS_NAMES: next(iter(labels.values()))} if labels else {}
    return {**class_names_entry, FUSED_MEMBERS: json.dumps(members), FUSED_AVERAGE: ensemble.average}


def _parse_spec(metadata: Mapping[str, str], name: str) -> Any:
    """Return the spec in a member's metadata, or None."""
    try:
        return json.loads(metadata[SPEC]) if SPEC in metadata else None
    except ValueError as error:
        raise ExportError(f"the file of '{name}' has a damaged {SPEC} (not JSON: {error}): export it again") from error


def _opsets(models: Sequence[onnx.ModelProto], names: Sequence[str]) -> dict[str, int]:
    """Return the opset version of each domain, for all members together."""
    opsets = {"": OPSET}
    for model, name in zip(models, names, strict=True):
        used = {node.domain for node in nodes_of(model.graph)}
        for entry in model.opset_import:
            if entry.domain not in used.union(STANDARD_DOMAINS):
                continue
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if opsets.setdefault(domain, entry.version) != entry.version:
                raise ExportError(
                    f"'{name}' cannot be fused: it uses version {entry.version} of the operators of '{domain or 'ai.onnx'}', "
                    f"expected {opsets[domain]}: export it again, or {FUSING_ALTERNATIVE}"
                )
    return opsets


def _merge(fused: onnx.ModelProto, models: Sequence[onnx.ModelProto]) -> None:
    """Put the nodes and constants of all models into one graph, without those that it already contains under another name.

    Quantisers and the constants that they read are not shared. ONNX Runtime (1.32), which merges equal nodes itself, computes a convolution
    in integers only if its quantised input has no other reader, so one of two members would be computed in float (measured difference:
    0.012 of a probability).
    """
    graph = fused.graph
    outputs = {tensor.name for tensor in graph.output}
    same: dict[str, str] = {}  # name of a duplicate to the name that is kept
    constants: dict[tuple[Any, ...], str] = {}
    results: dict[tuple[Any, ...], onnx.NodeProto] = {}
    for model in models:
        graph.sparse_initializer.extend(model.graph.sparse_initializer)
        scales = {name for node in nodes_of(model.graph) if node.op_type in QUANTISE_OPERATORS for name in node.input}
        for tensor in model.graph.initializer:
            # Masks distinguish the members: each is kept, under its own name.
            is_unshared = tensor.data_type == TensorProto.BOOL or tensor.name in scales
            kept = tensor.name if is_unshared else constants.setdefault(_value_key(tensor), tensor.name)
            if kept == tensor.name:
                graph.initializer.append(tensor)
            else:
                same[tensor.name] = kept
        for node in model.graph.node:
            redirect([node], same)
            is_unshared = node.op_type in QUANTISE_OPERATORS | RANDOM or bool(subgraphs(node))
            if not is_unshared and outputs.isdisjoint(node.output):
                earlier = results.setdefault(_computation_key(node), node)
                if earlier is not node:
                    same.update(zip(node.output, earlier.output, strict=True))
                    continue
            graph.node.append(node)


def _value_key(tensor: onnx.TensorProto) -> tuple[Any, ...]:
    """Return a key that is equal for constants of equal type, shape, values and storage."""
    if tensor.HasField("raw_data"):
        content = tensor.raw_data
    else:
        nameless = onnx.TensorProto()
        nameless.CopyFrom(tensor)
        nameless.ClearField("name")
        nameless.ClearField("doc_string")
        content = nameless.SerializeToString(deterministic=True)
    return tensor.data_type, tuple(tensor.dims), tensor.HasField("raw_data"), hashlib.sha256(content).digest()


def _computation_key(node: onnx.NodeProto) -> tuple[Any, ...]:
    """Return a key that is equal for nodes that compute the same: operator, attributes, inputs, and which outputs are used."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, node.domain, node.overload, tuple(node.input), tuple(bool(name) for name in node.output), tuple(attributes)


def _check(fused: onnx.ModelProto, members: Mapping[str, bytes | onnx.ModelProto]) -> None:
    size = fused.ByteSize()
    if size > MAX_FILE_BYTES:
        raise EnsembleError(
            f"{', '.join(members)} take {size / 1e9:.1f} GB together, and an ONNX file at most {MAX_FILE_BYTES / 1e9:.1f} GB: "
            "fuse fewer members, export them in fp16, or serve them as an ensemble"
        )
    reason = invalid_reason(fused)
    if reason is None:
        return
    for name, member in members.items():
        if member_reason := invalid_reason(_load_network(member, name)):
            raise ExportError(
                f"'{name}' cannot be fused: onnx's checker rejects its graph: {member_reason}; export it again, or {FUSING_ALTERNATIVE}"
            )
    raise ExportError(f"{', '.join(members)} cannot be fused, although onnx's checker accepts each of them: {reason}; {FUSING_ALTERNATIVE}")
