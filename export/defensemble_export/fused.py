"""A fused graph as a model of a repository, beside the ensemble whose answers it gives or in its place."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from defensemble_repository.configs import fused_config
from defensemble_repository.ensemble import Ensemble, averaging_model, two_model_names
from defensemble_repository.errors import ConfigError, EnsembleError, RepositoryError
from defensemble_repository.labels import class_names_from_labels
from defensemble_repository.lock import locked
from defensemble_repository.names import CONFIG_FILE, LABELS_FILE, MODEL_FILE, PROFILES_FOLDER, REPORT_FILE, RESERVED, check_name
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config, schema
from defensemble_repository.preprocessing import PREPROCESSING
from defensemble_repository.profile_digest import keep_stamp
from defensemble_repository.reader import (
    checked_batch,
    ensemble_from_configs,
    existing_batch,
    next_version,
    parameter,
    read_config,
    stated_votes,
)
from defensemble_repository.transaction import check_writable, remove_stale_staging, write_plan
from defensemble_repository.view import RepositoryView

from .entries.members import DEFAULT_MAX_BATCH_SIZE, Member, check_same, is_there, labels_text
from .errors import ExistsError, ExportError
from .graphs.fusion import digests_of_members, fused_onnx
from .labels import first_difference
from .members.report import report_from_export
from .metadata import CLASS_NAMES, preprocessing_from_text
from .verification.fused import FUSED_TOLERANCE, verify_fused
from .verification.images import images_of_record
from .verification.tolerances import checked_precision, lowest_precision, precision_of


def fuse_repository(
    repository: Path,
    ensemble: str,
    name: str,
    *,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: Path | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda text: None,
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
    check_fuse_request(repository, name, [vote.model for vote in votes.members], max_batch_size=max_batch_size, replace=replace)
    batch = fused_batch(repository / name, max_batch_size, usual)
    if images is None:
        recorded = (images_of_record(onnx.load_model_from_string(one.onnx), one.name, data_dir) for one in members)
        images = next((found.images for found in recorded if found is not None), None)
    fused = fused_member(name, votes, members, images, max_batch_size=batch)
    with locked(repository):
        for stale in remove_stale_staging(repository):
            say(f"removed {stale}, which an export that was killed had left")
        if voting_members(repository, ensemble)[0] != votes:
            raise ExportError(f"'{ensemble}' was edited while its members were fused: run the same command again")
        plan = fused_plan(repository, fused, votes, max_batch_size=batch, replace=replace)
        write_plan(repository, plan)
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
    """Plan the files that fuse ``ensemble`` as it will be once ``planned``, such as a ``repository_plan``, is written: write both at once.

    Raises:
        ExistsError, EnsembleError, ExportError, VerificationError, ConfigError: see ``fuse_repository``.
    """
    votes, members, usual = voting_members(repository, ensemble, planned)
    taken = [ensemble, *(vote.model for vote in votes.members), *(path.split("/")[0] for path in planned)]
    check_fuse_request(repository, name, taken, max_batch_size=max_batch_size, replace=replace)
    batch = fused_batch(repository / name, max_batch_size, usual)
    fused = fused_member(name, votes, members, images, max_batch_size=batch)
    return fused_plan(repository, fused, votes, max_batch_size=batch, replace=replace)


def check_fuse_request(repository: Path, name: str, taken: Sequence[str], *, max_batch_size: int | None = None, replace: bool) -> None:
    """Refuse by names and numbers alone, before any slow work; ``taken`` are names of the members and the ensemble.

    Raises:
        ExistsError, EnsembleError, ExportError, ConfigError: see ``fuse_repository``.
    """
    check_name(name)
    if name in taken:
        raise EnsembleError(f"'{name}' is the name of the ensemble or of a member: give the fused graph a name of its own (--fuse NAME)")
    if max_batch_size is not None:
        checked_batch(max_batch_size, "max_batch_size")
    folder = repository / name
    if not folder.exists():
        return
    config = read_config(folder)
    if config.platform == "ensemble" or not {"average", "weights", "members"} <= set(config.parameters):
        what = "an ensemble" if config.platform == "ensemble" else "a single network"
        raise ExistsError(f"{folder} exists and is {what}, no fused graph: choose another name (--fuse NAME)")
    if not replace:
        raise ExistsError(
            f"{folder} exists already: choose another name (--fuse NAME), or pass --replace, which adds the next version and keeps the old"
        )
    existing_batch(folder, max_batch_size)


def voting_members(repository: Path, ensemble: str, planned: Mapping[str, bytes] | None = None) -> tuple[Ensemble, list[Member], int]:
    """Read an ensemble, its members at the versions that it pins, and how many images it takes at once.

    ``planned`` (path relative to ``repository``, to bytes) counts as if it were written.

    Raises:
        EnsembleError, ConfigError: the ensemble cannot be read, or is not one that was exported.
        ExportError: a member's file is missing, or is not the one that its configuration describes.
    """
    files = RepositoryView(repository, planned or {})
    config = files.config(ensemble)
    if config.platform != "ensemble":
        raise EnsembleError(f"{repository / ensemble} is not an ensemble: name one, or export its members into one first")
    models = [step.model_name for step in config.ensemble_scheduling.step]
    known = {model: files.config(model) for model in models if files.content(f"{model}/{CONFIG_FILE}") is not None}
    votes = ensemble_from_configs(ensemble, {**known, ensemble: config})
    gone = sorted({vote.model for vote in votes.members} - set(known))
    if gone:
        raise EnsembleError(f"'{ensemble}' lets {', '.join(gone)} vote, which {repository} lacks: put it back")
    members = [_member(files, vote.model, vote.version, known[vote.model]) for vote in votes.members]
    _check_averaging(repository, ensemble, config, votes, members[0].num_classes)
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
    return votes, members, checked_batch(int(config.max_batch_size), f"max_batch_size in {repository / ensemble / CONFIG_FILE}")


def outdated_graphs(files: RepositoryView, now: Ensemble) -> list[str]:
    """Return the fused graphs that belong to `now`, an ensemble of `files`, but hold the votes of no ensemble there any more.

    A graph belongs to the ensemble that its configuration names. One that an older version wrote names none: it belongs to the ensemble
    that has its votes on disk, before what is planned in `files`, else to the one that shares most votes with it.
    """
    candidates = {}
    for name in files.models():
        config = _config_of_graph(files, name)
        graph = None if config is None else stated_votes(config, now.name)  # None too where edited by hand, which the server reports
        if config is not None and graph is not None and {vote.model for vote in graph.members} & {vote.model for vote in now.members}:
            candidates[name] = (graph, parameter(config, "ensemble"))
    if not candidates:
        return []
    ensembles = [now, *(other for name in files.models() if name != now.name and (other := _ensemble_in(files, name)) is not None)]
    before = _ensemble_in(RepositoryView(files.repository), now.name)
    found = []
    for name, (graph, origin) in candidates.items():
        if any(_same_votes(graph, other) for other in ensembles):
            continue
        if origin is None and before is not None and _same_votes(graph, before):
            origin = now.name
        if origin is None:
            origin = max(ensembles, key=lambda other: (_likeness(graph, other), other.name)).name
        if origin == now.name:
            found.append(name)
    return found


def _config_of_graph(files: RepositoryView, model: str) -> schema.ModelConfig | None:
    """Return the configuration of a model that could be a fused graph, else None."""
    try:
        content = files.content(f"{model}/{CONFIG_FILE}") or b""
        # Parsing takes a millisecond a model, and most are none.
        config = files.config(model) if b"images" in content and b"members" in content else None
    except (ConfigError, OSError):
        return None  # what is wrong with another model is no concern of an ensemble's
    if config is None or config.platform == "ensemble" or [tensor.name for tensor in config.input] != ["images"]:
        return None
    return config


def _ensemble_in(files: RepositoryView, name: str) -> Ensemble | None:
    """Return an ensemble, or None where the model is none, or none that can be read."""
    try:
        if b"ensemble_scheduling" not in (files.content(f"{name}/{CONFIG_FILE}") or b""):
            return None
        config = files.config(name)
        models = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)
        return ensemble_from_configs(name, {**{model: files.config(model) for model in models if files.has(model)}, name: config})
    except (RepositoryError, OSError):
        return None


def _shares(ensemble: Ensemble) -> dict[tuple[str, int], float]:
    return {(vote.model, vote.version): weight for vote, weight in zip(ensemble.members, ensemble.weights, strict=True)}


def _same_votes(one: Ensemble, other: Ensemble) -> bool:
    """Whether two ensembles have the same members, versions, shares of the weights, and average, in whatever order."""
    mine, theirs = _shares(one), _shares(other)
    if one.average != other.average or mine.keys() != theirs.keys():
        return False
    return all(math.isclose(weight, theirs[vote], rel_tol=1e-9) for vote, weight in mine.items())


def _likeness(graph: Ensemble, ensemble: Ensemble) -> tuple[int, int, int, bool]:
    """How much of a graph's votes an ensemble has: more members of the same version, of any version, fewer others, the same average."""
    mine, theirs = _shares(graph), _shares(ensemble)
    models = {model for model, _ in mine} & {model for model, _ in theirs}
    return len(mine.keys() & theirs.keys()), len(models), -len(theirs), graph.average == ensemble.average


