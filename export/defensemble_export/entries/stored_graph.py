"""The graph of a version in a repository, as its configuration describes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import onnx

from defensemble_repository.names import BACKEND, CONFIG_FILE, MODEL_FILE
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import model_backend, parameter
from defensemble_repository.view import RepositoryView

from ..errors import ExportError
from ..graphs.loading import model_from_bytes
from ..verification.tolerances import precision_of


@dataclass(frozen=True, eq=False)
class StoredGraph:
    """A graph: its file relative to the repository, the bytes of it and their SHA-256, and what it computes in."""

    path: str
    content: bytes
    sha256: str
    model: onnx.ModelProto
    precision: str


def stored_graph(files: RepositoryView, name: str, version: int, config: schema.ModelConfig) -> StoredGraph:
    """Read the graph of the model `name` at `version`, also where a plan is served; ExportError where it is not as `config` describes."""
    served = model_backend(config) == BACKEND
    path = f"{name}/{version}/{(served and config.default_model_filename) or MODEL_FILE}"
    content = files.content(path)
    if content is None:
        raise ExportError(f"{files.repository / path} is missing: export '{name}' again, or leave it out")
    file, where = files.repository / path, files.repository / name / CONFIG_FILE
    sha256, expected = hashlib.sha256(content).hexdigest(), parameter(config, f"sha256.{version}") if served else None
    if expected not in (None, sha256):
        raise ExportError(
            f"{file} has SHA-256 {sha256[:16]}..., {where} says {expected[:16]}...: the file was changed or damaged after it was "
            f"exported; export '{name}' again (--replace), or, if you changed it on purpose, write the new digest there"
        )
    model, stated = model_from_bytes(content, name), parameter(config, f"precision.{version}")
    precision = precision_of(model, stated) or "fp32"
    if stated not in (None, precision):
        raise ExportError(
            f"{file} computes in {precision}, and {where} says precision.{version} {stated!r}: write {precision!r} there, or export the "
            "model again"
        )
    return StoredGraph(path, content, sha256, model, precision)
