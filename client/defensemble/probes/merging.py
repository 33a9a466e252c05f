"""Merge results: the shards of one run, measured on several machines, or targets that were measured one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .attack_rates import ARRAYS, AttackOutcome
from .gallery import PER_TARGET
from .outcome import STATUSES, Check, ProbeOutcome, QueryCounts, TargetOutcome, same_json
from .setting_text import different_texts

SHARD_PROVENANCE = "shards"
"""Key of the provenance of each shard in that of the merged outcome."""
TARGET_PROVENANCE = "results"
"""Key of the provenance of each result of different targets in that of the merged outcome, by the names of the targets."""
_MOST_NAMED = 20
_SAME = ("probe", "input", "answers", "norm", "budget", "seed", "class_names")

Order = NDArray[np.intp]
Summary = Callable[[Mapping[str, Any], NDArray[np.int64], NDArray[np.int64], Mapping[str, NDArray[np.int64]]], dict[str, Any]]


def merge(outcomes: Sequence[ProbeOutcome], names: Sequence[str] | None = None, summary: Summary | None = None) -> ProbeOutcome:
    """Merge all shards of one run, or results for different targets. The result equals that of one run, except for time and provenance.

    Shards: the images are ordered by row, queries and durations are added, and rates follow from the images. A condition of a target that
    was not completed in one shard is missing in the result. Checks have the worst status over the shards. Results that are no shards must
    have the same images and conditions, and different targets.

    Args:
        outcomes: The shards, in any order, or the results, in the order of their targets.
        names: Names for errors, such as those of the files; None: `shard 3/16` or `result 2`.
        summary: `Probe.summary` of the probe, by which the values of `TargetOutcome.details` are computed again; None: values that differ
            are kept by shard.

    Raises:
        InputError: A shard is missing or there twice, or shards have other settings, data, targets or models than the first. Results have
            other settings or images than the first, or a target is there twice.
    """
    if not outcomes:
        raise InputError("there are no shards to merge: pass the result of each")
    if names is None:
        names = [f"shard {_number(one)}" if one.shard else f"result {number}" for number, one in enumerate(outcomes, 1)]
    merge_all = _merge_shards if len(outcomes) == 1 or any(one.shard for one in outcomes) else _merge_targets
    merged = merge_all(outcomes, names)
    if summary is None:
        return merged
    targets = [replace(one, details=summary(merged.data, merged.rows, merged.labels, one.predicted)) for one in merged.targets]
    return replace(merged, targets=tuple(targets))


def _merge_targets(outcomes: Sequence[ProbeOutcome], names: Sequence[str]) -> ProbeOutcome:
    first, targets = outcomes[0], [target for one in outcomes for target in one.targets]
    for one, name in zip(outcomes, names, strict=True):
        _check_readable(one, name)
        _check_same(first, one, names[0], name)
        _check_same_images(first, one, names[0], name)
    file_of: dict[str, str] = {}
    for one, name in zip(outcomes, names, strict=True):
        for target in one.targets:
            if target.name in file_of:
                raise InputError(
                    f"target {target.name} is in {file_of[target.name]} and in {name}; expected different targets, or shards of one run "
                    "(--shard). Measure only the targets that the other result lacks (--target)."
                )
            file_of[target.name] = name
    labels = [", ".join(target.name for target in one.targets) for one in outcomes]
    members = {name for target in targets for name in target.members}
    return replace(
        first,
        # A member that was measured without its ensemble did not have this role.
        targets=tuple(replace(one, role="member") if one.role == "other" and one.name in members else one for one in targets),
        checks=tuple(dict.fromkeys(check for one in outcomes for check in one.checks)),
        gallery=tuple(entry for one in outcomes for entry in one.gallery),
        duration_s=sum(one.duration_s for one in outcomes),
        provenance=_merged_provenance(outcomes, labels, TARGET_PROVENANCE),
        details=_merged_details([one.details for one in outcomes], labels),
    )


def _merge_shards(outcomes: Sequence[ProbeOutcome], names: Sequence[str]) -> ProbeOutcome:
    _check_complete(outcomes, names)
    in_order = sorted(zip(outcomes, names, strict=True), key=lambda entry: entry[0].shard or (0, 0))
    shards = [shard for shard, _ in in_order]
    for shard, name in in_order:
        _check_readable(shard, name)
        _check_same(shards[0], shard, in_order[0][1], name)
        _check_same_targets(shards[0], shard, in_order[0][1], name)
    rows = np.concatenate([shard.rows for shard in shards])
    order = np.argsort(rows, kind="stable")
    if (twice := np.flatnonzero(np.diff(rows[order]) == 0)).size:
        raise InputError(f"image {rows[order][twice[0]]} is in two shards; expected different images: were they split in the same way?")
    first = shards[0]
    numbers = [_number(shard) for shard in shards]
    labels = np.concatenate([shard.labels for shard in shards])[order]
    targets = [_merged_target([shard.targets[index] for shard in shards], shards, order) for index in range(len(first.targets))]
    return replace(
        first,
        shard=None,
        data=_merged_data([shard.data for shard in shards]),
        rows=rows[order],
        labels=labels,
        image_digests=np.concatenate([shard.image_digests for shard in shards])[order],
        is_source_fooled=_joined([shard.is_source_fooled for shard in shards], order),
        targets=tuple(targets),
        checks=_merged_checks(shards),
        gallery=_merged_gallery(shards),
        duration_s=sum(shard.duration_s for shard in shards),
        provenance=_merged_provenance(shards, numbers, SHARD_PROVENANCE),
        details=_merged_details([shard.details for shard in shards], numbers),
    )


def _check_same_images(first: ProbeOutcome, other: ProbeOutcome, first_name: str, name: str) -> None:
    """Check that two results have the same images and adversarial examples."""
    if len(first.rows) != len(other.rows):
        _raise_different("numbers of images", len(first.rows), len(other.rows), first_name, name)
    for key, what in (("rows", "rows of the images"), ("labels", "labels"), ("image_digests", "images")):
        values, others = getattr(first, key), getattr(other, key)
        if (differs := np.flatnonzero(values != others)).size:
            position = differs[0]
            which = f"{what}, image {position},"
            _raise_different(which, int(values[position]), int(others[position]), first_name, name)
    fooled, others_fooled = first.is_source_fooled, other.is_source_fooled
    if fooled.keys() != others_fooled.keys() or any((fooled[key] != others_fooled[key]).any() for key in fooled):
        raise InputError(
            f"{first_name} and {name} cannot be merged: they have different adversarial examples. Pass the same file to both (--examples)."
        )


def _check_complete(outcomes: Sequence[ProbeOutcome], names: Sequence[str]) -> None:
    """Check that each shard is there once."""
    found: dict[int, str] = {}
    count: int | None = None
    for one, name in zip(outcomes, names, strict=True):
        if one.shard is None:
            raise InputError(
                f"{name} is no shard, but all images of a run. Pass the results of `defensemble probe ... --shard K/N`, or at least two "
                "results of different targets without shards."
            )
        number = one.shard[0]
        count = one.shard[1] if count is None else count
        if one.shard[1] != count:
            raise InputError(f"{names[0]} is one of {count} shards, and {name} one of {one.shard[1]}: merge the shards of one run")
        if number in found:
            raise InputError(f"shard {number}/{count} is there twice: {found[number]} and {name}. Pass each shard once.")
        found[number] = name
    missing = (count or 0) - len(found)
    if missing:
        first = itertools.islice((str(number) for number in itertools.count(1) if number not in found), min(missing, _MOST_NAMED))
        which = f"shard{'s' if missing > 1 else ''} {', '.join(first)}{', ...' if missing > _MOST_NAMED else ''}"
        raise InputError(f"{len(found)} of {count} shards were passed; missing: {which}; measure and pass all of them")


class _Skipped(msgspec.Struct):
    damaged: int


class _Counts(msgspec.Struct):
    """What is added of the descriptions of images."""

    animations: int = 0
    skipped: _Skipped | None = None


class _Example(msgspec.Struct):
    """What examples are sorted by."""

    target: str
    row: int
    condition: str


def _check_readable(one: ProbeOutcome, name: str) -> None:
    """Check what is merged of the parts that result files hold in any form."""
    try:
        msgspec.convert(one.data, _Counts)
        msgspec.convert(list(one.gallery), list[_Example])
        msgspec.convert(one.provenance.get(TARGET_PROVENANCE, {}), dict[str, dict[str, Any]])
    except msgspec.ValidationError as error:
        raise InputError(
            f"{name} is damaged, data, gallery or {TARGET_PROVENANCE}: {error}. Use an unchanged copy, or measure it again."
        ) from error


def _check_same(first: ProbeOutcome, other: ProbeOutcome, first_name: str, name: str) -> None:
    """Check that two results were measured in the same way."""
    for key in _SAME:
        _check_equal(key, getattr(first, key), getattr(other, key), first_name, name)
    conditions, others_conditions = ([asdict(condition) for condition in one.conditions] for one in (first, other))
    _check_equal("conditions", conditions, others_conditions, first_name, name)
    data, other_data = _without_counts(first.data), _without_counts(other.data)
    for what, values, others in (("settings", first.settings, other.settings), ("data", data, other_data)):
        for key in {**values, **others}:
            _check_equal(f"{what}.{key}", values.get(key), others.get(key), first_name, name)


def _check_same_targets(first: ProbeOutcome, other: ProbeOutcome, first_name: str, name: str) -> None:
    """Check that two shards are of the same targets."""
    _check_equal("targets", [one.name for one in first.targets], [one.name for one in other.targets], first_name, name)
    for one, another in zip(first.targets, other.targets, strict=True):
        for key in ("role", "members"):
            _check_equal(f"{key} of {one.name}", getattr(one, key), getattr(another, key), first_name, name)
        for key in {**one.identity, **another.identity}:
            _check_equal(f"{key} of {one.name}", one.identity.get(key), another.identity.get(key), first_name, name)


def _check_equal(what: str, value: Any, other: Any, first_name: str, name: str) -> None:
    if not same_json(value, other):
        _raise_different(what, value, other, first_name, name)


def _raise_different(what: str, value: Any, other: Any, first_name: str, name: str) -> NoReturn:
    one, another = different_texts(what, value, other)
    raise InputError(
        f"{first_name} and {name} cannot be merged: different {what}: {one} and {another}. Merged results need the same "
        "settings and images (--limit, --seed), and shards the same models; measure the one that differs again."
    )


def _without_counts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the images without what is counted while a shard's files are read."""
    return {**data, "animations": None, "skipped": {**(data.get("skipped") or {}), "damaged": None}}


