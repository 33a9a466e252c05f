"""Probes of robustness from outside, as a caller without the weights would make them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Target, served
    from .noise import NoiseResult, noisy_images, probe_noise

__all__ = ["NoiseResult", "Target", "noisy_images", "probe_noise", "served"]

_HOME_OF = {"Target": "base", "served": "base", "NoiseResult": "noise", "noisy_images": "noise", "probe_noise": "noise"}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
