"""Black-box robustness probes, which need no access to the weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Target as Target, target_from_model as target_from_model
    from .noise import NoiseResult as NoiseResult, noisy_images as noisy_images, probe_noise as probe_noise

_MODULE_BY_NAME = {"Target": "base", "target_from_model": "base", "NoiseResult": "noise", "noisy_images": "noise", "probe_noise": "noise"}
__all__ = sorted(_MODULE_BY_NAME)


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULE_BY_NAME[name]}"), name)
    globals()[name] = value
    return value
