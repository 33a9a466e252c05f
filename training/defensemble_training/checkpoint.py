"""How a trained network is kept: one safetensors file with weights, masks and what is known of them.

The file's metadata has one key, `defensemble`, whose text is a JSON object with the keys

- `format`: 3 (2, which has no `content_digest`, is read too, with a warning)
- `spec`: the `ModelSpec`, one key a field
- `mask_digest`: `mask_digest` of the masks, full buffer names
- `record`: the `TrainingRecord`, one key a field; class names are in it
- `content_digest`: `content_digest` of all tensors and of the other keys

(one key, because safetensors writes several in random order, and the same network must give the same bytes). Tensors bear the names of
torch's `state_dict`. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from defensemble_images.regular_files import irregular_file_kind

from .atomic_write import temporary_path, with_filename, write_atomic
from .content_digest import DIGEST_KEY, content_digest, digest_mismatch
from .errors import CheckpointError, SpecError, UncheckedContentWarning
from .models.build import build
from .models.defect import defect_masks
from .models.masks import mask_digest
from .models.spec import ModelSpec
from .record import TrainingRecord

FORMAT = 3
_FORMAT_WITHOUT_DIGEST = 2
METADATA_KEY = "defensemble"


@dataclass(frozen=True)
class CheckpointMetadata:
    """The metadata of a checkpoint, without its tensors."""

    spec: ModelSpec
    mask_digest: str  # SHA-256 of the masks, 64 hexadecimal digits
    record: TrainingRecord  # how it was trained; the class names are in it


def save_checkpoint(
    path: str | os.PathLike[str], module: nn.Module, spec: ModelSpec, record: TrainingRecord, *, half: bool = False
) -> None:
    """Write a network to one safetensors file, durably: at every moment the old file is there, or the whole new one.

    With `half`, floating-point tensors are rounded to float16; they are read back as float32.

    Raises:
        CheckpointError: the module is not the spec's network, the record's classes are not the spec's, or the folder does not exist.
        OSError: the file cannot be written (names the file); nothing is left of it.
    """
    target = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    what = f"cannot save {target}: the module is not the network of the spec"
    untrained = _untrained(spec, what)
    _check_tensors(what, tensors, untrained.state_dict())
    digest, drawn = mask_digest(defect_masks(module)), mask_digest(defect_masks(untrained))
    if digest != drawn:
        raise CheckpointError(f"{what}: its masks have the digest {digest}, those that the spec draws {drawn}")
    _check_classes(f"cannot save {target}", spec, record)
    described = {
        "format": FORMAT,
        "spec": json.loads(spec.to_json()),
        "mask_digest": digest,
        "record": record.to_values(),
    }
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    described[DIGEST_KEY] = content_digest(described, tensors)
    _check_place(target)
    write_atomic(target, save(tensors, {METADATA_KEY: json.dumps(described)}))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelSpec, TrainingRecord]:
    """Read a network: a float32 module in eval mode, whatever the file's precision, its spec and its training record.

    A file of an older version, which carries no digest of its content, loads with an `UncheckedContentWarning`.

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors file, one of another kind, lacks a tensor or has one too many,
            or its content is not that of its digests and its spec.
        OSError: the file cannot be read.
    """
    metadata, tensors = _read(Path(path), with_tensors=True)
    spec = metadata.spec
    what = f"{path} does not hold the network of its spec"
    with torch.device("meta"):  # shapes first: a spec can claim a network that no memory holds
        _check_tensors(what, tensors, _untrained(spec, what).state_dict())
    module = _untrained(spec, what)
    drawn = mask_digest(defect_masks(module))
    module.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
    digest = mask_digest(defect_masks(module))
    if digest != metadata.mask_digest:
        raise CheckpointError(
            f"the masks in {path} have the digest {digest}, but its metadata says {metadata.mask_digest}: "
            "the file was changed or mixed from two; take an unchanged copy, or train the network again"
        )
    if digest != drawn:
        raise CheckpointError(
            f"the masks in {path} have the digest {digest}, but its spec draws masks with {drawn}: "
            "the spec was changed; take an unchanged copy, or train the network again"
        )
    return module.eval(), spec, metadata.record


def read_metadata(path: str | os.PathLike[str]) -> CheckpointMetadata:
    """Read the metadata of a checkpoint; its tensors are neither read nor checked.

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors file, or one of another kind.
        OSError: the file cannot be read.
    """
    return _read(Path(path), with_tensors=False)[0]


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise unless a checkpoint can be written at a path, by creating a file next to it and removing it.

    Raises:
        CheckpointError: the folder does not exist, or the path is one.
        OSError: the folder takes no file (names the file).
    """
    target = Path(path)
    _check_place(target)
    temporary = temporary_path(target)
    try:
        temporary.open("xb").close()
        temporary.unlink()
    except OSError as error:
        raise with_filename(error, target) from error


