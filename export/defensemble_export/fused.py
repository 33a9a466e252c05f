"""A fused graph as a model of a repository, beside the ensemble whose answers it gives or in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from defensemble_repository.checks.averages import check_averages
from defensemble_repository.checks.inspection import Inspection
from defensemble_repository.checks.model import check_model
from defensemble_repository.configs import fused_config
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.errors import EnsembleError
from defensemble_repository.labels import class_names_from_labels
from defensemble_repository.lock import locked
from defensemble_repository.names import CONFIG_FILE, LABELS_FILE, RESERVED_PREFIXES, check_name
from defensemble_repository.onnx_metadata import CLASS_NAMES
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config, schema
from defensemble_repository.preprocessing import PREPROCESSING
from defensemble_repository.profile_digest import update_digest
from defensemble_repository.reader import (
    checked_batch_size,
    config_paths,
    ensemble_from_configs,
    is_ensemble,
    next_version,
    parameter,
    read_config,
    read_max_batch_size,
)
from defensemble_repository.transaction import check_writable, remove_stale_staging, write_files
from defensemble_repository.view import RepositoryView

from .entries.members import (
    ExportedMember,
    changed_files,
    check_same,
    describe_member_version,
    labels_text,
    preprocessing_from_text,
    version_files,
)
from .entries.stored_graph import stored_graph
from .errors import ExistsError, ExportError
from .graphs.fusion import digests_of_members, fused_onnx
from .graphs.traversal import metadata_of
from .labels import default_labels, first_difference
from .members.report import report_from_export
from .verification.fused import FUSED_TOLERANCE, verify_fused
from .verification.images import images_of_record
from .verification.tolerances import checked_precision, lowest_precision


def fuse_repository(
    repository: Path,
    ensemble: str,
    name: str,
    *,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: Path | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Fuse the members that ``ensemble`` pins in ``repository`` into the model ``name``; returns the paths written, relative to it.

    Each member's file is compared with the digest that its configuration carries, and the fused graph with the members, before anything is
    written: on random images and on ``images`` (N,C,H,W), by default test images of the data that the first member that says so was trained
    on (from ``data_dir`` where it is given). ``max_batch_size`` None stands for that of an existing
    ``name``, else of the ensemble.

    Raises:
        ExistsError: ``name`` exists and ``replace`` is False, or is something else than a fused graph.
        EnsembleError: the ensemble is not one that was exported, its members cannot be fused, or the name is not allowed.
        ExportError: a file is missing or damaged, ``images`` are not what the members take, the ensemble was edited meanwhile.
        VerificationError: the fused graph answers otherwise than the ensemble.
        ConfigError, OSError: a configuration cannot be read, or a file cannot be written; the repository is as it was.
    """
    check_fuse_request(repository, name, [ensemble], max_batch_size=max_batch_size, replace=replace)
    check_writable(repository)
    votes, members, usual = voting_members(repository, ensemble)
    taken = [vote.model for vote in votes.members]
    batch = check_fuse_request(repository, name, taken, max_batch_size=max_batch_size, replace=replace) or usual
    if images is None:
        recorded = (images_of_record(onnx.load_model_from_string(one.onnx), one.name, data_dir) for one in members)
        images = next((found.images for found in recorded if found is not None), None)
    fused = fused_member(name, votes, members, images, max_batch_size=batch)
    with locked(repository):
        for stale in remove_stale_staging(repository):
            on_progress(f"removed {stale}, which an export that was killed had left")
        if voting_members(repository, ensemble)[0] != votes:
            raise ExportError(f"'{ensemble}' was edited while its members were fused: run the same command again")
        plan = fused_plan(repository, fused, votes, max_batch_size=batch, replace=replace)
        write_files(repository, plan)
    return list(plan)


def fuse_planned(
    repository: Path,
    ensemble: str,
    name: str,
    planned: Mapping[str, bytes],
    *,
    images: np.ndarray[Any, Any] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
) -> dict[str, bytes]:
    """Plan the files that fuse ``ensemble`` as it will be once ``planned`` (a ``repository_plan``) is written: write both at once."""
    votes, members, usual = voting_members(repository, ensemble, planned)
    taken = [ensemble, *(vote.model for vote in votes.members), *(path.split("/")[0] for path in planned)]
    batch = check_fuse_request(repository, name, taken, max_batch_size=max_batch_size, replace=replace) or usual
    fused = fused_member(name, votes, members, images, max_batch_size=batch)
    return fused_plan(repository, fused, votes, max_batch_size=batch, replace=replace)