def fused_member(
    name: str, ensemble: Ensemble, members: Sequence[Member], images: np.ndarray[Any, Any] | None, *, max_batch_size: int
) -> Member:
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
    return Member(name, content, first.input_shape, first.num_classes, first.class_names, None, precision, report, preprocessing)


def fused_plan(repository: Path, fused: Member, ensemble: Ensemble, *, max_batch_size: int, replace: bool = False) -> dict[str, bytes]:
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
    files = {f"{fused.name}/{version}/{MODEL_FILE}": fused.onnx}
    if fused.report is not None:
        files[f"{fused.name}/{version}/{REPORT_FILE}"] = fused.report
    configs: dict[str, schema.ModelConfig | None]
    if not folder.exists():
        files[f"{fused.name}/{LABELS_FILE}"] = labels_text(fused)
        configs = {f"{fused.name}/{CONFIG_FILE}": None}
    else:
        _check_same_interface(folder, fused)
        paths = [*sorted((folder / PROFILES_FOLDER).glob("*.pbtxt")), folder / CONFIG_FILE]
        configs = {p.relative_to(repository).as_posix(): config_from_file(p) for p in paths}
    digest = hashlib.sha256(fused.onnx).hexdigest()
    for path, existing in configs.items():
        serves_graph = existing is None or existing.default_model_filename in ("", MODEL_FILE)  # a plan has a digest of its own
        config = fused_config(
            fused.name,
            ensemble,
            input_shape=fused.input_shape,
            num_classes=fused.num_classes,
            max_batch_size=max_batch_size,
            version=version,
            digest=digest if serves_graph else None,
            member_digests=[known or "" for known in digests_of_members(fused.onnx)],
            precision=fused.precision,
            preprocessing=None if fused.preprocessing is None else fused.preprocessing.to_json(),
            existing=existing,
        )
        if existing is not None:
            keep_stamp(existing, config)
        files[path] = pbtxt_from_config(config)
    return {path: content for path, content in files.items() if not is_there(repository / path, content)}


