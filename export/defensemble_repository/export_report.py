"""The reports that lie with exported ONNX files: read, and checked as far as they are shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RepositoryError
from .filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from .names import MODEL_FILE, REPORT_FILE, RESERVED_PREFIXES
from .reader import versions_in

SCHEMA = "defensemble.export/1"


@dataclass(frozen=True)
class VersionReport:
    """A model's version in a repository, with its report: None, and why, where there is none that can be read."""

    model: str
    version: int
    values: Mapping[str, Any] | None
    problem: str | None = None


def read_reports(repository: Path, models: list[str] | None = None) -> list[VersionReport]:
    """The reports of all exported versions of all models, or of ``models``, in ``repository``.

    Raises:
        RepositoryError: ``repository`` is no folder, or one of ``models`` is not in it.
    """
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is no folder: name a model repository, with --repository")
    unknown = [name for name in models or [] if not (repository / name).is_dir()]
    if unknown:
        raise RepositoryError(f"{repository} holds no {', '.join(unknown)}: it holds {', '.join(_names(repository)) or 'no model'}")
    found = []
    for name in _names(repository) if not models else models:
        versions = [version for version in versions_in(repository / name) if (repository / name / str(version) / MODEL_FILE).exists()]
        found += [_read(repository, name, version) for version in versions if not name.startswith(RESERVED_PREFIXES)]
    return found


def _read(repository: Path, name: str, version: int) -> VersionReport:
    folder = repository / name / str(version)
    try:
        values = parse_report(read_regular(folder / REPORT_FILE, MAX_TEXT_BYTES))
    except FileNotFoundError:
        return VersionReport(name, version, None, f"{folder} holds no {REPORT_FILE}: it was exported by other means")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return VersionReport(
            name, version, None, f"{folder / REPORT_FILE} is damaged ({type(error).__name__}: {error}): export the model again"
        )
    if hashlib.sha256(read_regular(folder / MODEL_FILE)).hexdigest() != values["onnx"]["sha256"]:
        return VersionReport(name, version, None, f"{folder / MODEL_FILE} was changed after its export: {REPORT_FILE} is of another file")
    return VersionReport(name, version, values)


def parse_report(content: bytes) -> dict[str, Any]:
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
        checked_number(value)
    for value in texts:
        checked_text(value)
    return values


def checked_number(value: object) -> float:
    """Return a JSON value that is a number, else raise a TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def checked_text(value: object) -> str:
    """Return a JSON value that is a text, else raise a TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _names(repository: Path) -> list[str]:
    return sorted(entry.name for entry in repository.iterdir() if entry.is_dir())
