"""How networks do on images that were made to fool another one: probabilities, rates, and the figures that were asked for."""

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
    """The images, with uniform noise of the attacks' l_inf radius, and attacked; all but the clean ones rounded to 8 bits.

    With `keep_in`, a folder, examples that were crafted before on the same weights and images are read from it, and new ones kept there.
    """
    epsilon = np.float32(ATTACKS[ATTACKED["pgd"]].epsilon or 0)
    noise = np.random.default_rng(seed).uniform(-epsilon, epsilon, images.shape).astype(np.float32)
    sets = {"clean": images, "noise": round_to_8_bits(np.clip(images + noise, 0, 1))}
    for name, preset in ATTACKED.items():

        def on_batch(done: int, total: int, name: str = name) -> None:
            on_progress(f"crafting {name}", done, total)

        def craft(preset: str = preset, on_batch: Callable[[int, int], None] = on_batch) -> Images:
            return adversarial_examples(source, images, labels, preset, batch_size=batch_size, eight_bit=True, on_progress=on_batch)

        kept = None if keep_in is None else keep_in / f"{preset}-{_identity(source, images, labels, preset)}.npy"
        sets[name] = craft() if kept is None else _kept(kept, craft)
    return sets


def _kept(path: Path, craft: Callable[[], Images]) -> Images:
    """Examples from a file of grey levels, written first where it is not there: 8 bits hold all of what was rounded to 8 bits."""
    if path.exists():
        kept: Images = np.load(path, allow_pickle=False).astype(np.float32) / np.float32(255)
        return kept
    examples = craft()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, np.rint(examples * 255).astype(np.uint8))
    write_atomic(path, content.getvalue())
    return examples


def _identity(source: nn.Module, images: Images, labels: Labels, preset: str) -> str:
    """16 hexadecimal digits of all that examples depend on."""
    digest = hashlib.sha256(repr((ATTACKS[preset], images.shape, torch.__version__)).encode())
    for name, tensor in sorted(source.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    digest.update(images.tobytes() + labels.tobytes())
    return digest.hexdigest()[:16]


def probabilities(module: nn.Module, images: Images, batch_size: int, on_batch: Callable[[int], None]) -> NDArray[np.float64]:
    """A network's probabilities (n, K): float32 arithmetic, the softmax in float64."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size]))
            parts.append(module(batch).double().softmax(dim=1).numpy())
            on_batch(min(start + batch_size, len(images)))
    return np.concatenate(parts)


def classes_of(
    networks: Mapping[str, nn.Module],
    averaged: list[str],
    sets: Mapping[str, Images],
    *,
    batch_size: int,
    on_progress: OnProgress,
) -> dict[str, dict[str, Labels]]:
    """What each network, and where there are two or more to average their average (of probabilities), answers to each set of images."""
    answers: dict[str, dict[str, Labels]] = {name: {} for name in networks}
    for what, images in sets.items():
        total = np.zeros(())
        for name, module in networks.items():

            def on_batch(done: int, name: str = name, what: str = what, of: int = len(images)) -> None:
                on_progress(f"{name} on {what}", done, of)

            told = probabilities(module, images, batch_size, on_batch)
            answers[name][what] = told.argmax(axis=1)
            if name in averaged:
                total = total + told / len(averaged)
        if len(averaged) > 1:
            answers.setdefault(AVERAGE, {})[what] = total.argmax(axis=1)
    return answers


def rates_of(
    answers: Mapping[str, Mapping[str, Labels]], labels: Labels, fooled: Mapping[str, NDArray[np.bool_]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each network and set: accuracy, the two defense rates and the accuracy on what all get right when clean, each with n.

    `fooled`: for each attacked set, which images the source gets wrong; None in the place of rates that need an attack or a source.
    """
    right = {name: {what: told == labels for what, told in sets.items()} for name, sets in answers.items()}
    all_right = np.logical_and.reduce([sets["clean"] for sets in right.values()])
    return {
        name: {
            what: {
                "accuracy": rate(hits).json(),
                "defense_rate": None if what == "clean" else rate(hits[sets["clean"]]).json(),
                "defense_rate_source_fooled": rate(hits[sets["clean"] & fooled[what]]).json() if what in fooled else None,
                "accuracy_where_all_right": None if what == "clean" else rate(hits[all_right]).json(),
            }
            for what, hits in sets.items()
        }
        for name, sets in right.items()
    }


def comparison(answers: Mapping[str, Mapping[str, Labels]], labels: Labels, averaged: list[str], what: str) -> dict[str, Any] | None:
    """The average beside the best of its members on one set: the difference of accuracies, and on how many images only one is right."""
    if AVERAGE not in answers:
        return None
    right = {name: answers[name][what] == labels for name in (*averaged, AVERAGE)}
    best = max(averaged, key=lambda name: int(right[name].sum()))
    ours, theirs = right[AVERAGE], right[best]
    return {
        "best_member": best,
        "difference": float(ours.mean() - theirs.mean()),
        "only_average_right": int((ours & ~theirs).sum()),
        "only_member_right": int((theirs & ~ours).sum()),
        "n": len(labels),
    }


def figures_of(rates: Mapping[str, Any], averaged: list[str], compared: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """What the issue asked for. The defective network is the one that comes nearest to both of its goals; None does not hold."""

    def accuracy(name: str, what: str) -> float:
        return float(rates[name][what]["accuracy"]["value"])

    def margin(name: str) -> float:
        return min(accuracy(name, "pgd") - PGD_GOAL, accuracy(name, "clean") - CLEAN_GOAL)

    nearest = max(averaged, key=margin) if averaged else None
    standard = accuracy("standard", "clean") if "standard" in rates else None
    values: dict[str, tuple[float | None, float]] = {
        "standard_clean": (standard, STANDARD_GOAL),
        "defective_pgd": (None if nearest is None else accuracy(nearest, "pgd"), PGD_GOAL),
        "defective_clean": (None if nearest is None else accuracy(nearest, "clean"), CLEAN_GOAL),
    }
    for what, found in compared.items():
        values[f"average_minus_best_member_{what}"] = (None if found is None else found["difference"], 0.0)
    figures = {
        name: {"value": value, "goal": f"> {goal:g}", "holds": value is not None and value > goal} for name, (value, goal) in values.items()
    }
    for name in ("defective_pgd", "defective_clean"):
        figures[name]["network"] = nearest
    return figures
