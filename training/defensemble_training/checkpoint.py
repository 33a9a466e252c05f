"""Save and load trained networks: one safetensors file with weights, masks, spec and training record.

The file's metadata has one key, `defensemble`, whose value is a JSON object with the keys

- `format`: 3 (format 2, which has no `content_digest`, can be read too, with a warning)
- `spec`: the `ModelSpec`, one key per field
- `mask_digest`: `mask_digest` of the masks, with full buffer names
- `record`: the `TrainingRecord`, one key per field, class names included
- `content_digest`: `content_digest` of all tensors and of the other keys

There is one metadata key because safetensors writes several in random order, and the same network must give the same bytes. Tensors have
the names of torch's `state_dict`. Nothing is pickled.
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
_RESTORE = "Use an unchanged copy, or train the network again."


@dataclass(frozen=True)
class CheckpointMetadata:
    """The metadata of a checkpoint, without its tensors."""

    spec: ModelSpec
    mask_digest: str  # SHA-256 of the masks, 64 hexadecimal digits
    record: TrainingRecord  # how the network was trained, class names included


def save_checkpoint(
    path: str | os.PathLike[str], module: nn.Module, spec: ModelSpec, record: TrainingRecord, *, half: bool = False
) -> None:
    """Save a network to one safetensors file, atomically and durably.

    Args:
        path: The file, which is replaced if it exists.
        module: The network that `build(spec)` or `train` returned.
        spec: The network's spec.
        record: The network's training record.
        half: Whether to round floating-point tensors to float16. `load_checkpoint` converts them to float32.

    Raises:
        CheckpointError: The module is not the spec's network, the record has another number of classes than the spec, or the folder does
            not exist.
        OSError: The file cannot be written. The error names the file, and no partial file remains.

    Example:
        >>> module, record = train(spec, dataset)
        >>> save_checkpoint("digits.safetensors", module, spec, record)
    """
    target = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    problem = f"cannot save {target}: the module is not the network of the spec"
    untrained = _build_untrained(spec, problem)
    _check_tensors(problem, tensors, untrained.state_dict())
    digest, expected_digest = mask_digest(defect_masks(module)), mask_digest(defect_masks(untrained))
    if digest != expected_digest:
        raise CheckpointError(f"{problem}: its masks have the digest {digest}, the masks of the spec have {expected_digest}")
    _check_classes(f"cannot save {target}", spec, record)
    metadata = {
        "format": FORMAT,
        "spec": json.loads(spec.to_json()),
        "mask_digest": digest,
        "record": record.to_values(),
    }
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    metadata[DIGEST_KEY] = content_digest(metadata, tensors)
    _check_target(target)
    write_atomic(target, save(tensors, {METADATA_KEY: json.dumps(metadata)}))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelSpec, TrainingRecord]:
    """Load a network.

    A file of an older version, which has no content digest, loads with an `UncheckedContentWarning`.

    Returns:
        The network in float32 and eval mode (whatever the file's precision), its spec and its training record.

    Raises:
        CheckpointError: The file is missing, truncated or not a checkpoint, has missing or unexpected tensors, or its content does not
            match its digests and its spec.
        OSError: The file cannot be read.

    Example:
        >>> module, spec, record = load_checkpoint("digits.safetensors")
        >>> record.class_names, record.accuracy
    """
    metadata, tensors = _read(Path(path), with_tensors=True)
    spec = metadata.spec
    problem = f"{path} does not hold the network of its spec"
    with torch.device("meta"):  # check shapes first: a damaged spec can describe a network larger than memory
        _check_tensors(problem, tensors, _build_untrained(spec, problem).state_dict())
    module = _build_untrained(spec, problem)
    expected_digest = mask_digest(defect_masks(module))
    module.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
    digest = mask_digest(defect_masks(module))
    if digest != metadata.mask_digest:
        raise CheckpointError(
            f"the masks in {path} have the digest {digest}, but its metadata states {metadata.mask_digest}: "
            "the file was changed or mixes two networks. Use an unchanged copy, or train the network again."
        )
    if digest != expected_digest:
        raise CheckpointError(
            f"the masks in {path} have the digest {digest}, but the masks of its spec have {expected_digest}: "
            "the spec was changed. Use an unchanged copy, or train the network again."
        )
    return module.eval(), spec, metadata.record


def read_metadata(path: str | os.PathLike[str]) -> CheckpointMetadata:
    """Read the metadata of a checkpoint, without reading or checking its tensors.

    Raises:
        CheckpointError: The file is missing, truncated or not a checkpoint.
        OSError: The file cannot be read.
    """
    return _read(Path(path), with_tensors=False)[0]


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint can be written to a path, by creating and removing a temporary file next to it.

    Raises:
        CheckpointError: The folder does not exist, or the path is a folder.
        OSError: The folder is not writable. The error names the file.
    """
    target = Path(path)
    _check_target(target)
    temporary = temporary_path(target)
    try:
        temporary.open("xb").close()
        temporary.unlink()
    except OSError as error:
        raise with_filename(error, target) from error


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(
            f"cannot write the checkpoint {target}: it is a folder; expected a file, such as {target / 'network.safetensors'}"
        )
    if target.exists() and not target.is_file():
        raise CheckpointError(f"cannot write the checkpoint {target}: it is a device, a FIFO or a socket; expected a file")
    if target.parent.exists() and not target.parent.is_dir():
        raise CheckpointError(f"cannot write the checkpoint {target}: {target.parent} is a file; expected a folder. Choose another path")
    if not target.parent.is_dir():
        raise CheckpointError(
            f"cannot write the checkpoint {target}: the folder {target.parent} does not exist. Create it with: mkdir -p {target.parent}"
        )


def _read(path: Path, *, with_tensors: bool) -> tuple[CheckpointMetadata, dict[str, torch.Tensor]]:
    try:
        kind = irregular_file_kind(path.stat().st_mode)
        if kind is not None:
            raise CheckpointError(f"{path} is {kind}; expected a checkpoint (a .safetensors file)")
        # The file is opened here because safetensors' errors do not distinguish a missing permission from damage. It is read through its
        # descriptor because safetensors opens a path twice, and another file may be renamed to this path in between.
        with path.open("rb") as opened, safe_open(f"/proc/self/fd/{opened.fileno()}", framework="pt") as file:
            values = _parse_values(path, file.metadata())
            metadata = _parse_metadata(path, values)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except FileNotFoundError as error:
        raise CheckpointError(f"the checkpoint {path} does not exist. Train one with: defensemble train {path}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}): it is truncated, damaged or of another format. {_RESTORE}"
        ) from error
    if with_tensors and values["format"] == _FORMAT_WITHOUT_DIGEST:
        warnings.warn(
            f"{path} was written by an older version without a content digest, so damage cannot be detected. Add a digest with: "
            "save_checkpoint(path, *load_checkpoint(path))",
            UncheckedContentWarning,
            stacklevel=3,  # the caller of load_checkpoint
        )
    elif with_tensors:
        mismatch = digest_mismatch(values, tensors)
        if mismatch is not None:
            raise CheckpointError(f"{path} is damaged or was changed: {mismatch}. {_RESTORE}")
    return metadata, tensors


def _parse_values(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} holds no checkpoint: it is a safetensors file without the metadata key {METADATA_KEY!r} "
            f"(keys: {', '.join(sorted(metadata or {})) or 'none'}); expected a file that `defensemble train` wrote"
        )
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    got = values.get("format") if isinstance(values, dict) else values
    if got not in (FORMAT, _FORMAT_WITHOUT_DIGEST):
        is_newer = isinstance(got, int) and got > FORMAT
        fix = "Install a newer defensemble." if is_newer else "Train the network again, or use the version that wrote it."
        raise CheckpointError(
            f"{path} has the checkpoint format {got!r}; this version of defensemble reads {_FORMAT_WITHOUT_DIGEST} and {FORMAT}. {fix}"
        )
    keys = {"format", "spec", "mask_digest", "record", *([DIGEST_KEY] if got == FORMAT else [])}
    if set(values) != keys:
        raise CheckpointError(f"the metadata of {path} must have the keys {', '.join(sorted(keys))}; got {', '.join(sorted(values))}")
    return dict(values)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the metadata of {path} cannot be read: {error}. {_RESTORE}")


