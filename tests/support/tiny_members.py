"""Three tiny members, and the probabilities of their average."""

from __future__ import annotations

import numpy as np

from defensemble_export import ExportedMember
from tests.support import tiny

SEEDS = {"alpha": 1, "beta": 2, "gamma": 3}


def members() -> list[ExportedMember]:
    return [ExportedMember(name, tiny.linear_onnx(seed), tiny.SHAPE, 3, tiny.CLASSES, f"digest-of-{name}") for name, seed in SEEDS.items()]


def expected(images: tiny.Array) -> tiny.Array:
    probabilities: tiny.Array = np.mean([tiny.softmax(tiny.logits(seed, images)) for seed in SEEDS.values()], axis=0)
    return probabilities
