"""The one place that knows Foolbox, which is imported where an attack of its own is asked for."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .presets import AttackPreset


def l2_carlini_wagner(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, preset: AttackPreset) -> torch.Tensor:
    """Run Foolbox's CW on a module in eval mode; an image for which nothing is found is returned black."""
    foolbox = _foolbox()
    method = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=preset.search_steps,
        steps=preset.steps,
        stepsize=preset.step_size,
        confidence=preset.confidence,
        initial_const=1e-3,
        abort_early=True,
    )
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device=images.device)
    found: torch.Tensor = method(model, images, labels, epsilons=None)[0]
    return found


def _foolbox() -> Any:
    try:
        with warnings.catch_warnings():
            # Foolbox 3.3.4 imports from a namespace that scipy deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module("foolbox")
    except ImportError as error:
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        raise TrainingError(
            f"the attack cw needs Foolbox, which cannot be imported ({cause}); install it with: pip install 'foolbox>=3.3.4' "
            "(it needs the program git beside it)"
        ) from error
