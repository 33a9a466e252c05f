"""Random generators of a run. Each is seeded from the run's seed and a name, independently of earlier draws."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *name: object) -> int:
    """Derive a seed in 0 to 2**63 - 1 from another seed and a name."""
    text = ":".join(["defensemble-train-v1", str(seed), *map(str, name)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *name: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for a name, such as ("step", 17)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *name))
