"""What is written beside an ONNX file: what it was made from, in which precision, and what its verification came to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from defensemble_repository.filesystem.regular_files import LARGEST_TEXT, read_regular
from defensemble_repository.names import MODEL_FILE, REPORT_FILE, RESERVED
from defensemble_repository.reader import versions_in

from ..errors import ExportError

SCHEMA = "defensemble.export/1"
_PACKAGES = ("defensemble", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")


def report_from_export(
    content: bytes,
    *,
    precision: str,
    origin: Mapping[str, Any],
    verification: Mapping[str, Any] | None,
    tolerance: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> bytes:
    """The report of ``content``, the bytes of an ONNX file, as JSON.

    ``origin`` says what it was made from, ``verification`` what it was compared with, on which images, and what came out; ``tolerance``
    what was allowed; ``calibration`` on what an int8 graph was calibrated.
    """
    graph = onnx.load_model_from_string(content).graph
    masks = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.BOOL]
    values = {
        "schema": SCHEMA,
        "precision": precision,
        "onnx": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "masks": len(masks),
            "mask_bytes": int(sum(mask.nbytes for mask in masks)),
        },
        "origin": dict(origin),
        "verification": None if verification is None else dict(verification),
        "tolerance": dict(tolerance),
        "calibration": None if calibration is None else dict(calibration),
        "versions": _versions(),
    }
    return json.dumps(values, indent=2, default=_plain).encode() + b"\n"


@dataclass(frozen=True)
class Reported:
    """A model's version in a repository, with its report: None, and why, where there is none that can be read."""

    model: str
    version: int
    values: Mapping[str, Any] | None
    problem: str | None = None


def read_reports(repository: Path, models: list[str] | None = None) -> list[Reported]:
    """The reports of all exported versions of all models, or of ``models``, in ``repository``.

    Raises:
        ExportError: ``repository`` is no folder, or one of ``models`` is not in it.
    """
    if not repository.is_dir():
        raise ExportError(f"{repository} is no folder: name a model repository, with --repository")
    unknown = [name for name in models or [] if not (repository / name).is_dir()]
    if unknown:
        raise ExportError(f"{repository} holds no {', '.join(unknown)}: it holds {', '.join(_names(repository)) or 'no model'}")
    found = []
    for name in _names(repository) if not models else models:
        versions = [version for version in versions_in(repository / name) if (repository / name / str(version) / MODEL_FILE).exists()]
        found += [_read(repository, name, version) for version in versions if not name.startswith(RESERVED)]
    return found


def _read(repository: Path, name: str, version: int) -> Reported:
    folder = repository / name / str(version)
    try:
        values = report_values(read_regular(folder / REPORT_FILE, LARGEST_TEXT))
    except FileNotFoundError:
        return Reported(name, version, None, f"{folder} holds no {REPORT_FILE}: it was exported by other means")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Reported(name, version, None, f"{folder / REPORT_FILE} is damaged ({type(error).__name__}: {error}): export the model again")
    if hashlib.sha256(read_regular(folder / MODEL_FILE)).hexdigest() != values["onnx"]["sha256"]:
        return Reported(name, version, None, f"{folder / MODEL_FILE} was changed after its export: {REPORT_FILE} is of another file")
    return Reported(name, version, values)


def report_values(content: bytes) -> dict[str, Any]:
    """The values of a report, checked as far as they are shown.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is damaged, or of another schema.
    """
    values: dict[str, Any] = json.loads(content)
    if values["schema"] != SCHEMA:
        raise ValueError(f"its schema is {values['schema']!r:.80}, expected {SCHEMA!r}")
    file, verified, calibration = values["onnx"], values["verification"], values["calibration"]
    numbers = [file["bytes"], file["mask_bytes"]]
    texts = [values["precision"], file["sha256"]]
    if verified is not None:
        texts += [verified["against"], verified["images"], *verified.get("goals_missed", [])]
        numbers.append(verified["n"])
        if "largest_difference" in verified:
            numbers += verified["largest_difference"].values()
        else:
            numbers += [verified[key] for key in ("agreement", "largest_logit_difference", "largest_probability_difference")]
            known = [verified[key] for key in ("accuracy", "reference_accuracy")]
            numbers += [] if known == [None, None] else known
            numbers += [] if values["tolerance"]["logits"] is None else [values["tolerance"]["logits"]]
    if calibration is not None:
        numbers += [calibration["count"], calibration["seed"]]
        texts.append(calibration["source"])
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{value!r} is no number")
    for value in texts:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")
    return values


def _names(repository: Path) -> list[str]:
    return sorted(entry.name for entry in repository.iterdir() if entry.is_dir())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is no JSON value")
