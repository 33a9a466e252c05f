"""The graph of one version of a model in a repository."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import onnx

from defensemble_repository.names import BACKEND, CONFIG_FILE, MODEL_FILE
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import model_backend, parameter
from defensemble_repository.view import RepositoryView

from ..errors import ExportError
from ..graphs.mask_aware import is_mask_aware, plain_onnx
from ..graphs.stored import file_from_bytes
from ..verification.tolerances import precision_of


@dataclass(frozen=True, eq=False)
class StoredGraph:
    """A graph in a repository.

    Attributes:
        path: The file, relative to the repository.
        content: The bytes of the file.
        sha256: The SHA-256 of the bytes.
        model: The parsed graph: of a mask-aware file, the plain graph that it contains.
        precision: What the graph computes in, such as `"fp32"`.
        is_mask_aware: Whether the file contains the operator that skips masked neurons.
    """

    path: str
    content: bytes
    sha256: str
    model: onnx.ModelProto
    precision: str
    is_mask_aware: bool


def stored_graph(files: RepositoryView, name: str, version: int, config: schema.ModelConfig) -> StoredGraph:
    """Read the graph of a version of a model, also if a TensorRT plan is served instead.

    Args:
        files: The repository.
        name: The model.
        version: The version.
        config: The model's configuration.

    Raises:
        ExportError: The file is missing, or differs from what `config` states.
    """
    served = model_backend(config) == BACKEND
    path = f"{name}/{version}/{(served and config.default_model_filename) or MODEL_FILE}"
    content = files.content(path)
    if content is None:
        raise ExportError(f"{files.repository / path} is missing; export '{name}' again, or leave it out")
    file, where = files.repository / path, files.repository / name / CONFIG_FILE
    sha256, expected = hashlib.sha256(content).hexdigest(), parameter(config, f"sha256.{version}") if served else None
    if expected not in (None, sha256):
        raise ExportError(
            f"{file} has SHA-256 {sha256[:16]}..., but {where} states {expected[:16]}...: the file was changed or damaged after the "
            f"export. Export '{name}' again (--replace) or, if you changed it on purpose, write the new digest there"
        )
    stored = file_from_bytes(content, name)
    model, stated = plain_onnx(stored), parameter(config, f"precision.{version}")
    precision = precision_of(model, stated) or "fp32"
    if stated not in (None, precision):
        raise ExportError(
            f"{file} computes in {precision}, but {where} states precision.{version} {stated!r}; write {precision!r} there, or export the "
            "model again"
        )
    return StoredGraph(path, content, sha256, model, precision, is_mask_aware(stored))
