"""Carlini-Wagner attack by Foolbox, the only module that uses it. Foolbox is imported on first use."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .presets import AttackPreset


def l2_carlini_wagner(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, preset: AttackPreset) -> torch.Tensor:
    """Run Foolbox's CW attack on a module in eval mode. Images for which it finds no adversarial example are returned black."""
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
    examples: torch.Tensor = method(model, images, labels, epsilons=None)[0]
    return examples


def _foolbox() -> Any:
    try:
        with warnings.catch_warnings():
            # Foolbox 3.3.4 imports from a namespace that scipy deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module("foolbox")
    except ImportError as error:
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        raise TrainingError(
            f"the attack cw needs Foolbox, which cannot be imported ({cause}). Install it with: pip install 'foolbox>=3.3.4' "
            "(Foolbox also needs the program git)."
        ) from error