def _check_averaging(repository: Path, ensemble: str, config: schema.ModelConfig, votes: Ensemble, num_classes: int) -> None:
    """Whether the averaging models compute what their parameters say: they are named by a digest of it, and checked by their own.

    Raises:
        EnsembleError: they do not.
    """
    for step in config.ensemble_scheduling.step:
        folder = repository / step.model_name
        if not step.model_name.startswith(RESERVED) or not (folder / CONFIG_FILE).exists():
            continue
        described = read_config(folder)
        stated = stated_votes(described, votes.name)
        # Who votes is what the parameters say: an ensemble's pins may have been moved by hand, which changes nothing in its average.
        names: list[str] = []
        if stated is not None and (stated.average, stated.weights) == (votes.average, votes.weights):
            batch = int(described.max_batch_size)
            names = [averaging_model(stated, num_classes, batch), *two_model_names(stated, num_classes, batch)]
        file = folder / "1" / MODEL_FILE
        whole = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == described.parameters["sha256.1"].string_value
        if step.model_name not in names or not whole:
            raise EnsembleError(
                f"'{ensemble}' averages by {step.model_name}, whose {'parameters' if whole else MODEL_FILE} were changed: it computes "
                "something else than they say; export the ensemble's members again (--replace), which writes new averaging models"
            )


