"""Write a fused graph as a model of a repository, next to its ensemble or instead of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from defensemble_ops import OPERATOR
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
from .graphs.fusion import digests_of_members, fused_onnx, member_prefixes
from .graphs.traversal import metadata_of
from .labels import default_labels, first_difference
from .members.mask_aware import form_problems, fused_form
from .members.report import report_from_export
from .verification.fused import verify_fused
from .verification.images import images_from_record
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
    """Fuse the members of an ensemble into one graph and write it as a model.

    Before anything is written, the file of each member is compared with the digest in its configuration, and the fused graph with the
    members.

    Args:
        repository: The model repository.
        ensemble: The ensemble; its members are fused at the versions that it pins.
        name: The model to write.
        images: Float32 (N,C,H,W) in [0, 1] to compare on, in addition to random images. None: test images of the dataset that the first
            member with a training record was trained on.
        data_dir: Folder of that dataset.
        max_batch_size: Largest batch, 1 to 4096. None: that of the existing model `name`, else that of the ensemble.
        replace: Add a new version if `name` exists.
        on_progress: Called with a line about each leftover of a killed export that is removed, and if the graph cannot be mask-aware
            although its members are.

    Returns:
        The paths written, relative to `repository`.

    Raises:
        ExistsError: `name` exists and `replace` is False, or `name` is not a fused graph.
        EnsembleError: The ensemble was not exported by this package, its members cannot be fused, or the name is not allowed.
        ExportError: A file is missing or damaged, the images do not fit the members, or the ensemble was edited during the command.
        VerificationError: The outputs of the fused graph differ from those of the ensemble.
        ConfigError: A configuration cannot be read. The repository is unchanged after every error.
        OSError: A file cannot be read or written.

    Example:
        >>> fuse_repository(Path("model_repository"), "ensemble", "ensemble_fused")
    """
    check_name(ensemble)
    check_fuse_request(repository, name, [ensemble], max_batch_size=max_batch_size, replace=replace)
    check_writable(repository)
    pinned, members, ensemble_batch = read_ensemble_members(repository, ensemble)
    taken = [member.model for member in pinned.members]
    batch = check_fuse_request(repository, name, taken, max_batch_size=max_batch_size, replace=replace) or ensemble_batch
    if images is None:
        recorded = (images_from_record(onnx.load_model_from_string(member.onnx), member.name, data_dir) for member in members)
        images = next((real.images for real in recorded if real is not None), None)
    fused = fused_member(name, pinned, members, images, max_batch_size=batch)
    with locked(repository):
        for stale in remove_stale_staging(repository):
            on_progress(f"removed {stale}, left by an export that was killed")
        if read_ensemble_members(repository, ensemble)[0] != pinned:
            raise ExportError(f"'{ensemble}' was edited while its members were fused; nothing was written. Run the same command again")
        files = planned_fused_files(repository, fused, pinned, max_batch_size=batch, replace=replace)
        for problem in form_problems(files):
            on_progress(problem)
        write_files(repository, files)
    return list(files)


def fuse_planned_ensemble(
    repository: Path,
    ensemble: str,
    name: str,
    planned: Mapping[str, bytes],
    *,
    images: np.ndarray[Any, Any] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
) -> dict[str, bytes]:
    """Fuse an ensemble whose files are planned but not yet written; return the files to write together with `planned`.

    Args:
        repository: The model repository.
        ensemble: The ensemble to fuse, as it will be once `planned` is written.
        name: The model to write.
        planned: The files of `planned_files`.
        images: See `fuse_repository`.
        max_batch_size: See `fuse_repository`.
        replace: See `fuse_repository`.
    """
    pinned, members, ensemble_batch = read_ensemble_members(repository, ensemble, planned)
    taken = [ensemble, *(member.model for member in pinned.members), *(path.split("/")[0] for path in planned)]
    batch = check_fuse_request(repository, name, taken, max_batch_size=max_batch_size, replace=replace) or ensemble_batch
    fused = fused_member(name, pinned, members, images, max_batch_size=batch)
    return planned_fused_files(repository, fused, pinned, max_batch_size=batch, replace=replace)


def check_fuse_request(repository: Path, name: str, taken: Sequence[str], *, max_batch_size: int | None, replace: bool) -> int | None:
    """Check the names and numbers of a request before any slow work.

    Args:
        repository: The model repository.
        name: The model to write.
        taken: Names that it must not have: those of the ensemble and its members.
        max_batch_size: Largest batch, or None.
        replace: Add a new version if `name` exists.

    Returns:
        The largest batch of the graph: that of the existing model, else `max_batch_size`.

    Raises:
        ExistsError: `name` exists and `replace` is False, or `name` is not a fused graph.
        EnsembleError: The name is taken or not allowed.
        ExportError: `max_batch_size` is not 1 to 4096, or differs from that of the existing model.
    """
    check_name(name)
    if name in taken:
        raise EnsembleError(f"'{name}' is the name of the ensemble or of a member: choose another name for the fused graph")
    if max_batch_size is not None:
        checked_batch_size(max_batch_size, "max_batch_size")
    folder = repository / name
    if not folder.exists():
        return max_batch_size
    config = read_config(folder)
    if is_ensemble(config) or not {"average", "weights", "members"} <= set(config.parameters):
        kind = "an ensemble" if is_ensemble(config) else "a single network"
        raise ExistsError(f"{folder} exists and is {kind}, not a fused graph: choose another name for the fused graph")
    if not replace:
        raise ExistsError(f"{folder} exists already: choose another name for the fused graph, or pass --replace to add a new version to it")
    return read_max_batch_size(folder, max_batch_size)


def read_ensemble_members(
    repository: Path, ensemble: str, planned: Mapping[str, bytes] | None = None
) -> tuple[Ensemble, list[ExportedMember], int]:
    """Read an ensemble, its members at the versions that it pins, and its largest batch.

    Args:
        repository: The model repository.
        ensemble: The name of the ensemble.
        planned: Files (path relative to `repository`, to bytes) to treat as written.

    Raises:
        EnsembleError: The ensemble was not exported by this package, or a member is missing.
        ConfigError: A configuration cannot be read.
        ExportError: The file of a member is not the one that its configuration describes.
    """
    files = RepositoryView(repository, planned or {})
    config = files.config(ensemble)
    if not is_ensemble(config):
        raise EnsembleError(f"{repository / ensemble} is not an ensemble: name an ensemble, or export its members into one first")
    models = [step.model_name for step in config.ensemble_scheduling.step]
    configs = {model: files.config(model) for model in models if files.content(f"{model}/{CONFIG_FILE}") is not None}
    pinned = ensemble_from_configs(ensemble, {**configs, ensemble: config})
    missing = sorted({member.model for member in pinned.members} - set(configs))
    if missing:
        raise EnsembleError(f"'{ensemble}' has the members {', '.join(missing)}, which are missing in {repository}: put them back")
    members = [_read_member(files, member.model, member.version, configs[member.model]) for member in pinned.members]
    _check_averaging(files, ensemble, config)
    labels = files.content(f"{ensemble}/{LABELS_FILE}")
    if labels is not None:
        class_names = class_names_from_labels(labels)
        for exported in members:
            if exported.class_names != class_names:
                difference = first_difference(class_names, exported.class_names)
                raise EnsembleError(
                    f"{repository / ensemble / LABELS_FILE} and '{exported.name}' have different class names, {difference}: "
                    "a fused graph has one set of class names; make the files equal"
                )
    return pinned, members, checked_batch_size(int(config.max_batch_size), f"max_batch_size in {repository / ensemble / CONFIG_FILE}")


def fused_member(
    name: str, ensemble: Ensemble, members: Sequence[ExportedMember], images: np.ndarray[Any, Any] | None, *, max_batch_size: int
) -> ExportedMember:
    """Fuse members into one graph and verify it; its report contains the measurements.

    Args:
        name: The name of the fused model.
        ensemble: The ensemble.
        members: The exported members, in the order of `ensemble.members`.
        images: Real images, float32 (N,C,H,W) in [0, 1]. None: only random images are compared.
        max_batch_size: Largest batch to compare.

    Raises:
        EnsembleError: The members differ in classes, image size or preprocessing, or their number differs from the ensemble's.
        ExportError: A member cannot be merged, or `images` do not fit the members.
        VerificationError: The outputs of the fused graph differ from those of the ensemble.
    """
    first = members[0]
    check_same(members, shape="image size")
    contents = [member.onnx for member in members]
    preprocessing = next((member.preprocessing for member in members if member.preprocessing is not None), None)  # all have the same
    plain = fused_onnx(contents, ensemble, preprocessing=None if preprocessing is None else preprocessing.to_json())
    measured = verify_fused(plain, contents, ensemble, images, max_batch_size=max_batch_size)
    # Of mixed precisions the lowest: an engine that is compared with this graph later must meet the tolerance of that precision.
    precision = lowest_precision(checked_precision(member.precision) for member in members)
    prefixes = zip(member_prefixes(ensemble), members, strict=True)
    targets = [f"{prefix}/logits" for prefix, exported in prefixes if exported.mask_aware is not None]
    content, form = fused_form(plain, targets, images, precision=precision, max_batch_size=max_batch_size)
    origin = {
        "kind": "fused",
        "average": ensemble.average,
        "members": [
            {"member": f"{member.model}@{member.version}", "weight": member.weight, "precision": exported.precision}
            for member, exported in zip(ensemble.members, members, strict=True)
        ],
    }
    report = report_from_export(
        content,
        precision=precision,
        origin=origin,
        verification=measured,
        tolerance={"largest_difference": measured["tolerance"]},
        mask_aware=form,
    )
    return ExportedMember(
        name,
        content,
        first.input_shape,
        first.num_classes,
        first.class_names,
        None,
        precision,
        report,
        preprocessing,
        form["operator"],
    )


def planned_fused_files(
    repository: Path, fused: ExportedMember, ensemble: Ensemble, *, max_batch_size: int, replace: bool = False
) -> dict[str, bytes]:
    """Compute the files that add a fused model to a repository, in the order in which to write them.

    An existing model gets a new version (`replace`), which Triton serves once the configuration, the last file, is written. Edits of the
    configuration and older versions are kept.

    Args:
        repository: The model repository.
        fused: The model, from `fused_member`.
        ensemble: The ensemble that it computes.
        max_batch_size: Largest batch, 1 to 4096.
        replace: Add a new version if the model exists.

    Raises:
        ExistsError: The name exists and `replace` is False, or the existing model is not a fused graph of the same interface.
        EnsembleError: The name is not allowed, or is the name of a member.
        ExportError: `max_batch_size` is not 1 to 4096, or differs from that of the existing model.
    """
    taken = [member.model for member in ensemble.members]
    check_fuse_request(repository, fused.name, taken, max_batch_size=max_batch_size, replace=replace)
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
            member_digests=[digest or "" for digest in digests_of_members(fused.onnx)],
            preprocessing=fused.rule,
            existing=existing,
        )
        describe_member_version(config, fused, version)
        if existing is not None:
            update_digest(existing, config)
        files[path] = pbtxt_from_config(config)
    return changed_files(repository, files)


def _check_averaging(files: RepositoryView, ensemble: str, config: schema.ModelConfig) -> None:
    """Reject averaging models whose graph does not match their parameters, or whose files were changed."""
    inspection = Inspection(files)
    models = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step if step.model_name.startswith(RESERVED_PREFIXES))
    averaging = [model for model in models if inspection.has(model)]
    for model in averaging:
        check_model(inspection, model)
    check_averages(inspection, ensemble, averaging)
    if errors := [str(finding) for finding in inspection.findings if finding.is_error]:
        raise EnsembleError(
            f"the averaging of '{ensemble}' does not match its configurations: {'; '.join(errors)}; export the members again (--replace), "
            "which writes new averaging models"
        )


def _read_member(files: RepositoryView, model: str, version: int, config: schema.ModelConfig) -> ExportedMember:
    """Read a member of the repository back as it was exported."""
    graph = stored_graph(files, model, version, config)
    tensors = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    if set(tensors) != {"images", "logits"} or len(tensors["images"]) != 3 or len(tensors["logits"]) != 1:
        raise EnsembleError(
            f"'{model}' cannot be fused: its inputs and outputs are {tensors}, expected images (C, H, W) and logits (K). "
            "Take it out of the ensemble, or serve the ensemble without fusing it"
        )
    channels, height, width = tensors["images"]
    labels = files.content(f"{model}/{LABELS_FILE}")
    metadata = metadata_of(graph.model)
    if labels is not None:
        names = class_names_from_labels(labels)
    elif CLASS_NAMES in metadata:
        names = tuple(json.loads(metadata[CLASS_NAMES]))
    else:
        names = default_labels(tensors["logits"][0])  # as in the client
    return ExportedMember(
        model,
        graph.content,
        (channels, height, width),
        tensors["logits"][0],
        names,
        parameter(config, f"mask_digest.{version}"),
        checked_precision(graph.precision),
        preprocessing=preprocessing_from_text(parameter(config, PREPROCESSING), f"'{model}'"),
        mask_aware=OPERATOR if graph.is_mask_aware else None,
    )


def _check_same_interface(folder: Path, fused: ExportedMember) -> None:
    config = read_config(folder)
    dims = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    expected = {"images": list(fused.input_shape), "probabilities": [fused.num_classes]}
    got = {name: dims.get(name) for name in expected}
    if got != expected:
        raise ExistsError(
            f"{folder} has the inputs and outputs {got}, but the new version has {expected}: choose another name for the fused graph"
        )
    labels = folder / LABELS_FILE
    if labels.is_file() and class_names_from_labels(labels.read_bytes()) != fused.class_names:
        raise ExistsError(f"the class names in {labels} differ from those of the new version: choose another name for the fused graph")
