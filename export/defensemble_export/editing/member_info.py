"""What is known of a member that votes: what it computes in, its masks, its file, and how good its checkpoint and its export were."""

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

from ..graphs.traversal import metadata_of
from ..verification.tolerances import precision_of


@dataclass(frozen=True)
class MemberInfo:
    """A member at the version that votes, as it is on disk; None what is not known.

    ``share`` is its weight among those of all members, which sum to 1. ``sha256`` is what its configuration says of its file, of ``bytes``
    bytes. ``arch`` and ``keep`` are its network's, ``record_accuracy`` the fraction of ``record_n`` test images of ``record_data`` that the
    checkpoint got right when it was trained; ``exported_accuracy`` what the exported graph got right of ``exported_n`` ``exported_images``.
    ``problem`` says what is missing or damaged.
    """

    model: str
    version: int
    weight: float
    share: float
    precision: str | None = None
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


def read_member_info(files: RepositoryView, vote: Member, share: float) -> MemberInfo:
    """How the member of ``vote``, with its ``share`` of all weights, stands in ``files``.

    Its file is not compared with its digest. Whatever is missing, damaged or cannot be read is in ``problem``, and never raised.
    """
    problems: list[str] = []
    config = _config(files, vote.model, problems)
    graph, size = _graph(files, vote, config, problems)
    notes = {} if graph is None else metadata_of(graph)
    network = _network(notes, problems, f"{files.repository / vote.model / str(vote.version) / MODEL_FILE}")
    stated, sha256 = parameter(config, f"precision.{vote.version}"), parameter(config, f"sha256.{vote.version}")
    own = None if graph is None else precision_of(graph, stated)
    # A graph in float32 does not contradict its configuration.
    precision = stated or own if own == "fp32" else own or stated
    return MemberInfo(
        vote.model,
        vote.version,
        vote.weight,
        share,
        precision=precision,
        mask_digest=parameter(config, f"mask_digest.{vote.version}") or notes.get(MASK_DIGEST),
        sha256=sha256,
        bytes=size,
        **network,
        **_exported(files, vote, sha256, problems),
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
    files: RepositoryView, vote: Member, config: schema.ModelConfig | None, problems: list[str]
) -> tuple[onnx.ModelProto | None, int | None]:
    """A version's graph, and the size of the file that is served."""
    folder = f"{vote.model}/{vote.version}"
    served = (config.default_model_filename if config is not None else "") or MODEL_FILE
    content = _content(files, f"{folder}/{served}", problems, "export the model again")
    if content is None:
        return None, None
    size = len(content)
    if served != MODEL_FILE:  # a plan says nothing of itself; the graph that it was built from is in its folder
        beside = _content(files, f"{folder}/{MODEL_FILE}", problems, f"what {served} was made from is not known")
        if beside is None:
            return None, size
        content = beside
    try:
        graph = onnx.load_model_from_string(content)
    except DecodeError as error:
        problems.append(f"{files.repository / folder / MODEL_FILE} is no ONNX file: {error}; export the model again")
        return None, size
    return graph, size


def _network(notes: Mapping[str, str], problems: list[str], where: str) -> dict[str, Any]:
    """What the checkpoint said of the network and its training, as the keywords of ``MemberInfo``."""
    found: dict[str, Any] = {}
    try:
        if SPEC in notes:
            spec = json.loads(notes[SPEC])
            found |= {"arch": checked_text(spec["arch"]), "keep": checked_number(spec["keep"])}
        if RECORD in notes:
            record = json.loads(notes[RECORD])
            accuracy, count, data = checked_number(record["accuracy"]), checked_number(record["n_test"]), checked_text(record["data"])
            if count > 0:  # else it was not trained
                found |= {"record_accuracy": accuracy, "record_n": int(count), "record_data": data or None}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        problems.append(f"the metadata of {where} are damaged ({type(error).__name__}: {error})")
    return found


def _exported(files: RepositoryView, vote: Member, sha256: str | None, problems: list[str]) -> dict[str, Any]:
    """What the export's report says of the graph's accuracy, as the keywords of ``MemberInfo``."""
    path = f"{vote.model}/{vote.version}/{REPORT_FILE}"
    content = _content(files, path, problems, "it was exported by other means")
    if content is None:
        return {}
    try:
        values = parse_report(content)
        verified = values["verification"] or {}
        told: dict[str, Any] = {}
        if verified.get("accuracy") is not None:  # else the images' classes were not known
            told = {"exported_accuracy": verified["accuracy"], "exported_n": int(verified["n"]), "exported_images": verified["images"]}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        problems.append(f"{files.repository / path} is damaged ({type(error).__name__}: {error}): export the model again")
        return {}
    if sha256 is not None and values["onnx"]["sha256"] != sha256:
        problems.append(f"{files.repository / path} is of another file than the configuration describes")
        return {}
    return told