def _merged_data(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged = dict(parts[0])
    if "animations" in merged:
        merged["animations"] = sum(part.get("animations", 0) for part in parts)
    if "skipped" in merged:
        merged["skipped"] = {**merged["skipped"], "damaged": sum(part["skipped"]["damaged"] for part in parts)}
    return merged


def _joined(parts: Sequence[Mapping[str, NDArray[Any]]], order: Order) -> dict[str, NDArray[Any]]:
    """Return arrays of all images, of the conditions that all shards completed."""
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0] if all(name in part for part in parts)}


def _merged_target(parts: Sequence[TargetOutcome], shards: Sequence[ProbeOutcome], order: Order) -> TargetOutcome:
    failures = [f"shard {_number(shard)}: {part.failure}" for part, shard in zip(parts, shards, strict=True) if part.failure is not None]
    return replace(
        parts[0],
        failure="; ".join(failures) or None,
        queries=QueryCounts(*(sum(values) for values in zip(*(astuple(part.queries) for part in parts), strict=True))),
        predicted=_joined([part.predicted for part in parts], order),
        entropy=_joined([part.entropy for part in parts], order),
        mutual_information=_joined([part.mutual_information for part in parts], order),
        attack=_merged_attack([part.attack for part in parts], order),
        details=_merged_details([part.details for part in parts], [_number(shard) for shard in shards]),
    )


