"""Read an untrusted ONNX file: check its format, external data, operators, loops and opset."""

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
from ..graphs.copying import free_extents
from ..graphs.loading import MAX_FILE_BYTES, translate_errors
from ..graphs.operators import STANDARD_DOMAINS, is_standard
from ..graphs.traversal import constants_of, graphs_of, graphs_of_model, nodes_of, producers_of, read_by, replace, subgraphs, tensors_of

# ONNX Runtime supports nothing older; its kernels of what opset 7 changed are gone (tried in 1.32: BatchNormalization of opset 6).
OLDEST_OPSET = 7
# Trips of a Loop, multiplied over nested loops. Loops over layers, heads or recurrent steps of image networks have fewer.
MAX_TRIPS = 10_000
# Bits of the element types smaller than a byte.
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_FROM_TORCH = (
    "load the network in torch, write it as ONNX (torch.onnx.export, or defensemble_export.onnx_from_module, which verifies it), and "
    "import that file: defensemble import-onnx FILE.onnx --name NAME"
)
_FROM_KERAS = "convert it with tf2onnx, and import the result: defensemble import-onnx FILE.onnx --name NAME"
_OTHER_FORMATS = {
    b"PK\x03\x04": f"a zip archive, as torch.save and Keras write: {_FROM_TORCH} (or use tf2onnx)",
    b"\x1f\x8b": "compressed by gzip: unpack it (gunzip), and import its content",
    b"\x89HDF": f"an HDF5 file, as Keras writes: {_FROM_KERAS}",
    **{bytes([0x80, protocol]): f"a pickle, as torch.save used to write: {_FROM_TORCH}" for protocol in range(2, 6)},
}
_OTHER_SUFFIXES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pt2", ".pkl", ".pickle", ".bin"), f"a PyTorch file: {_FROM_TORCH}"),
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".tflite", ".pb"), f"a file of Keras or TensorFlow: {_FROM_KERAS}"),
}
# Suffixes that ONNX files can have, too.
_ALSO_ONNX = (".bin", ".pb")


def check_is_checkpoint(path: Path) -> None:
    """Reject a file whose name shows that it is ONNX or belongs to another framework; the message contains the command that imports it."""
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        raise ExportError(
            f"{path} is an ONNX file and not a checkpoint: import it with `defensemble import-onnx {shlex.quote(str(path))} --name NAME`"
        )
    if suffix in _OTHER_SUFFIXES:
        raise ExportError(f"{path} is not a checkpoint of `defensemble train` (.safetensors) but, by its name, {_OTHER_SUFFIXES[suffix]}")


def read_foreign(path: str | os.PathLike[str], custom_domains: Collection[str] = ()) -> onnx.ModelProto:
    """Read and check an ONNX file, include its external data and inline its local functions.

    Args:
        path: The ONNX file. External data are read only from its folder.
        custom_domains: Domains of operators outside the ONNX standard to accept.

    Raises:
        ExportError: The file is missing, is not valid ONNX, or contains something that is not supported.
    """
    file = Path(path)
    model = _parse(file)
    _inline_external_data(model, file)
    opset_of(model, file)
    _clear_shapes(model)
    if any(not _has_shape(entry) for entry in model.graph.output):
        with translate_errors("is not consistent in its shapes", file=file):
            model = onnx.shape_inference.infer_shapes(model)
        for entry in model.graph.output:
            if not _has_shape(entry):  # computed by custom operators: a run shows the shape
                entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, [None, None]))
        _clear_shapes(model)
    _sort_nodes(model.graph)
    with translate_errors("is not valid ONNX; export it again and check it with onnx.checker.check_model", file=file):
        onnx.checker.check_model(model)
    if model.functions:
        with translate_errors("has functions that cannot be inlined", file=file):
            model = onnx.inliner.inline_local_functions(model, convert_version=True)
        _clear_shapes(model)
    _check_loops(model.graph, file, {}, 1)
    _check_domains(model, file, custom_domains)
    return model


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort nodes topologically, as onnx's checker requires; ONNX Runtime requires it only in bodies."""
    producers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    reads = {number: {producers[name] for name in read_by(node) & producers.keys()} for number, node in enumerate(graph.node)}
    if all(number > max(earlier, default=-1) for number, earlier in reads.items()):
        return
    try:
        order = list(TopologicalSorter(reads).static_order())
    except CycleError:  # the checker reports it with its place
        return
    replace(graph, "node", [graph.node[number] for number in order])