def check_fuse_request(repository: Path, name: str, taken: Sequence[str], *, max_batch_size: int | None, replace: bool) -> int | None:
    """Refuse by names and numbers alone, before any slow work; ``taken`` are names of the members and the ensemble.

    Returns how many images the graph takes at once: as many as an existing one, else ``max_batch_size``.
    """
    check_name(name)
    if name in taken:
        raise EnsembleError(f"'{name}' is the name of the ensemble or of a member: choose another name (`defensemble fuse NAME`)")
    if max_batch_size is not None:
        checked_batch_size(max_batch_size, "max_batch_size")
    folder = repository / name
    if not folder.exists():
        return max_batch_size
    config = read_config(folder)
    if is_ensemble(config) or not {"average", "weights", "members"} <= set(config.parameters):
        what = "an ensemble" if is_ensemble(config) else "a single network"
        raise ExistsError(f"{folder} exists and is {what}, no fused graph: choose another name (`defensemble fuse NAME`)")
    if not replace:
        raise ExistsError(
            f"{folder} exists already: choose another name (`defensemble fuse NAME`), or pass --replace, which adds the next version "
            "and keeps the old"
        )
    return read_max_batch_size(folder, max_batch_size)


def voting_members(
    repository: Path, ensemble: str, planned: Mapping[str, bytes] | None = None
) -> tuple[Ensemble, list[ExportedMember], int]:
    """Read an ensemble, its members at the versions that it pins, and how many images it takes at once.

    ``planned`` (path relative to ``repository``, to bytes) counts as if it were written. Raises an EnsembleError, ConfigError or
    ExportError where the ensemble is not one that was exported, or a member's file is not the one that its configuration describes.
    """
    files = RepositoryView(repository, planned or {})
    config = files.config(ensemble)
    if not is_ensemble(config):
        raise EnsembleError(f"{repository / ensemble} is not an ensemble: name one, or export its members into one first")
    models = [step.model_name for step in config.ensemble_scheduling.step]
    known = {model: files.config(model) for model in models if files.content(f"{model}/{CONFIG_FILE}") is not None}
    votes = ensemble_from_configs(ensemble, {**known, ensemble: config})
    gone = sorted({vote.model for vote in votes.members} - set(known))
    if gone:
        raise EnsembleError(f"'{ensemble}' lets {', '.join(gone)} vote, which {repository} lacks: put it back")
    members = [_member(files, vote.model, vote.version, known[vote.model]) for vote in votes.members]
    _check_averaging(files, ensemble, config)
    labels = files.content(f"{ensemble}/{LABELS_FILE}")
    if labels is not None:
        told = class_names_from_labels(labels)
        for member in members:
            if member.class_names != told:
                other = first_difference(told, member.class_names)
                raise EnsembleError(
                    f"{repository / ensemble / LABELS_FILE} has other class names than '{member.name}', {other}: a graph has one set of "
                    "names; make the files equal"
                )
    return votes, members, checked_batch_size(int(config.max_batch_size), f"max_batch_size in {repository / ensemble / CONFIG_FILE}")


def fused_member(
    name: str, ensemble: Ensemble, members: Sequence[ExportedMember], images: np.ndarray[Any, Any] | None, *, max_batch_size: int
) -> ExportedMember:
    """Fuse ``members``, those of the ensemble's votes in their order, and verify the graph; its report says what was measured.

    Raises:
        EnsembleError: the members differ in classes, in image size or in how images are brought to it, or are not one for each vote.
        ExportError: a member cannot be merged, or ``images`` are not what the members take.
        VerificationError: the fused graph answers otherwise than the ensemble.
    """
    first = members[0]
    check_same(members, shape="image size")
    contents = [member.onnx for member in members]
    preprocessing = next((member.preprocessing for member in members if member.preprocessing is not None), None)  # the same of all
    content = fused_onnx(contents, ensemble, preprocessing=None if preprocessing is None else preprocessing.to_json())
    measured = verify_fused(content, contents, ensemble, images, max_batch_size=max_batch_size)
    # Of mixed ones the lowest: what is compared with the graph later, such as an engine, is to keep the tolerance of that.
    precision = lowest_precision(checked_precision(member.precision) for member in members)
    origin = {
        "kind": "fused",
        "average": ensemble.average,
        "members": [
            {"member": f"{vote.model}@{vote.version}", "weight": vote.weight, "precision": member.precision}
            for vote, member in zip(ensemble.members, members, strict=True)
        ],
    }
    report = report_from_export(
        content, precision=precision, origin=origin, verification=measured, tolerance={"largest_difference": FUSED_TOLERANCE}
    )
    return ExportedMember(name, content, first.input_shape, first.num_classes, first.class_names, None, precision, report, preprocessing)


