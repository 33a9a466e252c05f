"""Models for FakeTransport, with numpy's own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble import FakeModel, FakeTransport
from tests.support.tiny import CLASSES, SHAPE, logits, softmax

Array = NDArray[Any]


def member(seed: int, *, class_names: Sequence[str] = CLASSES, max_batch_size: int = 8, preprocessing: str | None = None) -> FakeModel:
    return FakeModel(
        lambda images: {"logits": logits(seed, images).astype(np.float32)},
        SHAPE,
        class_names=class_names,
        max_batch_size=max_batch_size,
        preprocessing=preprocessing,
    )


def ensemble_answer(images: Array) -> Mapping[str, Array]:
    members = np.stack([softmax(logits(seed, images)) for seed in (1, 2)], axis=1)
    mean = members.mean(axis=1)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    within = -(members * np.log(members)).sum(axis=2).mean(axis=1)
    return {
        "probabilities": mean.astype(np.float32),
        "member_probabilities": members.astype(np.float32),
        "entropy": entropy[:, None].astype(np.float32),
        "mutual_information": (entropy - within)[:, None].astype(np.float32),
    }


def ensemble(**options: Any) -> FakeModel:
    options = {"class_names": CLASSES, "max_batch_size": 8, "steps": ("alpha", "beta", "average_0"), **options}
    return FakeModel(ensemble_answer, SHAPE, platform="ensemble", **options)


def fused(**options: Any) -> FakeModel:
    """The same ensemble as one graph."""
    return FakeModel(ensemble_answer, SHAPE, **{"class_names": CLASSES, "max_batch_size": 8, **options})


def house() -> FakeTransport:
    """An ensemble, its two members, and another network."""
    return FakeTransport({"ensemble": ensemble(), "alpha": member(1), "beta": member(2), "standard": member(3)})