def fused_batch(folder: Path, asked: int | None, usual: int = DEFAULT_MAX_BATCH_SIZE) -> int:
    """How many images a fused graph takes at once: what an existing one does, else what is asked for, else ``usual``.

    Raises:
        ExportError: the existing one takes another number than ``asked``.
    """
    if folder.exists():
        return existing_batch(folder, asked)
    return usual if asked is None else asked


def _member(files: RepositoryView, model: str, version: int, config: schema.ModelConfig) -> Member:
    """A member of the repository as it was when it was exported."""
    path = f"{model}/{version}/{MODEL_FILE}"
    content = files.content(path)
    if content is None:
        raise ExportError(f"{files.repository / path} is missing: export '{model}' again, or fuse an ensemble without it")
    expected = parameter(config, f"sha256.{version}") if config.default_model_filename in ("", MODEL_FILE) else None
    got = hashlib.sha256(content).hexdigest()
    if expected not in (None, got):
        raise ExportError(
            f"{files.repository / path} has SHA-256 {got[:16]}..., its {CONFIG_FILE} says {expected[:16]}...: the file was changed or "
            f"damaged after it was exported; export '{model}' again (--replace)"
        )
    tensors = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    if set(tensors) != {"images", "logits"} or len(tensors["images"]) != 3 or len(tensors["logits"]) != 1:
        raise EnsembleError(
            f"'{model}' takes and gives {tensors}, expected images (C, H, W) and logits (K): it is no member that can be fused"
        )
    channels, height, width = tensors["images"]
    names = _class_names(files, model, content, tensors["logits"][0])
    precision = checked_precision(parameter(config, f"precision.{version}") or "fp32")
    in_file = precision_of(_graph(content, model), precision)
    if in_file != precision:
        raise ExportError(
            f"'{model}' at version {version} computes in {in_file}, as its file says, and its {CONFIG_FILE} says {precision}: "
            f"write precision.{version} as {in_file} there"
        )
    return Member(
        model,
        content,
        (channels, height, width),
        tensors["logits"][0],
        names,
        parameter(config, f"mask_digest.{version}"),
        precision,
        preprocessing=preprocessing_from_text(parameter(config, PREPROCESSING), f"'{model}'"),
    )


def _class_names(files: RepositoryView, model: str, content: bytes, num_classes: int) -> tuple[str, ...]:
    """Names of a member's classes: its labels, else what its ONNX file says, else their numbers, as the client has it."""
    labels = files.content(f"{model}/{LABELS_FILE}")
    if labels is not None:
        return class_names_from_labels(labels)
    metadata = {entry.key: entry.value for entry in _graph(content, model).metadata_props}
    return tuple(json.loads(metadata[CLASS_NAMES])) if CLASS_NAMES in metadata else tuple(str(index) for index in range(num_classes))


def _graph(content: bytes, model: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError(f"the file of '{model}' is no ONNX file: {error}. It was damaged: export it again") from error


def _check_same_interface(folder: Path, fused: Member) -> None:
    config = read_config(folder)
    dims = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
    expected = {"images": list(fused.input_shape), "probabilities": [fused.num_classes]}
    got = {name: dims.get(name) for name in expected}
    if got != expected:
        raise ExistsError(f"{folder} takes and gives {got}, the new version {expected}: choose another name (--fuse NAME)")
    labels = folder / LABELS_FILE
    if labels.is_file() and class_names_from_labels(labels.read_bytes()) != fused.class_names:
        raise ExistsError(f"the class names in {labels} differ from the new version's: choose another name (--fuse NAME)")
