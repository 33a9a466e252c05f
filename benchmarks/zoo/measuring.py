"""Evaluate networks on images that were crafted to fool another one: probabilities, rates, and figures."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.zoo.paper import CLEAN_GOAL, PGD_GOAL, STANDARD_GOAL
from defensemble import rate
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_training import ATTACKS, adversarial_examples, round_to_8_bits

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
OnProgress = Callable[[str, int, int], None]

ATTACKED = {"fgsm": "table2-fgsm", "pgd": "table2-pgd"}
SETS = ("clean", "noise", *ATTACKED)
AVERAGE = "average"


def image_sets(
    source: nn.Module,
    images: Images,
    labels: Labels,
    *,
    batch_size: int,
    seed: int,
    on_progress: OnProgress,
    keep_in: Path | None = None,
) -> dict[str, Images]:
    """Return the images clean, with uniform noise of the attacks' l_inf radius, and attacked; all but the clean ones rounded to 8 bits.

    Args:
        source: The network that the examples are crafted on.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        batch_size: Images per batch.
        seed: Seed of the noise.
        on_progress: Called with the current step, the number of images done, and the number of all images.
        keep_in: Folder in which examples are kept, and from which those of the same weights and images are read.
    """
    epsilon = np.float32(ATTACKS[ATTACKED["pgd"]].epsilon or 0)
    noise = np.random.default_rng(seed).uniform(-epsilon, epsilon, images.shape).astype(np.float32)
    sets = {"clean": images, "noise": round_to_8_bits(np.clip(images + noise, 0, 1))}
    for name, preset in ATTACKED.items():

        def on_batch(done: int, total: int, name: str = name) -> None:
            on_progress(f"crafting {name}", done, total)

        def craft(preset: str = preset, on_batch: Callable[[int, int], None] = on_batch) -> Images:
            return adversarial_examples(source, images, labels, preset, batch_size=batch_size, eight_bit=True, on_progress=on_batch)

        kept = None if keep_in is None else keep_in / f"{preset}-{_examples_digest(source, images, labels, preset)}.npy"
        sets[name] = craft() if kept is None else _load_or_craft(kept, craft)
    return sets


def _load_or_craft(path: Path, craft: Callable[[], Images]) -> Images:
    """Load examples from a file, or craft and save them. They are saved as grey levels: 8 bits are exact for examples rounded to 8 bits."""
    if path.exists():
        kept: Images = np.load(path, allow_pickle=False).astype(np.float32) / np.float32(255)
        return kept
    examples = craft()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, np.rint(examples * 255).astype(np.uint8))
    write_atomic(path, content.getvalue())
    return examples


def _examples_digest(source: nn.Module, images: Images, labels: Labels, preset: str) -> str:
    """Return a digest (16 hexadecimal digits) of everything that the examples depend on."""
    digest = hashlib.sha256(repr((ATTACKS[preset], images.shape, torch.__version__)).encode())
    for name, tensor in sorted(source.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    digest.update(images.tobytes() + labels.tobytes())
    return digest.hexdigest()[:16]


def probabilities(module: nn.Module, images: Images, batch_size: int, on_batch: Callable[[int], None]) -> NDArray[np.float64]:
    """Return a network's probabilities (n, K), with float32 arithmetic and the softmax in float64."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size]))
            parts.append(module(batch).double().softmax(dim=1).numpy())
            on_batch(min(start + batch_size, len(images)))
    return np.concatenate(parts)


def predict_classes(
    networks: Mapping[str, nn.Module],
    averaged: list[str],
    sets: Mapping[str, Images],
    *,
    batch_size: int,
    on_progress: OnProgress,
) -> dict[str, dict[str, Labels]]:
    """Return the classes that each network, and the average of the `averaged` ones if there are two or more, predicts for each set."""
    classes: dict[str, dict[str, Labels]] = {name: {} for name in networks}
    for what, images in sets.items():
        average = np.zeros(())
        for name, module in networks.items():

            def on_batch(done: int, name: str = name, what: str = what, total_images: int = len(images)) -> None:
                on_progress(f"{name} on {what}", done, total_images)

            scores = probabilities(module, images, batch_size, on_batch)
            classes[name][what] = scores.argmax(axis=1)
            if name in averaged:
                average = average + scores / len(averaged)
        if len(averaged) > 1:
            classes.setdefault(AVERAGE, {})[what] = average.argmax(axis=1)
    return classes


def compute_rates(
    classes: Mapping[str, Mapping[str, Labels]], labels: Labels, fooled: Mapping[str, NDArray[np.bool_]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return for each network and set: accuracy, two defense rates, and accuracy on the images that all classify correctly when clean.

    Args:
        classes: Predicted classes by network and set.
        labels: int64 (n,).
        fooled: For each attacked set, which images the source misclassifies. Rates that need an attack or a source are else None.
    """
    correct = {name: {what: predicted == labels for what, predicted in sets.items()} for name, sets in classes.items()}
    all_correct = np.logical_and.reduce([sets["clean"] for sets in correct.values()])
    return {
        name: {
            what: {
                "accuracy": rate(hits).json(),
                "defense_rate": None if what == "clean" else rate(hits[sets["clean"]]).json(),
                "defense_rate_source_fooled": rate(hits[sets["clean"] & fooled[what]]).json() if what in fooled else None,
                "accuracy_where_all_right": None if what == "clean" else rate(hits[all_correct]).json(),
            }
            for what, hits in sets.items()
        }
        for name, sets in correct.items()
    }


def compare_average(classes: Mapping[str, Mapping[str, Labels]], labels: Labels, averaged: list[str], what: str) -> dict[str, Any] | None:
    """Compare the average with its best member on one set: the difference of accuracies, and the images on which only one is correct."""
    if AVERAGE not in classes:
        return None
    correct = {name: classes[name][what] == labels for name in (*averaged, AVERAGE)}
    best = max(averaged, key=lambda name: int(correct[name].sum()))
    average_correct, member_correct = correct[AVERAGE], correct[best]
    return {
        "best_member": best,
        "difference": float(average_correct.mean() - member_correct.mean()),
        "only_average_right": int((average_correct & ~member_correct).sum()),
        "only_member_right": int((member_correct & ~average_correct).sum()),
        "n": len(labels),
    }


def compute_figures(rates: Mapping[str, Any], averaged: list[str], compared: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Compute the figures. The defective network is the one closest to both of its goals; the value None misses a goal."""

    def accuracy(name: str, what: str) -> float:
        return float(rates[name][what]["accuracy"]["value"])

    def margin(name: str) -> float:
        return min(accuracy(name, "pgd") - PGD_GOAL, accuracy(name, "clean") - CLEAN_GOAL)

    closest = max(averaged, key=margin) if averaged else None
    standard = accuracy("standard", "clean") if "standard" in rates else None
    values: dict[str, tuple[float | None, float]] = {
        "standard_clean": (standard, STANDARD_GOAL),
        "defective_pgd": (None if closest is None else accuracy(closest, "pgd"), PGD_GOAL),
        "defective_clean": (None if closest is None else accuracy(closest, "clean"), CLEAN_GOAL),
    }
    for what, comparison in compared.items():
        values[f"average_minus_best_member_{what}"] = (None if comparison is None else comparison["difference"], 0.0)
    figures = {
        name: {"value": value, "goal": f"> {goal:g}", "holds": value is not None and value > goal} for name, (value, goal) in values.items()
    }
    for name in ("defective_pgd", "defective_clean"):
        figures[name]["network"] = closest
    return figures
