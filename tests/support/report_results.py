"""Results of probes that look like measured ones, for the tests of reports and for pages to look at."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defensemble.probes.base import ADVERSARIAL, CLEAN, Condition
from defensemble.probes.outcome import AttackOutcome, Check, ProbeOutcome, QueryCounts, TargetOutcome
from defensemble.results.packed import pack

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = "<script>alert(1)</script>|*x*`[a](b)"
"""A name that would run, or break a table, if it were not escaped."""
# Clean accuracy, and by which factor a perturbation of strength 1 lowers it.
NETWORKS: Mapping[str, tuple[str, float, float]] = {
    "ensemble": ("ensemble", 0.77, 0.45),
    "keep0.5": ("member", 0.73, 0.55),
    "keep0.5-b": ("member", 0.72, 0.52),
    "standard": ("other", 0.85, 1.6),
    "adversarial-training-3": ("other", 0.70, 0.2),
}
TWO = {name: NETWORKS[name] for name in ("ensemble", "standard")}
_GREY_LEVELS = "1/255"
_IMPROVEMENTS = ((0.05, 4.0), (0.3, 2.0), (0.6, 1.3), (0.9, 1.0))  # at which share of the queries, how many times the last distance


def png(pixels: NDArray[np.floating[Any]]) -> str:
    """An image (C, H, W) in [0, 1] of one or three channels, as PNG in base64."""
    levels = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def gallery(target: str, condition: str, labels: NDArray[np.int64], *, channels: int = 3, count: int = 6) -> tuple[dict[str, Any], ...]:
    """Examples with smooth random images."""
    rng = np.random.default_rng([count, channels])
    entries = []
    for row in range(count):
        coarse = rng.random((channels, 5, 5))
        grid = np.linspace(0, 3.999, 32)
        cells, part = grid.astype(int), grid % 1
        lines = coarse[:, cells] * (1 - part)[:, None] + coarse[:, cells + 1] * part[:, None]
        clean = lines[:, :, cells] * (1 - part) + lines[:, :, cells + 1] * part
        difference = rng.normal(0, 0.02, clean.shape)
        entries.append(
            {
                "target": target,
                "row": row,
                "condition": condition,
                "label": int(labels[row]),
                "clean_class": int(labels[row]),
                "adversarial_class": int((labels[row] + 1 + row) % 10),
                "clean_png": png(clean),
                "adversarial_png": png(clean + difference),
                "difference_png": png(0.5 + 10 * difference),
                "amplification": 10.0,
                "distance": float(np.sqrt((difference**2).sum())),
                "entropy_clean": 0.4 + 0.1 * row,
                "entropy_adversarial": 1.1 + 0.1 * row,
            }
        )
    return tuple(entries)


def perturbed(
    probe: str,
    title: str,
    conditions: Sequence[tuple[Condition, float]],
    *,
    n: int = 1000,
    networks: Mapping[str, tuple[str, float, float]] = NETWORKS,
    has_source: bool = False,
    **changes: Any,
) -> ProbeOutcome:
    """The outcome of a probe that asks once per image and condition.

    Args:
        probe: Name of the probe.
        title: Its title.
        conditions: The conditions, each with its strength.
        n: Number of images.
        networks: Role, clean accuracy and sensitivity by name.
        has_source: Whether the images are transferred examples.
        changes: Other fields of the outcome.
    """
    labels = np.random.default_rng([n, 1]).integers(10, size=n)
    difficulty = np.random.default_rng([n, 2]).random(n)
    targets = []
    for number, (name, (role, accuracy, sensitivity)) in enumerate(networks.items()):
        rng = np.random.default_rng([n, 3, number])
        predicted, entropy, information = {}, {}, {}
        for condition, strength in (("clean", 0.0), *((one.name, strength) for one, strength in conditions)):
            share = max(0.05, accuracy * np.exp(-sensitivity * strength))
            is_right = difficulty + rng.normal(0, 0.08, n) < share
            predicted[condition] = np.where(is_right, labels, (labels + 1 + rng.integers(9, size=n)) % 10)
            entropy[condition] = np.clip(rng.gamma(2, 0.2 + 0.15 * strength, n) + 0.5 * ~is_right, 0, 2.3)
            information[condition] = entropy[condition] * rng.uniform(0.1, 0.4, n)
        sent = n * len(predicted)
        targets.append(
            TargetOutcome(
                name,
                role,
                tuple(other for other, (kind, _, _) in networks.items() if kind == "member") if role == "ensemble" else (),
                {"version": "1", "sha256": f"{number}e" * 32, "mask_digest": f"{number}a" * 32},
                None,
                QueryCounts(sent + 72, sent, 0, 64, 8, 0),
                predicted,
                entropy,
                information if role == "ensemble" else {},
            )
        )
    fooled = {one.name: np.random.default_rng([n, 4]).random(n) < 0.9 for one, _ in conditions} if has_source else {}
    return _outcome(probe, title, labels, tuple(one for one, _ in conditions), tuple(targets), is_source_fooled=fooled, **changes)


def attacked(
    probe: str, title: str, norm: str, conditions: Sequence[Condition], *, n: int = 50, budget: int = 2500, **changes: Any
) -> ProbeOutcome:
    """The outcome of a query attack on `NETWORKS`.

    Args:
        probe: Name of the probe.
        title: Its title.
        norm: `l2` or `linf`.
        conditions: The largest norms, in grey levels or in [0, 1].
        n: Number of images.
        budget: Queries per image.
        changes: Other fields of the outcome.
    """
    labels = np.random.default_rng([n, 1]).integers(10, size=n)
    targets = []
    for number, (name, (role, accuracy, sensitivity)) in enumerate(NETWORKS.items()):
        rng = np.random.default_rng([n, 5, number])
        is_attacked = rng.random(n) < accuracy
        limit = max(one.value or 0.0 for one in conditions) / (255 if conditions[0].unit == _GREY_LEVELS else 1)
        distance = np.where(is_attacked, rng.gamma(3, limit / (4 * sensitivity), n), np.nan)
        is_found = is_attacked & (rng.random(n) < 0.95)
        counted = np.where(is_attacked, np.where(is_found, np.minimum(rng.gamma(2, budget / 8, n).astype(int) + 4, budget), budget), 0)
        traces = [
            [(int(used * part) + 1, float(far * scale)) for part, scale in _IMPROVEMENTS] if found else []
            for used, far, found in zip(counted, distance, is_found, strict=True)
        ]
        total = int(counted.sum())
        adversarial = np.where(is_found, (labels + 3) % 10, -1)
        targets.append(
            TargetOutcome(
                name,
                role,
                (),
                {"version": "1", "sha256": f"{number}e" * 32},
                None,
                QueryCounts(total + 5 * n + 31, total, n, 4 * n, 0, 31),
                {CLEAN: np.where(is_attacked, labels, (labels + 1) % 10), ADVERSARIAL: adversarial},
                {CLEAN: rng.gamma(2, 0.2, n), ADVERSARIAL: np.where(is_found, rng.gamma(3, 0.3, n), np.nan)},
                {},
                AttackOutcome(
                    is_attacked,
                    np.where(is_found, distance, np.nan),
                    np.where(is_found, distance**2 / 3072, np.nan),
                    counted,
                    counted == budget,
                    traces,
                ),
            )
        )
    values = {"norm": norm, "budget": budget, "gallery": gallery("ensemble", ADVERSARIAL, labels), **changes}
    return _outcome(probe, title, labels, tuple(conditions), tuple(targets), **values)


def _outcome(
    probe: str, title: str, labels: NDArray[np.int64], conditions: tuple[Condition, ...], targets: tuple[TargetOutcome, ...], **changes: Any
) -> ProbeOutcome:
    values: dict[str, Any] = {
        "threat_model": "The attacker sees the responses of the served model and knows nothing of its weights.",
        "paper": "arXiv 1911.08432",
        "input": "float32",
        "answers": "probabilities",
        "norm": None,
        "budget": None,
        "seed": 0,
        "settings": {"seed": 0, "images": len(labels)},
        "shard": None,
        "data": {"name": "cifar10", "kind": "dataset, test split", "sha256": "d61e1af7" * 8},
        "class_names": CLASSES,
        "rows": np.arange(len(labels)),
        "labels": labels,
        "image_digests": np.arange(len(labels)),
        "is_source_fooled": {},
        "checks": (
            Check("range", "PASS", "all images were in [0, 1]"),
            Check("the same image twice", "PASS", "equal responses for one image and for a batch"),
        ),
        "gallery": (),
        "duration_s": 312.4,
        "provenance": {
            "measured_at": "2026-11-30T09:00:00+00:00",
            "hardware": {"cpu": "AMD EPYC", "cores": 2},
            "versions": {"defensemble": "0.1.0", "numpy": "2.4.0"},
            "server": {"name": "triton", "version": "2.51.0"},
            "git_commit": "0" * 40,
            "url": "http://localhost:8000",
        },
        **changes,
    }
    return ProbeOutcome(probe=probe, title=title, conditions=conditions, targets=targets, **values)


def noise(n: int = 1000, **changes: Any) -> ProbeOutcome:
    """Gaussian noise at the paper's ten sigmas."""
    sigmas = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
    conditions = [(Condition(f"sigma {sigma}", float(sigma), _GREY_LEVELS, "gaussian"), sigma / 24) for sigma in sigmas]
    threat = "No attacker: Gaussian noise, clipped to two standard deviations."
    return perturbed("noise", "Gaussian noise", conditions, n=n, **{"threat_model": threat, "settings": {"kind": "gaussian"}, **changes})