def _parse_metadata(path: Path, values: dict[str, Any]) -> CheckpointMetadata:
    digest = values["mask_digest"]
    if not isinstance(digest, str):
        raise CheckpointError(f"the mask digest in the metadata of {path} must be a string, got {digest!r}")
    try:
        metadata = CheckpointMetadata(ModelSpec.from_json(json.dumps(values["spec"])), digest, TrainingRecord.from_values(values["record"]))
    except (ValueError, RecursionError) as error:  # SpecError is a ValueError
        raise _unreadable(path, error) from error
    _check_classes(f"{path} is inconsistent", metadata.spec, metadata.record)
    return metadata


def _check_classes(problem: str, spec: ModelSpec, record: TrainingRecord) -> None:
    if len(record.class_names) != spec.num_classes:
        raise CheckpointError(f"{problem}: the record has {len(record.class_names)} class names, the spec has {spec.num_classes} classes")


def _build_untrained(spec: ModelSpec, problem: str) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):  # these weights are never used, so do not advance the caller's generator
            return build(spec)
    except SpecError as error:
        raise CheckpointError(f"{problem}: {error}") from error


def _check_tensors(problem: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise unless tensors have the expected names, shapes and kinds (bool, integer, floating)."""
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise CheckpointError(f"{problem}: missing tensors: {_format_some(missing)}; unexpected tensors: {_format_some(unexpected)}")
    for name, tensor in expected.items():
        got = tensors[name]
        if got.shape != tensor.shape or _kind(got) != _kind(tensor):
            raise CheckpointError(f"{problem}: {name} is {_kind(got)} {tuple(got.shape)}, expected {_kind(tensor)} {tuple(tensor.shape)}")


def _kind(tensor: torch.Tensor) -> str:
    return "floating" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _format_some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})" if names else "none"
