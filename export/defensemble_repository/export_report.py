"""Read the verification reports that exports write next to ONNX files."""

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
# The counts of a mask-aware graph: of the dense convolutions, without the taps on padding, and those that are left.
MULTIPLICATIONS = ("dense", "unpadded", "kept")


@dataclass(frozen=True)
class VersionReport:
    """The report of one version of a model. If there is no valid report, `values` is None and `problem` states why."""

    model: str
    version: int
    values: Mapping[str, Any] | None
    problem: str | None = None


def read_reports(repository: Path, models: list[str] | None = None) -> list[VersionReport]:
    """Read the reports of all exported versions in a repository.

    Args:
        repository: The folder of the repository.
        models: The models to read, or None for all.

    Raises:
        RepositoryError: The repository is not a folder, or does not contain one of the models.

    Example:
        for report in read_reports(Path("model_repository")):
            print(report.model, report.version, report.values and report.values["verification"])
    """
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder. Choose a model repository with --repository.")
    names = _names(repository)
    unknown = [name for name in models or [] if name not in names]
    if unknown:
        existing = ", ".join(names)
        raise RepositoryError(
            f"{repository} has no model {', '.join(unknown)}; " + (f"its models are {existing}" if existing else "it has no models")
        )
    reports = []
    for name in models or names:
        versions = [version for version in versions_in(repository / name) if (repository / name / str(version) / MODEL_FILE).exists()]
        reports += [_read(repository, name, version) for version in versions if not name.startswith(RESERVED_PREFIXES)]
    return reports


def _read(repository: Path, name: str, version: int) -> VersionReport:
    folder = repository / name / str(version)
    try:
        values = parse_report(read_regular(folder / REPORT_FILE, MAX_TEXT_BYTES))
    except FileNotFoundError:
        return VersionReport(name, version, None, f"{folder} has no {REPORT_FILE}: this project did not export the model")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return VersionReport(
            name, version, None, f"{folder / REPORT_FILE} is damaged ({type(error).__name__}: {error}). Export the model again."
        )
    if hashlib.sha256(read_regular(folder / MODEL_FILE)).hexdigest() != values["onnx"]["sha256"]:
        return VersionReport(
            name, version, None, f"{folder / MODEL_FILE} was changed after its export, so {REPORT_FILE} does not describe it"
        )
    return VersionReport(name, version, values)


def parse_report(content: bytes) -> dict[str, Any]:
    """Parse a report, and check the types of the values that are displayed.

    Raises:
        ValueError: It is not JSON, or has another schema.
        KeyError: A value is missing.
        TypeError: A value has another type.
        RecursionError: The JSON is nested too deeply.
    """
    values: dict[str, Any] = json.loads(content)
    if values["schema"] != SCHEMA:
        raise ValueError(f"schema is {values['schema']!r:.80}; expected {SCHEMA!r}")
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
            accuracies = [verified[key] for key in ("accuracy", "reference_accuracy")]
            numbers += [] if accuracies == [None, None] else accuracies
            numbers += [] if values["tolerance"]["logits"] is None else [values["tolerance"]["logits"]]
    if calibration is not None:
        numbers += [calibration["count"], calibration["seed"]]
        texts.append(calibration["source"])
    form = values.get("mask_aware")  # reports of earlier versions have no such key
    if form is not None:
        form_numbers, form_texts = _values_of_form(form)
        numbers += form_numbers
        texts += form_texts
    for value in numbers:
        checked_number(value)
    for value in texts:
        checked_text(value)
    return values


def _values_of_form(form: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the numbers and the texts of the entry `mask_aware` that are displayed."""
    texts = [form["reason"], *([] if form.get("problem") is None else [form["problem"]])]
    if form["operator"] is not None:
        texts.append(form["operator"])
    elif not form.get("layers"):  # nothing was compiled
        return [], texts
    texts += [*form["boundary"], *(entry[key] for entry in form["stopped_at"] for key in ("node", "reason"))]
    numbers = [form["multiplications"][key] for key in MULTIPLICATIONS] + list(form["expected_gain"].values())
    for layer in form["layers"]:
        texts += [layer["name"], *layer["form"].values()]
        numbers += [layer[key] for key in (*MULTIPLICATIONS, "input_support", "output_support")]
    if form["verification"] is not None:
        numbers += [form["verification"][key] for key in ("operator", "fallback") if form["verification"][key] is not None]
    return numbers, texts


def checked_number(value: object) -> float:
    """Return a JSON value that is a number. Raise a TypeError for any other."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return value


def checked_text(value: object) -> str:
    """Return a JSON value that is a string. Raise a TypeError for any other."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _names(repository: Path) -> list[str]:
    return sorted(entry.name for entry in repository.iterdir() if entry.is_dir())