def _check_place(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(
            f"cannot write the checkpoint {target}: it is a folder; name a file, such as {target / 'network.safetensors'}"
        )
    if not target.parent.is_dir():
        raise CheckpointError(
            f"cannot write the checkpoint {target}: the folder {target.parent} does not exist; make it with: mkdir -p {target.parent}"
        )


def _read(path: Path, *, with_tensors: bool) -> tuple[CheckpointMetadata, dict[str, torch.Tensor]]:
    try:
        kind = irregular_file_kind(path.stat().st_mode)
        if kind is not None:
            raise CheckpointError(f"{path} is {kind}, expected a checkpoint (a .safetensors file)")
        # Opened here, as safetensors' own errors do not tell a file without permission from a damaged one, and read by its descriptor:
        # safetensors opens a file twice, between which another may be renamed to this path.
        with path.open("rb") as opened, safe_open(f"/proc/self/fd/{opened.fileno()}", framework="pt") as file:
            values = _values(path, file.metadata())
            metadata = _parsed(path, values)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; train one with: defensemble train {path}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}): it is truncated, damaged or of another format; "
            "take an unchanged copy, or train the network again"
        ) from error
    if with_tensors and values["format"] == _FORMAT_WITHOUT_DIGEST:
        warnings.warn(
            f"{path} is of an older version and carries no digest of its content, so damage cannot be noticed; this adds one: "
            "save_checkpoint(path, *load_checkpoint(path))",
            UncheckedContentWarning,
            stacklevel=3,  # of who calls load_checkpoint
        )
    elif with_tensors:
        mismatch = digest_mismatch(values, tensors)
        if mismatch is not None:
            raise CheckpointError(f"{path} is damaged or was changed: {mismatch}; take an unchanged copy, or train the network again")
    return metadata, tensors


def _values(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of defensemble: its metadata lack the key {METADATA_KEY!r} "
            f"(keys: {', '.join(sorted(metadata or {})) or 'none'}); expected a file that `defensemble train` wrote"
        )
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    got = values.get("format") if isinstance(values, dict) else values
    if got not in (FORMAT, _FORMAT_WITHOUT_DIGEST):
        newer = isinstance(got, int) and got > FORMAT
        mend = "install a newer defensemble" if newer else "train the network again, or take the version that wrote it"
        raise CheckpointError(
            f"{path} has the checkpoint format {got!r}, and this version of defensemble reads {_FORMAT_WITHOUT_DIGEST} and {FORMAT}; {mend}"
        )
    keys = {"format", "spec", "mask_digest", "record", *([DIGEST_KEY] if got == FORMAT else [])}
    if set(values) != keys:
        raise CheckpointError(f"the metadata of {path} must have the keys {', '.join(sorted(keys))}; got {', '.join(sorted(values))}")
    return dict(values)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the metadata of {path} cannot be read: {error}; take an unchanged copy, or train the network again")


def _parsed(path: Path, values: dict[str, Any]) -> CheckpointMetadata:
    digest = values["mask_digest"]
    if not isinstance(digest, str):
        raise CheckpointError(f"the mask digest in the metadata of {path} must be a text, got {digest!r}")
    try:
        described = CheckpointMetadata(
            ModelSpec.from_json(json.dumps(values["spec"])), digest, TrainingRecord.from_values(values["record"])
        )
    except (ValueError, RecursionError) as error:  # SpecError is a ValueError
        raise _unreadable(path, error) from error
    _check_classes(f"{path} contradicts itself", described.spec, described.record)
    return described


def _check_classes(what: str, spec: ModelSpec, record: TrainingRecord) -> None:
    if len(record.class_names) != spec.num_classes:
        raise CheckpointError(f"{what}: the record names {len(record.class_names)} classes, the spec has {spec.num_classes}")


def _untrained(spec: ModelSpec, what: str) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):  # these weights are never used: the caller's random stream is not to feel them
            return build(spec)
    except SpecError as error:
        raise CheckpointError(f"{what}: {error}") from error


def _check_tensors(what: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise unless names, shapes and kinds (bool, integer, floating) are the expected ones."""
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise CheckpointError(f"{what}: missing tensors: {_some(missing)}; unexpected tensors: {_some(unexpected)}")
    for name, wanted in expected.items():
        got = tensors[name]
        if got.shape != wanted.shape or _kind(got) != _kind(wanted):
            raise CheckpointError(f"{what}: {name} is {_kind(got)} {tuple(got.shape)}, expected {_kind(wanted)} {tuple(wanted.shape)}")


def _kind(tensor: torch.Tensor) -> str:
    return "floating" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})" if names else "none"