def corruptions(n: int = 500, **changes: Any) -> ProbeOutcome:
    """The 15 common corruptions at five severities."""
    kinds = "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast"
    names = [*kinds.split(), "elastic_transform", "pixelate", "jpeg_compression"]
    conditions = [
        (Condition(f"{name} {severity}", float(severity), "severity", name), severity * (0.1 + 0.02 * index))
        for index, name in enumerate(names)
        for severity in range(1, 6)
    ]
    return perturbed("corruptions", "Common corruptions", conditions, n=n, **changes)


def folders(n: int = 120, **changes: Any) -> ProbeOutcome:
    """Three folders of equal size: cue conflicts, of which every tenth has one class for both, shapes, and stylised images."""
    outcome = perturbed("folders", "Texture against shape", [], n=n, **changes)
    size = n // 3
    textures = np.where(np.arange(size) % 10 == 0, outcome.labels[:size], (outcome.labels[:size] + 1 + np.arange(size) % 3) % 10)
    kinds = {"a/conflict": "cue conflict", "a/shape": "shape only", "a/stylised": "stylised"}
    entries: list[dict[str, Any]] = [
        {"name": name, "kind": kind, "first_row": number * size, "n_available": size} for number, (name, kind) in enumerate(kinds.items())
    ]
    entries[0]["textures"] = pack(textures)
    return replace(outcome, data={"name": ", ".join(kinds), "kind": "folders", "n_available": n, "folders": entries})