def opset_of(model: onnx.ModelProto, file: os.PathLike[str] | str) -> int:
    """Return the opset of the ONNX standard's operators in a model, or raise an ExportError if it is missing or not supported."""
    newest = onnx.defs.onnx_opset_version()
    opsets = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if len(opsets) != 1:
        raise ExportError(f"{file} must have one opset of the standard operators, got {opsets or 'none'}: export it again")
    if not OLDEST_OPSET <= opsets[0] <= newest:
        raise ExportError(
            f"{file} has opset {opsets[0]}, expected {OLDEST_OPSET} to {newest} (the newest in the installed onnx {onnx.__version__}), "
            f"which is converted to {OPSET}: export it again with opset_version={OPSET}"
        )
    return int(opsets[0])


def _parse(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        description = "is a folder" if file.is_dir() else "is not a file" if file.exists() else "does not exist"
        raise ExportError(f"{file} {description}: name an .onnx file")
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ExportError(f"{file} has {size} bytes, and an ONNX file has at most {MAX_FILE_BYTES}: name an ONNX file")
    content = file.read_bytes()
    if file.suffix.lower() in _OTHER_SUFFIXES and file.suffix.lower() not in _ALSO_ONNX:
        raise ExportError(f"{file} is not ONNX but, by its name, {_OTHER_SUFFIXES[file.suffix.lower()]}")
    if file.suffix.lower() == ".safetensors" or _is_safetensors(content):
        raise ExportError(
            f"{file} is not ONNX but a safetensors file, which contains weights and no graph: if `defensemble train` wrote it, export it "
            f"with `defensemble export {shlex.quote(str(file))}`; otherwise {_FROM_TORCH}"
        )
    if not content:
        raise ExportError(f"{file} is empty: export or download it again")
    for start, description in _OTHER_FORMATS.items():
        if content.startswith(start):
            raise ExportError(f"{file} is not ONNX but {description}")
    if content[4:8] == b"ORTM":
        raise ExportError(f"{file} is not ONNX but in ONNX Runtime's own format (.ort): import the original ONNX file")
    if content.startswith(b"version https://git-lfs"):
        raise ExportError(f"{file} is a Git LFS pointer and not the file itself: fetch it with `git lfs pull`")
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in content[:1024]):
        beginning = content[:40].decode(errors="replace")
        raise ExportError(
            f"{file} is a text file, expected ONNX, which is binary; it begins with {beginning!r}. Convert ONNX in a text format with "
            "onnx.save(onnx.load(FILE, FORMAT), 'new.onnx'), where FORMAT is 'textproto', 'json' or 'onnxtxt'"
        )
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ExportError(f"{file} is not ONNX, or is truncated or corrupt ({error}): export or download it again") from error
    if not model.ir_version or not model.graph.node:
        raise ExportError(f"{file} is not an ONNX model: it has {'no nodes' if model.ir_version else 'no IR version'}; export it again")
    if model.ir_version > onnx.IR_VERSION:
        raise ExportError(
            f"{file} has IR version {model.ir_version}; the installed onnx {onnx.__version__} reads up to {onnx.IR_VERSION}: "
            f"update onnx, or export it again with opset_version={OPSET} (its IR version is {IR_VERSION})"
        )
    if any(graph.sparse_initializer for graph in graphs_of(model.graph)):
        raise ExportError(f"{file} has sparse initialisers, which are not supported: export it with dense weights")
    names = [name for node in nodes_of(model.graph) for name in (node.op_type, *node.input, *node.output)]
    if any(isinstance(name, bytes) for name in (*names, *(tensor.name for tensor in tensors_of(model)))):
        raise ExportError(f"{file} is corrupt: it contains a name that is not UTF-8; export or download it again")
    return model


def _is_safetensors(content: bytes) -> bool:
    """Return whether a file begins like safetensors: with the length of a JSON header."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _has_shape(entry: onnx.ValueInfoProto) -> bool:
    kind = entry.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or entry.type.tensor_type.HasField("shape"))


def _clear_shapes(model: onnx.ModelProto) -> None:
    """Remove the shapes of inner values, and make negative and, except in the input, zero extents free.

    ONNX Runtime reads them so; ONNX's shape inference reads them literally and contradicts itself. An input without a shape gets four
    free extents.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for entry in model.graph.input:
        if entry.name not in constants and entry.type.HasField("tensor_type") and not _has_shape(entry):
            for _ in range(4):
                entry.type.tensor_type.shape.dim.add()
    for function in model.functions:
        if "value_info" in function.DESCRIPTOR.fields_by_name:  # since IR 10
            function.ClearField("value_info")
    for number, graph in enumerate(graphs_of_model(model)):
        graph.ClearField("value_info")
        free_extents(graph.input, 1 if number else 0)
        free_extents(graph.output, 1)


