"""Facts about a member of an ensemble: its precision, masks, file, and the accuracy of its checkpoint and its export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from defensemble_repository.ensemble import Member
from defensemble_repository.errors import ConfigError
from defensemble_repository.export_report import checked_number, checked_text, parse_report
from defensemble_repository.names import MODEL_FILE, REPORT_FILE
from defensemble_repository.onnx_metadata import MASK_DIGEST, RECORD, SPEC
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import parameter
from defensemble_repository.view import RepositoryView

from ..errors import ExportError
from ..graphs.mask_aware import is_mask_aware, plain_onnx
from ..graphs.traversal import metadata_of
from ..verification.tolerances import precision_of


@dataclass(frozen=True)
class MemberInfo:
    """A member on disk, at its version in the ensemble; unknown values are None.

    Attributes:
        model: The model's name.
        version: The version in the ensemble.
        weight: The weight, above 0.
        share: The weight divided by the sum of all members' weights.
        precision: What the graph computes in, such as `"fp32"`.
        mask_aware: Whether the file that is served contains the operator that skips masked neurons.
        mask_digest: The digest of the masks.
        sha256: The digest of the file, as the configuration states it.
        bytes: The size of the file.
        arch: The architecture of the network.
        keep: The probability with which a mask keeps a neuron.
        record_accuracy: The accuracy of the checkpoint after training, in [0, 1].
        record_n: The number of test images of that accuracy.
        record_data: The dataset of that accuracy.
        exported_accuracy: The accuracy of the exported graph, in [0, 1].
        exported_n: The number of images of that accuracy.
        exported_images: The images of that accuracy.
        problem: What is missing or damaged.

    Example:
        >>> (state,) = ensembles.show("ensemble")
        >>> [(member.info.model, member.info.precision, member.info.problem) for member in state.members]
    """

    model: str
    version: int
    weight: float
    share: float
    precision: str | None = None
    mask_aware: bool | None = None
    mask_digest: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    arch: str | None = None
    keep: float | None = None
    record_accuracy: float | None = None
    record_n: int | None = None
    record_data: str | None = None
    exported_accuracy: float | None = None
    exported_n: int | None = None
    exported_images: str | None = None
    problem: str | None = None


def read_member_info(files: RepositoryView, member: Member, share: float) -> MemberInfo:
    """Collect the facts about a member, without comparing its file with its digest.

    Args:
        files: The repository.
        member: The member.
        share: Its weight divided by the sum of all weights.

    Returns:
        The facts. Files that are missing, damaged or cannot be read are reported in `problem`; no exception is raised.
    """
    problems: list[str] = []
    config = _config(files, member.model, problems)
    graph, is_stored_aware, size = _graph(files, member, config, problems)
    metadata = {} if graph is None else metadata_of(graph)
    network = _network(metadata, problems, f"{files.repository / member.model / str(member.version) / MODEL_FILE}")
    stated, sha256 = parameter(config, f"precision.{member.version}"), parameter(config, f"sha256.{member.version}")
    own = None if graph is None else precision_of(graph, stated)
    # A float32 graph does not contradict any stated precision.
    precision = stated or own if own == "fp32" else own or stated
    return MemberInfo(
        member.model,
        member.version,
        member.weight,
        share,
        precision=precision,
        mask_aware=None if graph is None else is_stored_aware and _served_file(config) == MODEL_FILE,
        mask_digest=parameter(config, f"mask_digest.{member.version}") or metadata.get(MASK_DIGEST),
        sha256=sha256,
        bytes=size,
        **network,
        **_exported(files, member, sha256, problems),
        problem="; ".join(problems) or None,
    )


def _config(files: RepositoryView, model: str, problems: list[str]) -> schema.ModelConfig | None:
    try:
        return files.config(model)
    except ConfigError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")
    return None


def _content(files: RepositoryView, path: str, problems: list[str], missing: str) -> bytes | None:
    try:
        content = files.content(path)
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")
        return None
    if content is None:
        problems.append(f"{files.repository / path} is missing: {missing}")
    return content


def _graph(
    files: RepositoryView, member: Member, config: schema.ModelConfig | None, problems: list[str]
) -> tuple[onnx.ModelProto | None, bool, int | None]:
    """Return the plain graph of a version, whether its file is mask-aware, and the size of the file that is served."""
    folder = f"{member.model}/{member.version}"
    served = _served_file(config)
    content = _content(files, f"{folder}/{served}", problems, "export the model again")
    if content is None:
        return None, False, None
    size = len(content)
    if served != MODEL_FILE:  # a TensorRT plan has no metadata; the graph that it was built from is in the same folder
        source = _content(files, f"{folder}/{MODEL_FILE}", problems, f"the source of {served} is unknown")
        if source is None:
            return None, False, size
        content = source
    try:
        stored = onnx.load_model_from_string(content)
        return plain_onnx(stored), is_mask_aware(stored), size
    except DecodeError as error:
        problems.append(f"{files.repository / folder / MODEL_FILE} is not an ONNX file: {error}; export the model again")
    except ExportError as error:
        problems.append(f"{files.repository / folder / MODEL_FILE}: {error}")
    return None, False, size


def _served_file(config: schema.ModelConfig | None) -> str:
    return (config.default_model_filename if config is not None else "") or MODEL_FILE


def _network(metadata: Mapping[str, str], problems: list[str], where: str) -> dict[str, Any]:
    """Read the checkpoint's facts from the graph's metadata, as keyword arguments of `MemberInfo`."""
    info: dict[str, Any] = {}
    try:
        if SPEC in metadata:
            spec = json.loads(metadata[SPEC])
            info |= {"arch": checked_text(spec["arch"]), "keep": checked_number(spec["keep"])}
        if RECORD in metadata:
            record = json.loads(metadata[RECORD])
            accuracy, count, data = checked_number(record["accuracy"]), checked_number(record["n_test"]), checked_text(record["data"])
            if count > 0:  # 0 if the network was not trained
                info |= {"record_accuracy": accuracy, "record_n": int(count), "record_data": data or None}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        problems.append(f"the metadata of {where} is damaged ({type(error).__name__}: {error})")
    return info


def _exported(files: RepositoryView, member: Member, sha256: str | None, problems: list[str]) -> dict[str, Any]:
    """Read the exported graph's accuracy from the export report, as keyword arguments of `MemberInfo`."""
    path = f"{member.model}/{member.version}/{REPORT_FILE}"
    content = _content(files, path, problems, "the member was not exported by defensemble")
    if content is None:
        return {}
    try:
        values = parse_report(content)
        verified = values["verification"] or {}
        info: dict[str, Any] = {}
        if verified.get("accuracy") is not None:  # None if the images had no labels
            info = {"exported_accuracy": verified["accuracy"], "exported_n": int(verified["n"]), "exported_images": verified["images"]}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        problems.append(f"{files.repository / path} is damaged ({type(error).__name__}: {error}): export the model again")
        return {}
    if sha256 is not None and values["onnx"]["sha256"] != sha256:
        problems.append(f"{files.repository / path} describes another file than the configuration")
        return {}
    return info