def _merged_attack(parts: Sequence[AttackOutcome | None], order: Order) -> AttackOutcome | None:
    attacks = [part for part in parts if part is not None]
    if len(attacks) < len(parts):
        return None
    traces = [trace for attack in attacks for trace in attack.traces]
    arrays = {name: np.concatenate([getattr(attack, name) for attack in attacks])[order] for name in ARRAYS}
    return AttackOutcome(**arrays, traces=[traces[index] for index in order])


def _merged_checks(shards: Sequence[ProbeOutcome]) -> tuple[Check, ...]:
    """Return each check once, with its worst status. Its text begins with a target's name and a colon, if it is about a target."""
    groups: dict[tuple[str, str], list[tuple[Check, str]]] = {}
    for shard in shards:
        for check in shard.checks:
            about = check.text.partition(":")[0]
            groups.setdefault((check.name, about), []).append((check, _number(shard)))
    merged = []
    for found in groups.values():
        worst = max((check for check, _ in found), key=lambda check: STATUSES.index(check.status))
        texts = {check.text: number for check, number in reversed(found) if check.status == worst.status}
        others = len({check.text for check, _ in found}) - 1
        note = f" (shard {texts[worst.text]}; {others} other texts)" if others else ""
        merged.append(Check(worst.name, worst.status, worst.text + note))
    return tuple(merged)


