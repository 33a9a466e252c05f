"""Somebody else's ONNX file, read without trust: what it is, its weights outside of it, its operators and its opset."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from defensemble_repository.onnx_metadata import IR_VERSION, OPSET

from ..errors import ExportError
from ..graphs.loading import LARGEST_FILE, translated
from ..graphs.operators import STANDARD_DOMAINS, is_standard
from ..graphs.traversal import constants_of, graphs_of, graphs_of_model, nodes_of, producers_of, read_by, replace, subgraphs, tensors_of

# ONNX Runtime guarantees nothing older, and its kernels for what opset 7 changed are gone (tried on 1.32: BatchNormalization of opset 6).
OLDEST_OPSET = 7
# Of the body of a Loop, those of nested ones multiplied. What is unrolled for images has fewer: one a layer, head or recurrent step.
LARGEST_TRIPS = 10_000
# Element types of less than a byte.
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_FROM_TORCH = (
    "load the network in torch, write it as ONNX (torch.onnx.export, or defensemble_export.onnx_from_module, which verifies it), and "
    "import that file: `defensemble import-onnx FILE.onnx --name NAME`"
)
_FROM_KERAS = "convert it with tf2onnx, and import what that writes: `defensemble import-onnx FILE.onnx --name NAME`"
_OTHER_FORMATS = {
    b"PK\x03\x04": f"a zip archive, as torch.save and Keras write: {_FROM_TORCH} (or use tf2onnx)",
    b"\x1f\x8b": "compressed by gzip: unpack it (gunzip), and export what is in it",
    b"\x89HDF": f"an HDF5 file, as Keras writes: {_FROM_KERAS}",
    **{bytes([0x80, protocol]): f"a pickle, as torch.save used to write: {_FROM_TORCH}" for protocol in range(2, 6)},
}
_OTHER_SUFFIXES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pt2", ".pkl", ".pickle", ".bin"), f"a PyTorch file: {_FROM_TORCH}"),
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".tflite", ".pb"), f"a file of Keras or TensorFlow: {_FROM_KERAS}"),
}
# A suffix that ONNX files bear too.
_ALSO_ONNX = (".bin", ".pb")


def check_is_checkpoint(path: Path) -> None:
    """Refuse, by its name, a file that is ONNX or of another framework; the message has the command that exports it."""
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        raise ExportError(f"{path} is ONNX and no checkpoint: import it: `defensemble import-onnx {shlex.quote(str(path))} --name NAME`")
    if suffix in _OTHER_SUFFIXES:
        raise ExportError(f"{path} is no checkpoint of `defensemble train` (.safetensors) but, by its name, {_OTHER_SUFFIXES[suffix]}")


def read_foreign(path: str | os.PathLike[str], custom_domains: Collection[str] = ()) -> onnx.ModelProto:
    """Read an ONNX file: weights from its folder inside, local functions inlined, of the standard's operators and ``custom_domains``'."""
    file = Path(path)
    model = _parsed(file)
    _inline_external_data(model, file)
    opset_of(model, file)
    _forget_shapes(model)
    if any(not _has_shape(entry) for entry in model.graph.output):
        with translated("is not consistent in its shapes", file=file):
            model = onnx.shape_inference.infer_shapes(model)
        for entry in model.graph.output:
            if not _has_shape(entry):  # operators beyond the standard's: what they give is found out by a run
                entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, [None, None]))
        _forget_shapes(model)
    _sort_nodes(model.graph)
    with translated("is not valid ONNX", file=file):
        onnx.checker.check_model(model)
    if model.functions:
        with translated("has functions that cannot be inlined", file=file):
            model = onnx.inliner.inline_local_functions(model, convert_version=True)
        _forget_shapes(model)
    _check_loops(model.graph, file, {}, 1)
    _check_domains(model, file, custom_domains)
    return model


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort nodes behind those whose results they read, as onnx's checker asks; ONNX Runtime asks for it only in bodies."""
    made_by = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    reads = {number: {made_by[name] for name in read_by(node) & made_by.keys()} for number, node in enumerate(graph.node)}
    if all(number > max(earlier, default=-1) for number, earlier in reads.items()):
        return
    try:
        order = list(TopologicalSorter(reads).static_order())
    except CycleError:  # the checker names the place
        return
    replace(graph, "node", [graph.node[number] for number in order])


