"""Random streams of a run, each derived from the run's seed and a name, so that none depends on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *of: object) -> int:
    """Return a seed, 0 to 2**63 - 1, that follows from another one and a name."""
    text = ":".join(["defensemble-train-v1", str(seed), *map(str, of)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *of: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own for whatever `of` names, such as ("step", 17)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *of))