def _merged_gallery(shards: Sequence[ProbeOutcome]) -> tuple[Mapping[str, Any], ...]:
    position = {condition.name: index for index, condition in enumerate(shards[0].conditions)}
    entries = [entry for shard in shards for entry in shard.gallery]
    entries.sort(key=lambda entry: (entry["row"], position.get(entry["condition"], 0)))
    return tuple(entry for target in shards[0].targets for entry in [one for one in entries if one["target"] == target.name][:PER_TARGET])


def _merged_details(parts: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Mapping[str, Any]:
    """Return the values that are equal in all parts, and the others as {label: value}."""
    merged: dict[str, Any] = {}
    for key in {key: None for part in parts for key in part}:
        values = {label: part[key] for part, label in zip(parts, labels, strict=True) if key in part}
        is_same = len(values) == len(parts) and all(same_json(value, parts[0][key]) for value in values.values())
        merged[key] = parts[0][key] if is_same else values
    return merged


def _merged_provenance(parts: Sequence[ProbeOutcome], labels: Sequence[str], own: str) -> dict[str, Any]:
    """Return what is equal in all parts, the time of the last one, and, under the key `own`, all that differs by label."""
    merged: dict[str, Any] = {}
    by_label: dict[str, dict[str, Any]] = {}
    for part, label in zip(parts, labels, strict=True):
        values = dict(part.provenance)
        # A merged result counts as those that it was merged from.
        by_label.update({inner: {**values, **own_values} for inner, own_values in values.pop(own, {label: {}}).items()})
    different: dict[str, dict[str, Any]] = {label: {} for label in by_label}
    for key in {key: None for values in by_label.values() for key in values}:
        found = {label: values[key] for label, values in by_label.items() if key in values}
        first = next(iter(found.values()))
        if len(found) == len(by_label) and all(same_json(value, first) for value in found.values()):
            merged[key] = first
            continue
        if key == "measured_at":
            merged[key] = max(str(value) for value in found.values())
        for label, value in found.items():
            different[label][key] = value
    return {**merged, own: different}


def _number(shard: ProbeOutcome) -> str:
    return "{}/{}".format(*(shard.shard or (1, 1)))