def opset_of(model: onnx.ModelProto, file: os.PathLike[str] | str) -> int:
    """The opset of the standard's operators; ExportError where there is none, or it is out of the range that is taken."""
    newest = onnx.defs.onnx_opset_version()
    found = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if len(found) != 1:
        raise ExportError(f"{file} must name one opset of the standard's operators, got {found or 'none'}: export it again")
    if not OLDEST_OPSET <= found[0] <= newest:
        raise ExportError(
            f"{file} has opset {found[0]}; {OLDEST_OPSET} to {newest} are taken (the newest that the installed onnx {onnx.__version__} "
            f"knows) and become {OPSET}: export it again with opset_version={OPSET}"
        )
    return int(found[0])


def _parsed(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
        raise ExportError(f"{file} {what}: name an .onnx file")
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise ExportError(f"{file} has {size} bytes, and an ONNX file at most {LARGEST_FILE}: this is something else")
    content = file.read_bytes()
    if file.suffix.lower() in _OTHER_SUFFIXES and file.suffix.lower() not in _ALSO_ONNX:
        raise ExportError(f"{file} is not ONNX but, by its name, {_OTHER_SUFFIXES[file.suffix.lower()]}")
    if file.suffix.lower() == ".safetensors" or _is_safetensors(content):
        raise ExportError(
            f"{file} is not ONNX but a safetensors file, which holds weights and no graph: if `defensemble train` wrote it, run "
            f"`defensemble export {shlex.quote(str(file))}`; else {_FROM_TORCH}"
        )
    if not content:
        raise ExportError(f"{file} is empty: export or download it again")
    for start, what in _OTHER_FORMATS.items():
        if content.startswith(start):
            raise ExportError(f"{file} is not ONNX but {what}")
    if content[4:8] == b"ORTM":
        raise ExportError(f"{file} is not ONNX but in ONNX Runtime's own format (.ort): export the ONNX file that it was made from")
    if content.startswith(b"version https://git-lfs"):
        raise ExportError(f"{file} is a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`")
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in content[:1024]):
        beginning = content[:40].decode(errors="replace")
        raise ExportError(
            f"{file} is a text file, expected ONNX, which is binary; it begins with {beginning!r}. What onnx wrote as text becomes binary "
            "by onnx.save(onnx.load(FILE, FORMAT), 'new.onnx') with its FORMAT: 'textproto', 'json' or 'onnxtxt'"
        )
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ExportError(f"{file} is not ONNX, or is truncated or corrupt ({error}): export or download it again") from error
    if not model.ir_version or not model.graph.node:
        raise ExportError(f"{file} is not an ONNX model: it has {'no nodes' if model.ir_version else 'no IR version'}; export it again")
    if model.ir_version > onnx.IR_VERSION:
        raise ExportError(
            f"{file} has IR version {model.ir_version}, the installed onnx {onnx.__version__} reads up to {onnx.IR_VERSION}: "
            f"update onnx, or export it again with opset_version={OPSET} (its IR version is {IR_VERSION})"
        )
    if any(graph.sparse_initializer for graph in graphs_of(model.graph)):
        raise ExportError(f"{file} has sparse initialisers, which are not taken: export it with dense weights")
    names = [name for node in nodes_of(model.graph) for name in (node.op_type, *node.input, *node.output)]
    if any(isinstance(name, bytes) for name in (*names, *(tensor.name for tensor in tensors_of(model)))):
        raise ExportError(f"{file} is corrupt: a name in it is not UTF-8; export or download it again")
    return model