def fused_plan(
    repository: Path, fused: ExportedMember, ensemble: Ensemble, *, max_batch_size: int, replace: bool = False
) -> dict[str, bytes]:
    """Compute the files that add what ``fused_member`` made of ``ensemble`` to ``repository``, in the order in which they are to appear.

    A model that exists gets its next version (``replace``), which is served once its configuration, the last file, says so; what was
    edited there stays, and so do the older versions on the disk.

    Raises:
        ExistsError: the name exists and ``replace`` is False, or is something else than a fused graph, or one of other images or classes.
        EnsembleError: the name is not allowed, or that of a member.
        ExportError: ``max_batch_size`` is not 1 to 4096, or not what the existing configuration says.
    """
    check_fuse_request(repository, fused.name, [vote.model for vote in ensemble.members], max_batch_size=max_batch_size, replace=replace)
    folder = repository / fused.name
    version = next_version(folder)
    files = version_files(fused, version)
    configs: dict[str, schema.ModelConfig | None]
    if not folder.exists():
        files[f"{fused.name}/{LABELS_FILE}"] = labels_text(fused)
        configs = {f"{fused.name}/{CONFIG_FILE}": None}
    else:
        _check_same_interface(folder, fused)
        configs = {path.relative_to(repository).as_posix(): config_from_file(path) for path in config_paths(folder)}
    for path, existing in configs.items():
        config = fused_config(
            fused.name,
            ensemble,
            fused.interface(max_batch_size),
            version=version,
            member_digests=[known or "" for known in digests_of_members(fused.onnx)],
            preprocessing=fused.rule,
            existing=existing,
        )
        describe_member_version(config, fused, version)
        if existing is not None:
            update_digest(existing, config)
        files[path] = pbtxt_from_config(config)
    return changed_files(repository, files)


def _check_averaging(files: RepositoryView, ensemble: str, config: schema.ModelConfig) -> None:
    """Refuse averaging models that compute something else than their parameters say, or whose files were changed."""
    found = Inspection(files)
    models = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step if step.model_name.startswith(RESERVED_PREFIXES))
    averaging = [model for model in models if found.has(model)]
    for model in averaging:
        check_model(found, model)
    check_averages(found, ensemble, averaging)
    if wrong := [str(finding) for finding in found.findings if finding.is_error]:
        raise EnsembleError(
            f"'{ensemble}' is not averaged as its configurations say: {'; '.join(wrong)}; export the ensemble's members again (--replace), "
            "which writes new averaging models"
        )


def _member(files: RepositoryView, model: str, version: int, config: schema.ModelConfig) -> ExportedMember:
    """A member of the repository as it was when it was exported."""
    graph = stored_graph(files, model, version, config)
    tensors = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    if set(tensors) != {"images", "logits"} or len(tensors["images"]) != 3 or len(tensors["logits"]) != 1:
        raise EnsembleError(
            f"'{model}' takes and gives {tensors}, expected images (C, H, W) and logits (K): it is no member that can be fused"
        )
    channels, height, width = tensors["images"]
    labels = files.content(f"{model}/{LABELS_FILE}")
    metadata = metadata_of(graph.model)
    if labels is not None:
        names = class_names_from_labels(labels)
    elif CLASS_NAMES in metadata:
        names = tuple(json.loads(metadata[CLASS_NAMES]))
    else:
        names = default_labels(tensors["logits"][0])  # as the client has it
    return ExportedMember(
        model,
        graph.content,
        (channels, height, width),
        tensors["logits"][0],
        names,
        parameter(config, f"mask_digest.{version}"),
        checked_precision(graph.precision),
        preprocessing=preprocessing_from_text(parameter(config, PREPROCESSING), f"'{model}'"),
    )


def _check_same_interface(folder: Path, fused: ExportedMember) -> None:
    config = read_config(folder)
    dims = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    expected = {"images": list(fused.input_shape), "probabilities": [fused.num_classes]}
    got = {name: dims.get(name) for name in expected}
    if got != expected:
        raise ExistsError(f"{folder} takes and gives {got}, the new version {expected}: choose another name (`defensemble fuse NAME`)")
    labels = folder / LABELS_FILE
    if labels.is_file() and class_names_from_labels(labels.read_bytes()) != fused.class_names:
        raise ExistsError(f"the class names in {labels} differ from the new version's: choose another name (`defensemble fuse NAME`)")
