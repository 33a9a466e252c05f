"""Outcomes of probes with random responses, for the tests of everything that is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble.probes.base import ADVERSARIAL, CLEAN, Condition
from defensemble.probes.outcome import AttackOutcome, Check, ProbeOutcome, QueryCounts, TargetOutcome

CLASSES = ("cat", "dog", "frog")
SIGMAS = (Condition("sigma 8", 8.0, "1/255", "gaussian"), Condition("sigma 32", 32.0, "1/255", "gaussian"))
NORMS = (Condition("l2 0.5", 0.5), Condition("l2 1", 1.0))


def random_labels(n: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 99]).integers(len(CLASSES), size=n)


def target(name: str, labels: NDArray[np.int64], conditions: Sequence[str], accuracy: float = 0.7, **changes: Any) -> TargetOutcome:
    """A target that is right about the clean images with a probability, and less often under each further condition."""
    rng = np.random.default_rng([len(labels), *name.encode()])
    predicted, entropy = {}, {}
    for number, condition in enumerate((CLEAN, *conditions)):
        is_right = rng.random(len(labels)) < accuracy / (1 + number / 2)
        predicted[condition] = np.where(is_right, labels, (labels + 1) % len(CLASSES))
        entropy[condition] = rng.random(len(labels)).round(2) + 0.3 * number
    n, m = len(labels), (1 + len(conditions)) * len(labels)
    values = {
        "role": "other",
        "members": (),
        "identity": {"version": "1", "digest": name},
        "failure": None,
        "queries": QueryCounts(m + n, m, 0, n, 0, 0),
        "predicted": predicted,
        "entropy": entropy,
        "mutual_information": {condition: values / 4 for condition, values in entropy.items()},
    }
    return TargetOutcome(name=name, **{**values, **changes})


def attacked_target(name: str, labels: NDArray[np.int64], budget: int = 100, **changes: Any) -> TargetOutcome:
    """A target under a query attack that finds examples for most images, ever closer ones, until the budget is spent."""
    rng = np.random.default_rng([len(labels), 7, *name.encode()])
    clean = target(name, labels, ())
    is_attacked = clean.predicted[CLEAN] == labels
    n = len(labels)
    counted = np.where(is_attacked, rng.integers(5, budget + 1, n), 0)
    traces: list[list[tuple[int, float]]] = []
    for index in range(n):
        count = 0 if not is_attacked[index] else int(rng.integers(0, 4))
        queries = np.sort(rng.choice(counted[index], count, replace=False)) + 1 if count else np.zeros(0)
        distances = np.sort(rng.random(count) * 1.5)[::-1]
        traces.append([(int(query), float(distance)) for query, distance in zip(queries, distances, strict=True)])
    distance = np.array([trace[-1][1] if trace else np.nan for trace in traces])
    found = ~np.isnan(distance)
    entropy = {**clean.entropy, ADVERSARIAL: np.where(found, rng.random(n), np.nan)}
    values = {
        "queries": QueryCounts(int(counted.sum()) + 2 * n, int(counted.sum()), n, n, 0, 0),
        "predicted": {**clean.predicted, ADVERSARIAL: np.where(found, (labels + 1) % len(CLASSES), -1)},
        "entropy": entropy,
        "mutual_information": {},
        "attack": AttackOutcome(is_attacked, distance, distance**2 / 48, counted, counted == budget, traces),
    }
    return replace(clean, **{**values, **changes})


def outcome(n: int = 40, targets: Sequence[TargetOutcome] | None = None, **changes: Any) -> ProbeOutcome:
    """The outcome of a noise probe, unless `changes` make another of it."""
    labels = random_labels(n)
    names = [condition.name for condition in SIGMAS]
    if targets is None:
        targets = (target("alpha", labels, names), target("beta", labels, names, 0.5))
    values = {
        "probe": "noise",
        "title": "Gaussian noise",
        "threat_model": "no attacker",
        "paper": "arXiv:1911.08432",
        "input": "float32",
        "answers": "probabilities",
        "norm": None,
        "budget": None,
        "seed": 3,
        "settings": {"seed": 3, "sigmas": (8.0, 32.0)},
        "shard": None,
        "data": {"name": "digits", "n_available": 100},
        "class_names": CLASSES,
        "rows": np.arange(n) * 2 + 1,
        "labels": labels,
        "image_digests": np.arange(n, dtype=np.int64) * 7919,
        "conditions": SIGMAS,
        "is_source_fooled": {},
        "targets": tuple(targets),
        "checks": (Check("clean accuracy", "PASS", "alpha: above chance"),),
        "gallery": (),
        "duration_s": 1.25,
        "provenance": {"measured_at": "2024-01-01T00:00:00+00:00", "url": "http://127.0.0.1:1"},
        "details": {},
    }
    return ProbeOutcome(**{**values, **changes})


def attack_outcome(n: int = 40, **changes: Any) -> ProbeOutcome:
    """The outcome of a query attack on two targets."""
    labels = random_labels(n)
    targets = (attacked_target("alpha", labels), attacked_target("beta", labels))
    values = {"probe": "boundary", "norm": "l2", "budget": 100, "conditions": NORMS, "settings": {"seed": 3, "steps": 5}}
    return outcome(n, **{"targets": targets, **values, **changes})


def split(whole: ProbeOutcome, count: int) -> list[ProbeOutcome]:
    """The shards of an outcome: every `count`-th image, as separate runs measure them."""
    return [_shard(whole, number, count) for number in range(1, count + 1)]


def _shard(whole: ProbeOutcome, number: int, count: int) -> ProbeOutcome:
    part = np.arange(number - 1, len(whole.rows), count)
    rows = set(whole.rows[part].tolist())
    return replace(
        whole,
        shard=(number, count),
        rows=whole.rows[part],
        labels=whole.labels[part],
        image_digests=whole.image_digests[part],
        is_source_fooled=_parts(whole.is_source_fooled, part),
        targets=tuple(_target_part(one, part, number, count) for one in whole.targets),
        gallery=tuple(entry for entry in whole.gallery if entry["row"] in rows),
        duration_s=whole.duration_s / count,
        provenance={**whole.provenance, "measured_at": f"2024-01-01T00:00:{number:02}+00:00"},
    )


def _target_part(one: TargetOutcome, part: NDArray[np.int64], number: int, count: int) -> TargetOutcome:
    counts = {name: value // count + (value % count if number == 1 else 0) for name, value in vars(one.queries).items()}
    attack = one.attack
    return replace(
        one,
        queries=QueryCounts(**counts),
        predicted=_parts(one.predicted, part),
        entropy=_parts(one.entropy, part),
        mutual_information=_parts(one.mutual_information, part),
        attack=None
        if attack is None
        else AttackOutcome(
            **{name: getattr(attack, name)[part] for name in ("is_attacked", "distance", "mean_square", "counted", "is_spent")},
            traces=[attack.traces[index] for index in part],
        ),
    )


def _parts(arrays: Any, part: NDArray[np.int64]) -> dict[str, Any]:
    return {name: values[part] for name, values in arrays.items()}