def transfer_settings(*attacks: str, keep: float = 1.0) -> dict[str, Any]:
    """The settings of transferred examples of a network with this keep."""
    surrogates = [{"name": "surrogate-b", "digest": "b" * 64, "mask_digest": None, "spec": {"arch": "resnet18", "keep": keep}}]
    return {"attacks": [{"name": name, "surrogates": ["surrogate-b"]} for name in attacks], "surrogates": surrogates}


def transfer(n: int = 1000, **changes: Any) -> ProbeOutcome:
    """The paper's Table 2: FGSM and PGD-7 from one surrogate."""
    conditions = [
        (Condition("table2-fgsm", 8.0, _GREY_LEVELS, "fgsm"), 1.0),
        (Condition("table2-pgd", 8.0, _GREY_LEVELS, "pgd"), 1.6),
    ]
    labels = np.random.default_rng([n, 1]).integers(10, size=n)
    values = {
        "norm": "linf",
        "threat_model": "The attacker trains surrogates on the same data and sends their adversarial examples, one query per image.",
        "settings": transfer_settings("table2-fgsm", "table2-pgd"),
        "gallery": gallery("ensemble", conditions[1][0].name, labels),
        "checks": (
            Check("epsilon 0", "PASS", "success 0 of 64"),
            Check("surrogate is no member", "WARN", "the mask digest of the surrogate is unknown: its checkpoint has none"),
        ),
    }
    return perturbed("transfer", "Transferred examples", conditions, n=n, has_source=True, **{**values, **changes})


