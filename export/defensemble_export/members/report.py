"""The export report: a JSON file next to an ONNX file, with its origin, precision and verification results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from defensemble_repository.export_report import SCHEMA

_PACKAGES = ("defensemble", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")


def report_from_export(
    content: bytes,
    *,
    precision: str,
    origin: Mapping[str, Any],
    verification: Mapping[str, Any] | None,
    tolerance: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
    mask_aware: Mapping[str, Any] | None = None,
) -> bytes:
    """Build the report of an ONNX file, as JSON.

    Args:
        content: The bytes of the ONNX file.
        precision: The precision in which the graph computes.
        origin: The source of the graph, such as a checkpoint and its digest.
        verification: Reference, images and results of the comparison; None if there was none.
        tolerance: The differences allowed.
        calibration: The calibration of an int8 graph.
        mask_aware: Whether the file is mask-aware, why, what that is expected to save, and the comparison with the plain graph.
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
        "mask_aware": None if mask_aware is None else dict(mask_aware),
        "versions": _versions(),
    }
    return json.dumps(values, indent=2, default=_plain).encode() + b"\n"


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
    raise TypeError(f"{value!r} is not a JSON value")
