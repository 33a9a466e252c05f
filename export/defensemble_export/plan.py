"""What an export puts into a model repository: every file as a path and its bytes, before anything is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as schema

from ._errors import ConfigError, EnsembleError, ExistsError, ExportError
from .averaging import average_onnx, uncertainty_onnx
from .config import (
    LABELS_FILE,
    MODEL_FILE,
    averaging_config,
    config_from_pbtxt,
    ensemble_config,
    member_config,
    pbtxt_from_config,
    uncertainty_outputs,
)
from .ensemble import Ensemble, Vote, check_name

CONFIG_FILE = "config.pbtxt"
# Triton reads every folder as a model; an ensemble's version folder is empty by nature, and archives drop empty folders.
PLACEHOLDER = "placeholder"
DEFAULT_MAX_BATCH_SIZE = 64
# Every export is verified at its largest batch: beyond this, memory ends before a server's queue does.
LARGEST_BATCH = 4096


@dataclass(frozen=True)
class Member:
    """One exported network: the bytes of its ONNX file, and what its configuration has to say."""

    name: str
    onnx: bytes
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    mask_digest: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.class_names) != self.num_classes:
            raise ExportError(f"'{self.name}' has {self.num_classes} classes, but {len(self.class_names)} class names")
        if len(set(self.class_names)) < self.num_classes:
            raise ExportError(f"class names of '{self.name}' must differ, got {self.class_names}")
        if any("\n" in label or not label for label in self.class_names):
            raise ExportError(f"class names of '{self.name}' must be non-empty and on one line each, got {self.class_names}")


def repository_plan(
    repository: Path,
    members: Sequence[Member],
    *,
    ensemble: str | None = "ensemble",
    average: str = "probabilities",
    weights: Mapping[str, float] | None = None,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    replace: bool = False,
) -> dict[str, bytes]:
    """Compute the files that add ``members`` and, unless ``ensemble`` is None, an ensemble of them to ``repository``.

    Paths are relative to the repository, in the order in which they are to appear: an ensemble's ``config.pbtxt`` is last. A member that
    exists already gets its next version (``replace``), never new bytes for an old one, and keeps the hand edits of its configuration.

    Raises:
        ExistsError: a member or the ensemble exists already, and ``replace`` is False.
        EnsembleError: the members cannot be averaged, or a name or weight is not allowed.
        ConfigError: a configuration in the repository cannot be read.
    """
    check_request(
        repository,
        [member.name for member in members],
        ensemble,
        average=average,
        weights=weights or {},
        max_batch_size=max_batch_size,
        replace=replace,
    )
    files: dict[str, bytes] = {}
    votes = []
    for member in members:
        version, member_files = _member_files(repository, member, max_batch_size)
        files |= member_files
        votes.append(Vote(member.name, version, (weights or {}).get(member.name, 1.0)))
    if ensemble is not None:
        files |= _ensemble_files(repository, Ensemble(ensemble, tuple(votes), average), members, _least_batch(files, max_batch_size))
    return {path: content for path, content in files.items() if not _is_there(repository / path, content)}


def check_request(
    repository: Path,
    members: Sequence[str],
    ensemble: str | None,
    *,
    average: str,
    weights: Mapping[str, float],
    max_batch_size: int,
    replace: bool,
) -> None:
    """Refuse what can be refused by names and numbers alone, before any slow work.

    Raises:
        ExistsError, EnsembleError, ExportError: see ``repository_plan``.
    """
    if not 1 <= max_batch_size <= LARGEST_BATCH:
        raise ExportError(f"max_batch_size must be 1 to {LARGEST_BATCH}, got {max_batch_size}")
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        raise EnsembleError(f"{', '.join(twice)}: given twice; members are named after their files, so rename one")
    unknown = sorted(set(weights) - set(members))
    if unknown:
        raise EnsembleError(f"a weight is given for {', '.join(unknown)}, which is not exported here: {', '.join(members)} are")
    if ensemble is not None:
        Ensemble(ensemble, tuple(Vote(name, 1, weights.get(name, 1.0)) for name in members), average)
    _check_free(repository, members, ensemble, replace=replace)


def _check_free(repository: Path, members: Sequence[str], ensemble: str | None, *, replace: bool) -> None:
    for name in members:
        check_name(name)
        if (repository / name).exists():
            if not replace:
                raise ExistsError(
                    f"{repository / name} exists already: rename the checkpoint, or pass --replace, "
                    "which adds the next version and keeps the old"
                )
            if _read_config(repository / name).platform == "ensemble":
                raise ExistsError(f"{repository / name} is an ensemble, and cannot become a member: rename the checkpoint")
    if ensemble is None:
        return
    if (repository / ensemble).exists():
        if not replace:
            raise ExistsError(
                f"ensemble {repository / ensemble} exists already: choose another --ensemble name, or pass --replace, "
                "which points it to the members exported here"
            )
        if _read_config(repository / ensemble).platform != "ensemble":
            raise ExistsError(f"{repository / ensemble} is not an ensemble: choose another --ensemble name")


def _member_files(repository: Path, member: Member, max_batch_size: int) -> tuple[int, dict[str, bytes]]:
    folder = repository / member.name
    digest = hashlib.sha256(member.onnx).hexdigest()
    labels = "".join(f"{label}\n" for label in member.class_names).encode()
    if not folder.exists():
        config = member_config(
            member.name,
            input_shape=member.input_shape,
            num_classes=member.num_classes,
            max_batch_size=max_batch_size,
            digests={1: digest},
            mask_digests={1: member.mask_digest},
        )
        return 1, {
            f"{member.name}/1/{MODEL_FILE}": member.onnx,
            f"{member.name}/{LABELS_FILE}": labels,
            f"{member.name}/{CONFIG_FILE}": pbtxt_from_config(config),
        }
    _check_same_interface(folder, member, labels)
    version = max((int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name)), default=0) + 1
    files = {f"{member.name}/{version}/{MODEL_FILE}": member.onnx}
    for path in [*sorted((folder / "configs").glob("*.pbtxt")), folder / CONFIG_FILE]:
        config = config_from_pbtxt(path.read_text(errors="replace"), str(path))
        config.parameters[f"sha256.{version}"].string_value = digest
        config.parameters[f"mask_digest.{version}"].string_value = member.mask_digest
        files[path.relative_to(repository).as_posix()] = pbtxt_from_config(config)
    return version, files


def _check_same_interface(folder: Path, member: Member, labels: bytes) -> None:
    config = _read_config(folder)
    shapes = [list(tensor.dims) for tensor in (*config.input, *config.output)]
    expected = [list(member.input_shape), [member.num_classes]]
    if shapes != expected:
        raise ExistsError(f"{folder} takes and gives {shapes}, the new version {expected}: export it under another name")
    old = folder / LABELS_FILE
    if old.exists() and old.read_bytes() != labels:
        raise ExistsError(f"the class names in {old} differ from the new version's: export it under another name")


def _ensemble_files(repository: Path, ensemble: Ensemble, members: Sequence[Member], max_batch_size: int) -> dict[str, bytes]:
    first = members[0]
    for member in members[1:]:
        for what, got, expected in (
            ("input shape", member.input_shape, first.input_shape),
            ("class names", member.class_names, first.class_names),
        ):
            if got != expected:
                raise EnsembleError(f"members must share their {what}: '{first.name}' has {expected}, '{member.name}' has {got}")
    digest = ensemble.digest(first.num_classes, max_batch_size)
    graphs = {
        f"average_{digest}": (average_onnx(ensemble, first.num_classes), [("probabilities", [first.num_classes])]),
        f"uncertainty_{digest}": (uncertainty_onnx(ensemble, first.num_classes), uncertainty_outputs(len(members), first.num_classes)),
    }
    files = {}
    for name, (onnx, outputs) in graphs.items():
        if (repository / name / CONFIG_FILE).exists():
            continue  # named by its content: what is there already is this, and may be serving
        config = averaging_config(
            name,
            ensemble,
            outputs,
            num_classes=first.num_classes,
            max_batch_size=max_batch_size,
            digest=hashlib.sha256(onnx).hexdigest(),
        )
        files[f"{name}/1/{MODEL_FILE}"] = onnx
        files[f"{name}/{CONFIG_FILE}"] = pbtxt_from_config(config)
    config = ensemble_config(
        ensemble,
        average_model=f"average_{digest}",
        uncertainty_model=f"uncertainty_{digest}",
        input_shape=first.input_shape,
        num_classes=first.num_classes,
        max_batch_size=max_batch_size,
    )
    return files | {
        f"{ensemble.name}/1/{PLACEHOLDER}": b"Triton wants a version folder; an ensemble has nothing to put there.\n",
        f"{ensemble.name}/{LABELS_FILE}": "".join(f"{label}\n" for label in first.class_names).encode(),
        f"{ensemble.name}/{CONFIG_FILE}": pbtxt_from_config(config),
    }


def _is_there(path: Path, content: bytes) -> bool:
    """Whether a file holds this already: a model whose files are touched is loaded again for nothing."""
    return path.exists() and path.read_bytes() == content


def _least_batch(files: Mapping[str, bytes], max_batch_size: int) -> int:
    """The largest batch that every member takes: an old member's configuration may allow less than what is asked for now."""
    configs = [config_from_pbtxt(files[path].decode(), path) for path in files if path.endswith(f"/{CONFIG_FILE}")]
    return min([max_batch_size, *(int(config.max_batch_size) for config in configs)])


def _read_config(folder: Path) -> schema.ModelConfig:
    path = folder / CONFIG_FILE
    try:
        return config_from_pbtxt(path.read_text(errors="replace"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no {CONFIG_FILE}: it is not a model that this project wrote; move it away") from error