def _inline_external_data(model: onnx.ModelProto, file: Path) -> None:
    """Read external data, only from the folder of the file: an untrusted file must not read others."""
    external = [tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
    total = model.ByteSize()
    reads = []
    for tensor in external:
        source, offset, length = _locate_tensor(tensor, file)
        total += length
        reads.append((tensor, source, offset, length))
    if total > MAX_FILE_BYTES:
        raise ExportError(
            f"{file} and its external data have {total} bytes; a member is one protobuf file of at most {MAX_FILE_BYTES}: "
            "export a smaller network, or one with float16 weights"
        )
    for tensor, source, offset, length in reads:
        with source.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _locate_tensor(tensor: TensorProto, file: Path) -> tuple[Path, int, int]:
    """Return the file, offset and length of a tensor's bytes. Accept what ONNX Runtime reads, and no other folders."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    subject = f"{file} stores the tensor '{tensor.name}' in {location!r}"
    fix = "put all its files into one folder (replace links by copies: cp -L), or save it as one file: onnx.save(onnx.load(FILE), NEW)"
    if not location or Path(location).is_absolute() or "\0" in location:
        raise ExportError(f"{subject}: external data are read only from the file's own folder; {fix}")
    source = file.parent / location
    # If the file is a link, as in the Hugging Face cache, its target's folder is allowed, too.
    if not any(source.resolve().is_relative_to(folder) for folder in (file.parent.resolve(), file.resolve().parent)):
        raise ExportError(f"{subject}, which resolves to {source.resolve()}: external data are read only from the file's own folder; {fix}")
    if not source.is_file():
        raise ExportError(f"{subject}, which is {'not a file' if source.exists() else 'missing'} in {file.parent.resolve()}; {fix}")
    try:
        kind = TensorProto.DataType.Name(tensor.data_type)
        bits = _PACKED_BITS.get(kind) or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except (KeyError, ValueError) as error:
        raise ExportError(f"{subject} with an invalid offset, length or type ({error}); export it again") from error
    expected = (math.prod(tensor.dims) * bits + 7) // 8
    size = source.stat().st_size
    if length not in (0, expected):  # 0 means absent
        raise ExportError(f"{subject} with {length} bytes, but {list(tensor.dims)} of its type need {expected}: export it again")
    if offset < 0 or any(side < 0 for side in tensor.dims) or offset + expected > size:
        raise ExportError(
            f"{subject}, bytes {offset} to {offset + expected}, but that file has {size} bytes: it is truncated or of another model; "
            "copy or export both again"
        )
    return source, offset, expected


def _check_loops(graph: onnx.GraphProto, file: Path, outer: Mapping[str, TensorProto], times: int) -> None:
    """Reject loops without a constant number of trips, or with so many that one request would block a server.

    `outer` contains the constants of the surrounding graphs, and `times` is how often the surrounding loops run this graph.
    """
    # Inputs and tensors of a body hide constants of the same name around it.
    hidden = {entry.name for entry in graph.input} | producers_of(graph).keys()
    constants = {name: tensor for name, tensor in outer.items() if name not in hidden} | constants_of(graph)
    for node in graph.node:
        trips = 1
        if node.op_type == "Loop" and is_standard(node):
            loop = f"{file}: the Loop that computes '{node.output[0]}'"
            expected = f"expected a constant of at most {MAX_TRIPS} (nested loops multiplied): export the network without that loop"
            constant = constants.get(node.input[0])
            if constant is None:
                raise ExportError(f"{loop} has a computed or missing number of trips, {expected}")
            trips = int(numpy_helper.to_array(constant).max(initial=1))
            if times * trips > MAX_TRIPS:
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
            f"{file} uses operators outside the ONNX standard ({listed}): export it without them or, if every server that runs it has "
            f"them, allow their domains ({' '.join(f'--custom-operators {domain}' for domain in sorted(used))})"
        )
