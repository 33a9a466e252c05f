"""What a defective CNN is, and how one is trained: specs, masks, networks, data, training, checkpoints, attacks.

Names are loaded on first use: masks and specs need numpy alone, the rest needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attacks.gradient import AveragedLogits, attack
    from .attacks.presets import ATTACKS, AttackPreset
    from .attacks.transfer import adversarial_examples, rounded_to_8_bits
    from .checkpoint import check_writable, load_checkpoint, read_metadata, save_checkpoint
    from .data.cached_dataset import decoded_dataset
    from .data.dataset import Dataset, Part, load_dataset
    from .errors import (
        CheckpointError,
        DataError,
        DivergedError,
        Interrupted,
        SpecError,
        TrainingError,
        UncheckedContentWarning,
    )
    from .models.build import build
    from .models.defect import defect_masks
    from .models.masks import defect_mask, mask_digest
    from .models.spec import Drop, ModelSpec
    from .models.wrapping import defective
    from .record import TrainingRecord
    from .trainer.compute import Compute, is_first_process
    from .trainer.loop import TrainingProgress
    from .trainer.recipe import PRESETS, Recipe, recipe_from_preset
    from .trainer.run_state import RunFolder
    from .trainer.train import train, train_module

__all__ = [
    "ATTACKS",
    "PRESETS",
    "AttackPreset",
    "AveragedLogits",
    "CheckpointError",
    "Compute",
    "DataError",
    "Dataset",
    "DivergedError",
    "Drop",
    "Interrupted",
    "ModelSpec",
    "Part",
    "Recipe",
    "RunFolder",
    "SpecError",
    "TrainingError",
    "TrainingProgress",
    "TrainingRecord",
    "UncheckedContentWarning",
    "adversarial_examples",
    "attack",
    "build",
    "check_writable",
    "decoded_dataset",
    "defect_mask",
    "defect_masks",
    "defective",
    "is_first_process",
    "load_checkpoint",
    "load_dataset",
    "mask_digest",
    "read_metadata",
    "recipe_from_preset",
    "rounded_to_8_bits",
    "save_checkpoint",
    "train",
    "train_module",
]

_HOMES = {
    "errors": ("CheckpointError", "DataError", "DivergedError", "Interrupted", "SpecError", "TrainingError", "UncheckedContentWarning"),
    "attacks.presets": ("ATTACKS", "AttackPreset"),
    "attacks.gradient": ("AveragedLogits", "attack"),
    "checkpoint": ("check_writable", "load_checkpoint", "read_metadata", "save_checkpoint"),
    "trainer.compute": ("Compute", "is_first_process"),
    "data.dataset": ("Dataset", "Part", "load_dataset"),
    "data.cached_dataset": ("decoded_dataset",),
    "models.defect": ("defect_masks",),
    "trainer.loop": ("TrainingProgress",),
    "models.masks": ("defect_mask", "mask_digest"),
    "models.build": ("build",),
    "trainer.recipe": ("PRESETS", "Recipe", "recipe_from_preset"),
    "record": ("TrainingRecord",),
    "trainer.run_state": ("RunFolder",),
    "models.spec": ("Drop", "ModelSpec"),
    "trainer.train": ("train", "train_module"),
    "attacks.transfer": ("adversarial_examples", "rounded_to_8_bits"),
    "models.wrapping": ("defective",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
