"""Read result files of probes, and check them: everything that is computed later relies on arrays of the right shape."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.packed import unpack
from .base import ADVERSARIAL, CLEAN, Condition, digest_of_all
from .outcome import MAX_NAME, SCHEMA, AttackOutcome, Check, ProbeOutcome, QueryCounts, TargetOutcome

MAX_FILE_BYTES = 1 << 30
MAX_TOTAL_BYTES = 1 << 30
"""Largest size of all arrays of a file, decompressed."""

_OLD_SCHEMAS = {"defensemble.probe.noise/1": "defensemble probe noise URL --dataset NAME --out noise.json"}
_COMPUTED = {"schema", "name", "interval", "comparison", "comparisons"}
Scalar = TypeVar("Scalar", bound=np.generic)


def read_outcome(path: str | os.PathLike[str]) -> ProbeOutcome:
    """Read the result file of a probe.

    Args:
        path: A file that a probe wrote.

    Raises:
        InputError: The file is not the result of a probe, is of an older schema, or is damaged. The error names it.
        OSError: The file cannot be read.
    """
    path = Path(path)
    return outcome_from_bytes(read_result_file(path), path)


def read_result_file(path: Path) -> bytes:
    """Return the content of a result file, which may also be a pipe.

    Args:
        path: The file.

    Raises:
        InputError: It is too large.
        OSError: It cannot be read, or is a device, or a pipe without a writer.
    """
    from defensemble_repository.filesystem.regular_files import read_user_file

    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path} has {size:,} bytes; result files of at most {MAX_FILE_BYTES:,} are read")
    return read_user_file(path, MAX_FILE_BYTES)


def outcome_from_bytes(content: bytes, path: Path) -> ProbeOutcome:
    """Return the outcome of which a result file has this content.

    Args:
        content: The content.
        path: The file, for errors.

    Raises:
        InputError: See `read_outcome`.
    """
    try:
        values = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Pass a file that `defensemble probe noise ... --out FILE` wrote.") from error
    try:
        return outcome_from_json(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def outcome_from_json(values: Any) -> ProbeOutcome:
    """Return the outcome of which `ProbeOutcome.json` made these values. Rates are computed again from the arrays.

    Args:
        values: The parsed JSON.

    Raises:
        InputError: The values are not the result of a probe, are of an older schema, or are damaged.
    """
    _check_schema(values)
    try:
        record = msgspec.convert(values, _Record)
    except msgspec.ValidationError as error:
        raise InputError(f"the result is damaged: {error}") from error
    rows = unpack(record.images.get("row"), np.int64, (None,), "images.row")
    arrays = _Arrays(len(rows), tuple(condition.name for condition in record.conditions))
    arrays.check_total(record)
    labels = arrays.array(record.images.get("label"), np.int64, "images.label")
    _check_unique("conditions", [CLEAN, *arrays.conditions])
    _check_unique("targets", [target.name for target in record.targets])
    if wrong := [len(target.name) for target in record.targets if not 1 <= len(target.name) <= MAX_NAME]:
        raise InputError(f"the result is damaged: names of targets must have 1 to {MAX_NAME} characters; got {wrong[0]}")
    counts = [value for target in record.targets for value in astuple(target.queries)]
    if record.seed < 0 or record.duration_s < 0 or (record.budget is not None and record.budget < 1) or min(counts, default=0) < 0:
        raise InputError("the result is damaged: seed, duration_s and queries must be at least 0, and budget at least 1")
    if record.shard is not None and not 1 <= record.shard[0] <= record.shard[1]:
        raise InputError(f"the result is damaged: shard must be [number from 1, count]; got {list(record.shard)}")
    digests = arrays.array(record.images.get("digest"), np.int64, "images.digest")
    if record.data.pop("n", None) != len(rows) or (labels < 0).any():
        raise InputError("the result is damaged: data.n is not the number of images, or labels are negative")
    if record.data.pop("sha256", None) != digest_of_all(digests):
        raise InputError("the result is damaged: data.sha256 is not the digest of images.digest")
    record.data.pop("n_common", None)
    fooled = arrays.by_condition(record.source.get("is_source_fooled"), np.bool_, "source.is_source_fooled", arrays.conditions)
    return ProbeOutcome(
        **{name: getattr(record, name) for name in _SCALARS},
        rows=rows,
        labels=labels,
        image_digests=digests,
        is_source_fooled=fooled,
        targets=tuple(_target(target, arrays) for target in record.targets),
        provenance={key: value for key, value in values.items() if key not in _COMPUTED and key not in _Record.__annotations__},
    )


@dataclass(frozen=True)
class _PerImage:
    predicted: dict[str, Any]
    entropy: dict[str, Any]
    mutual_information: dict[str, Any]
    attack: dict[str, Any] | None


@dataclass(frozen=True)
class _Target:
    name: str
    role: str
    members: tuple[str, ...]
    identity: dict[str, Any]
    failure: str | None
    queries: QueryCounts
    per_image: _PerImage
    details: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    """What is read of a result; the rest is computed from it. Fields of `_SCALARS` have the same name in `ProbeOutcome`."""

    probe: str
    title: str
    threat_model: str
    paper: str | None
    input: str
    answers: str
    norm: str | None
    budget: int | None
    seed: int
    settings: dict[str, Any]
    shard: tuple[int, int] | None
    data: dict[str, Any]
    class_names: tuple[str, ...]
    conditions: tuple[Condition, ...]
    checks: tuple[Check, ...]
    gallery: tuple[dict[str, Any], ...]
    duration_s: float
    details: dict[str, Any]
    images: dict[str, Any]
    source: dict[str, Any]
    targets: tuple[_Target, ...]


_SCALARS = [name for name in _Record.__annotations__ if name not in ("images", "source", "targets")]


@dataclass(frozen=True)
class _Arrays:
    """Reads packed arrays for n images."""

    n: int
    conditions: tuple[str, ...]

    def check_total(self, record: _Record) -> None:
        """Reject a file whose arrays would fill the memory, before any but the first is decompressed."""
        fooled = record.source.get("is_source_fooled")
        count = 3 + (len(fooled) if isinstance(fooled, Mapping) else 0)
        for target in record.targets:
            images = target.per_image
            count += sum(map(len, (images.predicted, images.entropy, images.mutual_information, images.attack or ())))
        if 8 * self.n * count > MAX_TOTAL_BYTES:
            raise InputError(f"the result has {count:,} arrays of {self.n:,} numbers; at most {MAX_TOTAL_BYTES:,} bytes are read")

    def array(self, packed: Any, dtype: type[Scalar], where: str) -> NDArray[Scalar]:
        return unpack(packed, dtype, (self.n,), where)

    def by_condition(self, packed: Any, dtype: type[Scalar], where: str, names: Sequence[str]) -> dict[str, NDArray[Scalar]]:
        if not isinstance(packed, Mapping):
            raise InputError(f"{where} must be an object; got {packed!s:.80}")
        if unknown := sorted(set(packed) - set(names)):
            raise InputError(f"{where} has {', '.join(unknown)!s:.80}; expected conditions of the probe: {', '.join(names)!s:.200}")
        return {name: self.array(value, dtype, f"{where}.{name}") for name, value in packed.items()}


def _target(target: _Target, arrays: _Arrays) -> TargetOutcome:
    where, images = f"targets.{target.name}", target.per_image
    names = (CLEAN, ADVERSARIAL, *arrays.conditions)
    return TargetOutcome(
        target.name,
        target.role,
        target.members,
        target.identity,
        target.failure,
        target.queries,
        predicted=arrays.by_condition(images.predicted, np.int64, f"{where}.predicted", names),
        entropy=arrays.by_condition(images.entropy, np.float64, f"{where}.entropy", names),
        mutual_information=arrays.by_condition(images.mutual_information, np.float64, f"{where}.mutual_information", names),
        attack=None if images.attack is None else _attack(images.attack, arrays, f"{where}.attack"),
        details=target.details,
    )


def _attack(values: dict[str, Any], arrays: _Arrays, where: str) -> AttackOutcome:
    traces = values.get("traces")
    if not isinstance(traces, dict):
        raise InputError(f"{where}.traces must be an object; got {traces!s:.80}")
    lengths = arrays.array(traces.get("lengths"), np.int64, f"{where}.traces.lengths")
    queries = unpack(traces.get("queries"), np.int64, (None,), f"{where}.traces.queries")
    distance = unpack(traces.get("distance"), np.float64, (len(queries),), f"{where}.traces.distance")
    ends = np.cumsum(lengths)
    if (lengths < 0).any() or (int(ends[-1]) if arrays.n else 0) != len(queries):
        raise InputError(f"{where}.traces.lengths do not add up to the {len(queries)} points of the traces")
    points = list(zip(queries.tolist(), distance.tolist(), strict=True))
    sizes = {name: arrays.array(values.get(name), np.float64, f"{where}.{name}") for name in ("distance", "mean_square")}
    for name, one in {**sizes, "traces.distance": distance}.items():
        if (one < 0).any() or np.isinf(one).any():
            raise InputError(f"{where}.{name} must be finite and at least 0, or NaN where no example was found")
    return AttackOutcome(
        is_attacked=arrays.array(values.get("is_attacked"), np.bool_, f"{where}.is_attacked"),
        **sizes,
        counted=arrays.array(values.get("counted"), np.int64, f"{where}.counted"),
        is_spent=arrays.array(values.get("is_spent"), np.bool_, f"{where}.is_spent"),
        traces=[points[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)],
    )


def _check_schema(values: Any) -> None:
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, str) and schema in _OLD_SCHEMAS:
        raise InputError(
            f"the result has the older schema {schema}, without the predictions of each image that are needed here; expected {SCHEMA}. "
            f"Measure again: {_OLD_SCHEMAS[schema]}"
        )
    if schema != SCHEMA:
        raise InputError(
            f"this is not the result of a probe: schema is {schema!r:.80}, expected {SCHEMA!r}. Pass a file that "
            "`defensemble probe noise ... --out FILE` wrote; a newer version of defensemble may have another schema."
        )


def _check_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"the result is damaged: {what} have a name twice among {', '.join(names)!s:.200}")