def _is_safetensors(content: bytes) -> bool:
    """Whether it begins as safetensors do: with the length of a header, which is JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _has_shape(entry: onnx.ValueInfoProto) -> bool:
    kind = entry.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or entry.type.tensor_type.HasField("shape"))


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Drop notes about the shapes of inner values, and make free every extent that is written as a negative number.

    ONNX Runtime takes such a number as free; ONNX's shape inference takes it as it is, and contradicts itself. An input without a shape
    gets four free extents.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    for entry in model.graph.input:
        if entry.name not in known and entry.type.HasField("tensor_type") and not _has_shape(entry):
            for _ in range(4):
                entry.type.tensor_type.shape.dim.add()
    for function in model.functions:
        if "value_info" in function.DESCRIPTOR.fields_by_name:  # since IR 10
            function.ClearField("value_info")
    for graph in graphs_of_model(model):
        graph.ClearField("value_info")
        for entry in (*graph.input, *graph.output):
            for extent in entry.type.tensor_type.shape.dim if _has_shape(entry) else ():
                if extent.dim_value < 0:
                    extent.Clear()


def _inline_external_data(model: onnx.ModelProto, file: Path) -> None:
    """Read what tensors keep outside of the file, from its own folder alone: a file of a stranger must not read others."""
    outside = [tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
    total = model.ByteSize()
    plans = []
    for tensor in outside:
        place, offset, length = _place(tensor, file)
        total += length
        plans.append((tensor, place, offset, length))
    if total > LARGEST_FILE:
        raise ExportError(
            f"{file} and its external data have {total} bytes; a member is one protobuf file of at most {LARGEST_FILE}: "
            "export a smaller network, or one of float16 weights"
        )
    for tensor, place, offset, length in plans:
        with place.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _place(tensor: TensorProto, file: Path) -> tuple[Path, int, int]:
    """Where a tensor's bytes are: file, offset and length. What ONNX Runtime reads is taken, and no more of other folders than it takes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"{file} keeps the tensor '{tensor.name}' in {location!r}"
    mend = "put all its files into one folder (links replaced by copies: cp -L), or save it as one file: onnx.save(onnx.load(FILE), NEW)"
    if not location or Path(location).is_absolute() or "\0" in location:
        raise ExportError(f"{what}: external data are read from the file's own folder alone; {mend}")
    place = file.parent / location
    # Where the file is a link, as in the Hugging Face cache, also the folder of the file itself.
    if not any(place.resolve().is_relative_to(folder) for folder in (file.parent.resolve(), file.resolve().parent)):
        raise ExportError(f"{what}, which leads to {place.resolve()}: external data are read from the file's own folder alone; {mend}")
    if not place.is_file():
        raise ExportError(f"{what}, which is {'not a file' if place.exists() else 'missing'} in {file.parent.resolve()}; {mend}")
    try:
        kind = TensorProto.DataType.Name(tensor.data_type)
        bits = _PACKED_BITS.get(kind) or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except (KeyError, ValueError) as error:
        raise ExportError(f"{what} with an offset, length or type that is none ({error}); export it again") from error
    expected = (math.prod(tensor.dims) * bits + 7) // 8
    size = place.stat().st_size
    if length not in (0, expected):  # 0: as if it were absent
        raise ExportError(f"{what} with {length} bytes, but {list(tensor.dims)} of its type take {expected}: export it again")
    if offset < 0 or any(side < 0 for side in tensor.dims) or offset + expected > size:
        raise ExportError(
            f"{what}, bytes {offset} to {offset + expected}, but that file has {size}: it is truncated, or not the one that belongs to it; "
            "copy or export both again"
        )
    return place, offset, expected


def _check_loops(graph: onnx.GraphProto, file: Path, outer: Mapping[str, TensorProto], times: int) -> None:
    """Refuse loops without a constant number of trips, or with so many that a request would occupy a server for good.

    ``outer`` are the constants that the graph sees around it, ``times`` is how often the loops around it run it.
    """
    # What a body takes and makes hides constants of the same name outside of it.
    hidden = {entry.name for entry in graph.input} | producers_of(graph).keys()
    constants = {name: tensor for name, tensor in outer.items() if name not in hidden} | constants_of(graph)
    for node in graph.node:
        trips = 1
        if node.op_type == "Loop" and is_standard(node):
            loop = f"{file}: the Loop that makes '{node.output[0]}'"
            expected = f"expected a constant of at most {LARGEST_TRIPS} (nested loops multiplied): export the network without that loop"
            known = constants.get(node.input[0])
            if known is None:
                raise ExportError(f"{loop} takes a number of trips that is computed or missing, {expected}")
            trips = int(numpy_helper.to_array(known).max(initial=1))
            if times * trips > LARGEST_TRIPS:
                raise ExportError(f"{loop} runs its body {times * trips} times, {expected}")
        for body in subgraphs(node):
            _check_loops(body, file, constants, times * trips)


def _check_domains(model: onnx.ModelProto, file: Path, custom_domains: Collection[str]) -> None:
    used: dict[str, set[str]] = {}
    for node in nodes_of(model.graph):
        if node.domain not in (*STANDARD_DOMAINS, *custom_domains):
            used.setdefault(node.domain, set()).add(node.op_type)
    if used:
        listed = "; ".join(f"{domain}: {', '.join(sorted(operators))}" for domain, operators in sorted(used.items()))
        raise ExportError(
            f"{file} uses operators that are not of the ONNX standard ({listed}): export it without them or, if every server that is to "
            f"run it has them, allow their domains ({' '.join(f'--custom-operators {domain}' for domain in sorted(used))})"
        )