def adaptive(n: int = 1000, *, strength: float = 4.0, **changes: Any) -> ProbeOutcome:
    """The adaptive attack; at the default strength it breaks the ensemble."""
    conditions = [
        (Condition(f"pgd16 through {average}", 16.0, _GREY_LEVELS, f"pgd through {average}"), strength)
        for average in ("probabilities", "logits")
    ]
    threat = "The attacker knows the defence, its training data, its keep and its architecture, but neither its masks nor its weights."
    return perturbed("adaptive", "Adaptive attack", conditions, n=n, has_source=True, **{"norm": "linf", "threat_model": threat, **changes})


def boundary(n: int = 50, **changes: Any) -> ProbeOutcome:
    """The boundary attack, in L2."""
    conditions = [Condition("l2 0.25", 0.25), Condition("l2 0.5", 0.5), Condition("l2 1", 1.0)]
    values = {"answers": "labels", "threat_model": "The attacker sees labels only, and has 5,500 queries per image.", "budget": 5500}
    return attacked("boundary", "Boundary attack", "l2", conditions, n=n, **{**values, **changes})


def square(n: int = 50, **changes: Any) -> ProbeOutcome:
    """Square, in L-inf, with one target that failed and another of a hostile name."""
    conditions = [Condition("epsilon 4", 4.0, _GREY_LEVELS), Condition("epsilon 8", 8.0, _GREY_LEVELS)]
    whole = attacked("square", "Square attack", "linf", conditions, n=n, **changes)
    failed = replace(
        whole.targets[3], failure="ConnectionFailedError: connection refused", predicted={}, entropy={}, mutual_information={}, attack=None
    )
    return replace(
        whole,
        targets=(*whole.targets[:3], failed, whole.targets[4]),
        checks=(*whole.checks, Check("doubled budget", "FAIL", "success rises from 61 % to 83 %: the budget is too small for a claim")),
    )


def hostile(n: int = 60) -> ProbeOutcome:
    """Noise on targets and classes with names of markup, formulas and great length; images of one channel."""
    networks = {HOSTILE: ("other", 0.8, 0.5), "=HYPERLINK(1)": ("other", 0.7, 0.9), "long" * 40: ("function", 0.6, 1.0)}
    labels = np.random.default_rng([n, 1]).integers(10, size=n)
    return replace(
        noise(n, networks=networks),
        class_names=(HOSTILE, *CLASSES[1:]),
        threat_model=f"None. {HOSTILE}",
        title=f"Noise {HOSTILE}",
        settings={"note": HOSTILE},
        checks=(Check(HOSTILE, "WARN", f"{HOSTILE}\nsecond line"),),
        gallery=gallery(HOSTILE, "sigma 8", np.where(labels == labels[0], 0, labels), channels=1, count=2),
    )


def write(outcome: ProbeOutcome, path: Path) -> Path:
    """Write the result of an outcome."""
    path.write_text(json.dumps(outcome.json()), encoding="utf-8")
    return path
